"""Multilayer perceptrons by explicit formulas in NumPy, on the memory of the torch parameters."""

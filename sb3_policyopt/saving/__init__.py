"""Zips without pickles, checkpoints, and what a run leaves behind."""

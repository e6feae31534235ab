"""Checks of an algorithm's arguments and policy, and the choice of its device."""

"""Rollouts of environments that give and take tensors."""

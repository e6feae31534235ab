"""What is optimised: the clipped objective, the surrogate with its trust region, the value loss."""

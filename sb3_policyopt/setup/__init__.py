"""What an algorithm is given: arguments, a policy, a device."""

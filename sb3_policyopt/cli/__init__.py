"""The commands of ``sb3-policyopt``."""

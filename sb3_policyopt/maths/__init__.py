"""The mathematics of TRPO and PPO as pure functions: no SB3, no environment, no global random state."""

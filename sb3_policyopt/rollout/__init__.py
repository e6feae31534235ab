"""S5: the loop, the buffer, the batch, value targets and the checks of what environments return."""

"""The flat parameter vector, who owns its memory, and the steps on it."""

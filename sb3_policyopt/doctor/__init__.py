"""Reads a training log and says in plain sentences what looks wrong and what to try (needs the ``plots`` extra)."""

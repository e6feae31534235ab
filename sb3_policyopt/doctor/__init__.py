"""Rules that find problems in a training log, and a report of them in sentences (needs the ``plots`` extra)."""

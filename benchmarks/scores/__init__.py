"""
How well the entries of hyperparams/*.yml learn: trainings, the same with stock SB3, their statistics and the document.

    python -m benchmarks.scores train --algo trpo --env HalfCheetah-v5 --seeds 0 1 2    # appends to benchmarks/scores.csv
    python -m benchmarks.scores table                                                   # writes docs/scores.md
"""

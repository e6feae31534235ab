"""The command line: ``python -m benchmarks.scores {train,stock} ...``."""

import argparse
import sys
from pathlib import Path

from benchmarks.scores import entries, runs
from benchmarks.scores.train import ROOT, train_all, wanted_runs


def add_training(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help_: str) -> None:
    """Add a command that trains."""
    parser = actions.add_parser(name, help=help_)
    parser.add_argument("--algo", nargs="+", default=["ppo", "trpo"], choices=["ppo", "trpo"])
    parser.add_argument("--env", nargs="+", required=True)
    parser.add_argument("--entry", nargs="+", default=[entries.SHIPPED], help="'shipped', or names of candidates.yml")
    parser.add_argument("--candidates", type=Path, default=entries.CANDIDATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("-n", "--n-timesteps", type=int, help="instead of the entry's own")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, of one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "scores", help="folder of unfinished trainings")
    parser.add_argument("--results", type=Path, default=runs.RESULTS)
    parser.set_defaults(implementation=runs.STOCK if name == "stock" else runs.OURS)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores")
    actions = parser.add_subparsers(dest="action", required=True)
    add_training(actions, "train", "train and evaluate what has no row yet")
    add_training(actions, "stock", "the same with SB3's PPO and sb3-contrib's TRPO")
    options = parser.parse_args()
    sys.exit(1 if train_all(wanted_runs(options), options.work, options.results, options.jobs) else 0)


if __name__ == "__main__":
    main()

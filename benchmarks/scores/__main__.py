"""The command line: ``python -m benchmarks.scores {train,stock,search,table,curves} ...``."""

import argparse
import re
import sys
from pathlib import Path

from benchmarks.scores import entries, runs
from benchmarks.scores.train import ROOT, train_all, wanted_runs

NAMED = "'shipped' (hyperparams/*.yml), or a name of candidates.yml; changes may follow: 'shared gamma=0.98'"


def at_least_one(text: str) -> int:
    """
    Read a number of trainings, steps or trials.

    :param text: of the command line
    :return: the number
    :raises argparse.ArgumentTypeError: if it is none, or below 1
    """
    if re.fullmatch(r"0*[1-9]\d*", text) is None:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def shared_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that trains has."""
    parser.add_argument("--candidates", type=Path, default=entries.CANDIDATES)
    parser.add_argument("-n", "--n-timesteps", type=at_least_one, help="instead of the entry's own")
    parser.add_argument("--jobs", type=at_least_one, default=1, help="trainings at a time, of one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "scores", help="folder of unfinished trainings")
    parser.add_argument("--results", type=Path, default=runs.RESULTS)


def add_training(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help_: str) -> None:
    """Add a command that trains given entries."""
    parser = actions.add_parser(name, help=help_)
    parser.add_argument("--algo", nargs="+", default=["ppo", "trpo"], choices=["ppo", "trpo"])
    parser.add_argument("--env", nargs="+", required=True)
    parser.add_argument("--entry", nargs="+", default=[entries.SHIPPED], help=NAMED)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    shared_options(parser)
    parser.set_defaults(implementation=runs.STOCK if name == "stock" else runs.OURS)


def add_search(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command that searches."""
    parser = actions.add_parser("search", help="search an environment's entry around a candidate")
    parser.add_argument("--algo", required=True, choices=["ppo", "trpo"])
    parser.add_argument("--env", required=True)
    parser.add_argument("--entry", default="shared", help=NAMED)
    parser.add_argument("--trials", type=at_least_one, default=20)
    parser.add_argument("--n-seeds", type=at_least_one, default=2)
    parser.add_argument("--storage", type=Path, help="SQLite file of the studies")
    shared_options(parser)


def main(argv: list[str] | None = None) -> int:
    """
    Run a command.

    :param argv: its name and options, those of the process by default
    :return: exit code
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores")
    actions = parser.add_subparsers(dest="action", required=True)
    add_training(actions, "train", "train and evaluate what has no row yet")
    add_training(actions, "stock", "the same with SB3's PPO and sb3-contrib's TRPO")
    add_search(actions)
    actions.add_parser("table", help="write the tables of docs/scores.md and README.md")
    actions.add_parser("curves", help="draw docs/scores.png and docs/score_curves.png")
    options = parser.parse_args(argv)
    if options.action == "table":
        from benchmarks.scores import table

        table.write(runs.read())
    elif options.action == "curves":
        from benchmarks.scores import charts

        charts.draw_all(runs.read())
    else:
        return train_or_search(parser, options)
    return 0


def train_or_search(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """
    Make the trainings that a command asks for.

    :param parser: ends the process if an environment or an entry does not exist
    :param options: of the command line
    :return: exit code: 1 if a training failed, or no trial of a search came to its end
    """
    try:
        for env_id in [options.env] if options.action == "search" else options.env:
            entries.check_environment(env_id)
        if options.action == "search":
            entries.load(options.algo, options.env, options.entry, options.candidates)
            wanted = []
        else:
            wanted = wanted_runs(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.action == "search":
        from benchmarks.scores import search

        if search.has_results(search.search(options)):
            return 0
        print("no trial of the study came to its end", file=sys.stderr)
        return 1
    return int(train_all(wanted, options.work, options.results, options.jobs) > 0)


if __name__ == "__main__":
    sys.exit(main())

"""``sb3-policyopt plot``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_policyopt.cli.exit_codes import tell_skipped
from sb3_policyopt.cli.help import new_parser
from sb3_policyopt.errors import user_errors
from sb3_policyopt.plots.extra import require

_DESCRIPTION = """\
Draw training runs on one page: the learning curve with its evaluations, and the metrics of the updates
(TRPO: true and predicted KL against the bound, line search, conjugate gradient;
PPO: KL, clipped samples, entropy, explained variance)."""


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command.

    :param argv: arguments after ``plot``; None takes those of the process
    :raises UserError: if a run cannot be read or drawn
    """
    arguments = parser().parse_args(argv)
    with user_errors(ValueError, OSError):
        require("pandas", "matplotlib", "scipy", "yaml")
        from sb3_policyopt.plots.page import draw_page
        from sb3_policyopt.plots.runs import read_run, read_runs

        runs, skipped = read_runs(arguments.runs, read_run)
        tell_skipped(skipped)
        out = arguments.out or (runs[0].path if len(runs) == 1 and runs[0].path.is_dir() else Path()) / "training.png"
        print(draw_page(runs, out, arguments.group == "seeds"))


def parser() -> argparse.ArgumentParser:
    """
    Make the parser.

    :return: the parser of ``sb3-policyopt plot``
    """
    made = new_parser("plot", _DESCRIPTION)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, csv log, or a folder of run folders")
    made.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="picture to write (.png, .pdf, .svg); default: training.png in the folder of the run, or here",
    )
    made.add_argument(
        "--group",
        choices=("seeds", "none"),
        default="seeds",
        help="seeds: repetitions of one experiment are one curve, with its bootstrap interval; none: each run separately",
    )
    return made

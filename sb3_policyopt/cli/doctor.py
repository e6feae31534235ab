"""``sb3-policyopt doctor``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_policyopt.cli.exit_codes import FAILURE, SUCCESS, tell_skipped
from sb3_policyopt.cli.help import new_parser
from sb3_policyopt.errors import user_errors
from sb3_policyopt.plots.extra import require

_EXIT_CODES = "exit code: 0 if there is no finding, 1 if there is one, 2 if a run cannot be read."


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    :param argv: arguments after ``doctor``; None takes those of the process
    :return: 0 if no rule has a finding, else 1
    :raises UserError: if a run cannot be read
    """
    arguments = parser().parse_args(argv)
    with user_errors(ValueError, OSError):
        require("pandas", "yaml")
        from sb3_policyopt.doctor.report import examine, to_text
        from sb3_policyopt.plots.runs import read_run, read_runs

        reports, skipped = read_runs(arguments.runs, lambda path: examine(read_run(path)))
    tell_skipped(skipped)
    print("\n\n".join(to_text(report) for report in reports))
    return FAILURE if any(report.findings for report in reports) else SUCCESS


def parser() -> argparse.ArgumentParser:
    """
    Make the parser.

    :return: the parser of ``sb3-policyopt doctor``
    """
    made = new_parser(
        "doctor",
        "Read the log of a training run and list its problems, with the numbers behind them and what to try.",
        _EXIT_CODES,
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, csv log, or a folder of run folders")
    return made

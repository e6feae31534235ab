"""
``python -m benchmarks``: measure, and write ``results.json``, ``results.md``, ``speed.png`` and ``scaling.png``.

Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from benchmarks import charts, gpu, report, updates
from benchmarks.cases import CASES
from benchmarks.run import run


def expression(text: str) -> str:
    """
    Read a regular expression.

    :param text: of the command line
    :return: the same
    :raises argparse.ArgumentTypeError: if it is none
    """
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def command_line() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--floors", action="store_true", help="the ratios that must be held (default), each case twice")
    what.add_argument("--quick", action="store_true", help="the same, each case once and shorter")
    what.add_argument("--full", action="store_true", help="all cases, each once")
    what.add_argument("--gpu", action="store_true", help="a GPU, beside SB3, sb3-contrib and rsl_rl, see benchmarks.gpu")
    what.add_argument("--sweep", action="store_true", help="updates by widths and rows, see benchmarks.updates")
    parser.add_argument("--only", metavar="REGEX", type=expression, help="only cases whose name or group matches")
    parser.add_argument("--repeats", type=int, help="how often each case starts anew, in fresh processes")
    parser.add_argument("--seconds", type=float, help="how long each contender trains each time (default 10, quick 4)")
    parser.add_argument("--default-threads", action="store_true", help="all cores and default thread counts, in all cases")
    parser.add_argument("--device", default="cuda", help="of --gpu: cpu tries the script")
    parser.add_argument("--small", action="store_true", help="of --gpu: few environments and narrow networks")
    parser.add_argument("--threads", type=int, help="of --sweep (default: those that the libraries take)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder for what is written")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: tables by the processor's time, if busy"
    )
    parser.add_argument("--list", action="store_true", help="names of the cases")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: tables and charts of the results in the folder"
    )
    return parser


def main() -> None:
    """Measure what was asked for, and report."""
    parser = command_line()
    args = parser.parse_args()
    if args.gpu:
        gpu.main(args.device, args.small, args.only or "", args.output)
        return
    if args.sweep:
        cells = [cell for cell in updates.CELLS if re.search(args.only or "", cell.name)]
        if not cells:
            parser.error(f"--only {args.only}: no cell of the sweep has such a name")
        sys.exit(0 if updates.sweep(cells, 15, args.threads) else 1)
    cases = [case for case in CASES.values() if args.full or args.only or case.group == "floors"]
    if args.only:
        cases = [case for case in cases if re.search(args.only, case.name) or re.search(args.only, case.group)]
    if args.only and not cases:
        parser.error(f"--only {args.only}: no case or group has such a name; --list shows the names")
    if args.list:
        print("\n".join(f"{case.name:24s} {case.group:10s} {', '.join(case.contenders)}" for case in cases))
        return
    output = args.output / "results.json"
    if args.report:
        try:
            results = json.loads(output.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--report: {output} cannot be read: {error}")
    else:
        repeats = args.repeats or (1 if args.quick or args.full else 2)
        seconds = args.seconds or (4.0 if args.quick else 10.0)
        results = run(cases, repeats, seconds, output, args.default_threads)
    clock = "steps_per_second" if args.clock == "wall" else "steps_per_cpu_second"
    text = report.markdown(results, clock)
    (args.output / "results.md").write_text(text)
    charts.floors_chart(results, args.output / "speed.png")
    charts.scaling_chart(results, args.output / "scaling.png")
    print(report.floors_table(results, clock) if args.floors else text)
    print("\n".join(report.failures(results)))


if __name__ == "__main__":
    main()

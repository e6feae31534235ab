"""
The picture of the README: ``python -m benchmarks.headline measure`` and ``draw``.

``measure`` writes ``benchmarks/headline.csv``: environment steps per second of ``learn()`` with default threads, every
contender in a process of its own, in turns of about a second. Nothing else should run meanwhile. ``draw`` makes
``docs/headline.png`` of it and of ``benchmarks/scores.csv``.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.cases import libraries
from benchmarks.charts import COLOURS
from benchmarks.envs import compare
from benchmarks.run import machine
from benchmarks.scores.charts import STOCK_NAMES, published_line, seeds
from benchmarks.scores.entries import SHIPPED
from benchmarks.scores.groups import Group, group, is_shipped, stocks_for
from benchmarks.scores.runs import read
from benchmarks.scores.table import EARLIER, name_of, place

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"ppo": "SB3", "trpo": "contrib"}
FILE = ROOT / "benchmarks" / "headline.csv"
TASKS = [
    (f"{env_id} ×{n_envs}", {"env_id": env_id, "n_envs": n_envs, "n_steps": 2048 // n_envs})
    for env_id in ("CartPole-v1", "HalfCheetah-v5")
    for n_envs in (1, 8)
]


def measure(rounds: int, seconds: float) -> None:
    """
    Let all libraries take turns.

    :param rounds: number of turns of each
    :param seconds: of a turn
    """
    rows = [["algorithm", "task", "library", "steps_per_second", "low", "high", "ratio", "machine"]]
    for algorithm in ("ppo", "trpo"):
        for title, task in TASKS:
            case = libraries(title, "headline", title, algorithm, **task, all_cores=True)
            turns = compare("training", case.contenders, rounds, seconds)
            for library, times in turns.items():
                low, _, high = quantiles([1e6 / time for time in times], n=4)
                ratio = median(b / a for a, b in zip(turns["ours"], times, strict=True))
                speed = median(1e6 / time for time in times)
                rows.append([algorithm, title, library, *(f"{x:.0f}" for x in (speed, low, high)), f"{ratio:.2f}", machine()])
            print(algorithm, title, {library: round(1e6 / median(times)) for library, times in turns.items()}, flush=True)
    with FILE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def speeds(axes: Axes, rows: list[dict[str, str]], algorithm: str) -> None:
    """
    Bars of one algorithm, with the quartiles of the turns.

    :param axes: of the panel
    :param rows: of the CSV file
    :param algorithm: "ppo" or "trpo"
    """
    mine = [row for row in rows if row["algorithm"] == algorithm]
    tasks, names = list(dict.fromkeys(row["task"] for row in mine)), list(dict.fromkeys(row["library"] for row in mine))
    for i, name in enumerate(names):
        found = {row["task"]: row for row in mine if row["library"] == name}
        x = np.arange(len(tasks)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        height = np.array([float(found[task]["steps_per_second"]) for task in tasks])
        error = [
            height - [float(found[task]["low"]) for task in tasks],
            np.array([float(found[task]["high"]) for task in tasks]) - height,
        ]
        label = "sb3-policyopt" if name == "ours" else name
        axes.bar(x, height, 0.76 / len(names), yerr=error, color=COLOURS[name], label=label, error_kw={"linewidth": 0.8})
        for left, task, tall in zip(x, tasks, height, strict=True):
            if name != "ours":
                axes.annotate(f"{float(found[task]['ratio']):.1f}×", (left, tall), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(tasks)), [task.replace("-", "\n-").replace(" ", "\n") for task in tasks])
    axes.set_title(f"{algorithm.upper()}: steps per second", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def values_of(stock: Group) -> str:
    """Whose values an entry has: ours, rl-zoo3's, which our files once had, or else its name."""
    name = name_of(stock)
    if name.startswith(EARLIER):
        return "rl-zoo3's"
    first, *_ = name.split()
    return "our" if first in (SHIPPED, "shared") else first


def returns(axes: Axes, ours: Group, stocks: Sequence[Group]) -> None:
    """Our seeds beside stock's, with the values of our files and with those of rl-zoo3, which were ours once."""
    names = [f"ours\n({len(ours.rows)})"]
    seeds(axes, 0, ours, COLOURS["ours"])
    for x, stock in enumerate(stocks, 1):
        seeds(axes, x, stock, COLOURS[STOCK_NAMES[ours.algo]])
        names.append(f"{SHORT[ours.algo]},\n{values_of(stock)}\nvalues\n({len(stock.rows)})")
    published_line(axes, ours)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(stocks) + 0.6)
    axes.set_title(f"{ours.algo.upper()} {ours.env_id}\nreturn", fontsize=9)


def draw() -> None:
    """Speeds above, returns after training below."""
    with FILE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = group(read())
    shipped = sorted((g for g in groups if is_shipped(g) and g.env_id.endswith("-v5")), key=lambda g: place(g.env_id))
    stocks = [[stock for stock in stocks_for(ours, groups) if len(stock.rows) > 1] for ours in shipped]
    chosen = [(ours, sorted(found, key=values_of)) for ours, found in zip(shipped, stocks, strict=True) if found]
    figure = plt.figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for axes, algorithm in zip(above.subplots(1, 2), ("ppo", "trpo"), strict=True):
        speeds(axes, rows, algorithm)
    widths = [1.4 + len(found) for _, found in chosen]
    for axes, (ours, found) in zip(below.subplots(1, len(chosen), width_ratios=widths), chosen, strict=True):
        returns(axes, ours, found)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(ROOT / "docs" / "headline.png", dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headline", description=__doc__)
    parser.add_argument("action", choices=("measure", "draw"))
    parser.add_argument("--rounds", type=int, default=8, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    arguments = parser.parse_args()
    if arguments.action == "measure":
        measure(arguments.rounds, arguments.seconds)
    draw()


if __name__ == "__main__":
    main()

"""
The picture of the README: ``python -m benchmarks.headline measure`` and ``draw``.

``measure`` writes ``benchmarks/headline.csv``: environment steps per second of ``learn()`` with default threads, every
contender in a process of its own, in turns of about a second. Nothing else should run meanwhile. ``draw`` makes
``docs/headline.png`` of it and of ``benchmarks/scores.csv``.
"""

import argparse
import csv
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
from benchmarks.scores.charts import final_returns
from benchmarks.scores.groups import group, is_shipped, stock_for
from benchmarks.scores.runs import read
from benchmarks.scores.table import place

ROOT = Path(__file__).resolve().parents[1]
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


def draw() -> None:
    """Speeds on the left, returns after training on the right."""
    with FILE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = group(read())
    shipped = [(found, stock_for(found, groups)) for found in groups if is_shipped(found) and found.env_id.endswith("-v5")]
    chosen = sorted(
        (pair for pair in shipped if pair[1] and min(len(g.rows) for g in pair) > 1), key=lambda pair: place(pair[0].env_id)
    )
    widths = [4, 4, *[1.6] * len(chosen)]
    figure, panels = plt.subplots(1, len(widths), figsize=(1.2 * sum(widths), 3.4), width_ratios=widths)
    for axes, algorithm in zip(panels, ("ppo", "trpo"), strict=False):
        speeds(axes, rows, algorithm)
    for axes, (found, stock) in zip(panels[2:], chosen, strict=True):
        final_returns(axes, found, stock)
        axes.set_title(f"{found.algo.upper()} {found.env_id}\nreturn", fontsize=9)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
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

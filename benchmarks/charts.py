"""Charts of the measurements, to be read at a glance."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import PARTS, speed_ratio, speeds, split, summary

COLOURS = {"ours": "#d1495b", "SB3": "#66a182", "sb3-contrib": "#66a182", "SBX": "#8d96a3"}
PART_COLOURS = {"environment": "#c9ccd1", "policy": "#2e4057", "buffer": "#edae49", "update": "#7768ae"}
NAMES = {"ours": "sb3-policyopt"}


def _short(title: str) -> str:
    """Without the algorithm, on two lines."""
    return title.split(" ", 1)[1].replace(" ×", "\n×")


def _thousands(speed: float) -> str:
    """In thousands."""
    return f"{speed / 1000:.1f}k" if speed else "failed"


def _speeds(axes: Axes, cases: list[dict[str, Any]]) -> None:
    contenders = list(cases[0]["measurements"])
    width = 0.8 / len(contenders)
    for place, contender in enumerate(contenders):
        summaries = [summary(speeds(case, contender)) or (0.0, 0.0, 0.0) for case in cases]
        x = [index + (place - (len(contenders) - 1) / 2) * width for index in range(len(cases))]
        heights = [middle for middle, _, _ in summaries]
        spread = [[middle - least for middle, least, _ in summaries], [most - middle for middle, _, most in summaries]]
        axes.bar(x, heights, width * 0.95, label=NAMES.get(contender, contender), color=COLOURS[contender])
        axes.errorbar(x, heights, yerr=spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        for case, position, (_, _, top) in zip(cases, x, summaries, strict=True):
            ratio = speed_ratio(case, contender)
            middle = _thousands(heights[cases.index(case)])
            text = middle if ratio is None or place == 0 else f"{ratio[0]:.1f}×"
            axes.annotate(text, (position, top), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(cases)), [_short(case["title"]) for case in cases], fontsize=9)
    axes.set_ylabel("environment steps per second of learn()")
    axes.legend(frameon=False)


def _splits(axes: Axes, cases: list[dict[str, Any]]) -> None:
    contenders = list(cases[0]["measurements"])
    positions: list[float] = []
    labels: list[str] = []
    place = 0.0
    for case in cases:
        for contender in contenders:
            left = 0.0
            parts = split(case, contender)
            for part in PARTS:
                width = parts.get(part, 0.0)
                axes.barh(place, width, left=left, height=0.8, color=PART_COLOURS[part], label=part if not positions else None)
                left += width
            positions.append(place)
            labels.append(f"{_short(case['title']).replace(chr(10), ' ')}  {NAMES.get(contender, contender)}")
            place += 1.0
        place += 0.6
    axes.set_yticks(positions, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("µs per environment step")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=len(PARTS))


def floors_chart(results: dict[str, Any], path: Path) -> bool:
    """
    Speeds, and where the time goes, of the cases of the group "floors".

    :param results: of the measurements
    :param path: of the PNG
    :return: False if there was nothing to draw
    """
    cases = [case for case in results["cases"].values() if case["group"] == "floors"]
    algorithms = [word for word in ("PPO", "TRPO") if any(case["title"].startswith(f"{word} ") for case in cases)]
    if not algorithms:
        return False
    figure, grid = plt.subplots(2, len(algorithms), figsize=(6.5 * len(algorithms), 9), squeeze=False, height_ratios=(1.1, 1))
    for column, algorithm in enumerate(algorithms):
        own = [case for case in cases if case["title"].startswith(f"{algorithm} ")]
        _speeds(grid[0][column], own)
        _splits(grid[1][column], own)
        grid[0][column].set_title(f"{algorithm}: speed (N×: how many times faster we are)")
        grid[1][column].set_title(f"{algorithm}: where the time goes")
    _finish(figure, path)
    return True


def scaling_chart(results: dict[str, Any], path: Path) -> bool:
    """
    Speed against the number of environments, the batch size and the width of the networks; names are ``algorithm-axis-value``.

    :param results: of the measurements
    :param path: of the PNG
    :return: False if there was nothing to draw
    """
    points: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for name, case in results["cases"].items():
        if case["group"] != "scaling":
            continue
        algorithm, axis, value = name.rsplit("-", 2)
        for contender in case["measurements"]:
            speed = summary(speeds(case, contender))
            if speed is not None:
                points.setdefault((algorithm, axis), {}).setdefault(contender, []).append((int(value), speed[0]))
    if not points:
        return False
    algorithms = list(dict.fromkeys(algorithm for algorithm, _ in points))
    columns = list(dict.fromkeys(axis for _, axis in points))
    figure, grid = plt.subplots(
        len(algorithms), len(columns), figsize=(4.5 * len(columns), 3.6 * len(algorithms)), squeeze=False
    )
    for row, algorithm in enumerate(algorithms):
        for column, axis in enumerate(columns):
            axes = grid[row][column]
            for contender, line in points.get((algorithm, axis), {}).items():
                x, y = zip(*sorted(line), strict=True)
                axes.plot(x, y, "o-", color=COLOURS[contender], label=NAMES.get(contender, contender))
            axes.set(xscale="log", yscale="log", xlabel=axis, title=f"{algorithm.upper()}, CartPole-v1")
            ticks = sorted({value for line in points.get((algorithm, axis), {}).values() for value, _ in line})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_ylabel("steps per second")
            axes.legend(frameon=False)
    _finish(figure, path)
    return True


def _finish(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)

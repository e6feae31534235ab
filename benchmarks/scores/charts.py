"""The figure that opens docs/scores.md, and the page of learning curves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.scores.groups import Group, group, is_shipped, stock_for
from benchmarks.scores.published import PUBLISHED
from benchmarks.scores.runs import Row
from benchmarks.scores.table import MUJOCO, place
from sb3_policyopt.plots.statistics import pool

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLOURS = {"ours": "#d1495b", "stock": "#66a182"}
STOCK_NAMES = {"ppo": "SB3", "trpo": "sb3-contrib"}
Panel = Callable[[Axes, Group, Group | None], None]


def final_returns(axes: Axes, ours: Group, stock: Group | None) -> None:
    """Every seed as a dot, the interquartile mean with its interval, the published figure as a line."""
    seeds(axes, 0, ours, COLOURS["ours"])
    if stock is not None:
        seeds(axes, 1, stock, COLOURS["stock"])
    published_line(axes, ours)
    names = [f"ours\n({len(ours.rows)})", "" if stock is None else f"{STOCK_NAMES[ours.algo]}\n({len(stock.rows)})"]
    axes.set_xticks([0, 1], names)
    axes.set_xlim(-0.6, 1.6)


def seeds(axes: Axes, x: float, found: Group, colour: str) -> None:
    """Every seed as a dot, the interquartile mean with its interval."""
    axes.plot(np.full(len(found.rows), x), found.returns, "o", color=colour, alpha=0.35, markersize=4)
    low, high = found.interval
    error = [[found.iqm - low], [high - found.iqm]]
    axes.errorbar([x], [found.iqm], yerr=error, fmt="_", color=colour, markersize=18, markeredgewidth=2.5)


def published_line(axes: Axes, ours: Group) -> None:
    """The published figure, if it is one at as many steps."""
    published = PUBLISHED.get((ours.algo, ours.env_id))
    if published is not None and published.n_timesteps == ours.n_timesteps:
        axes.axhline(published.mean, color="black", linestyle=":", linewidth=1)


def learning_curves(axes: Axes, ours: Group, stock: Group | None) -> None:
    """Interquartile mean of the training return over the steps, with its interval."""
    for kind, found in [("ours", ours), ("stock", stock)]:
        curves = [np.fromstring(row["curve"], sep=" ") for row in found.rows if row["curve"]] if found else []
        if not curves:
            continue
        steps = np.arange(1, len(curves[0]) + 1) * ours.n_timesteps / len(curves[0])
        band = pool([(steps, curve) for curve in curves])
        label = f"{'ours' if kind == 'ours' else STOCK_NAMES[ours.algo]} ({len(curves)})"
        axes.plot(band.steps, band.centre, color=COLOURS[kind], label=label)
        axes.fill_between(band.steps, band.low, band.high, color=COLOURS[kind], alpha=0.2, linewidth=0)
    if axes.lines:
        axes.set_xlabel("steps")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    else:
        axes.set_axis_off()


def draw(rows: Sequence[Row], panel: Panel, path: Path) -> None:
    """
    One panel for each shipped MuJoCo entry that was trained, PPO above TRPO.

    :param rows: of the CSV file
    :param panel: draws one
    :param path: of the PNG
    """
    groups = group(rows)
    shipped = {(found.algo, found.env_id): found for found in groups if is_shipped(found) and found.env_id.startswith(MUJOCO)}
    env_ids = sorted({env_id for _, env_id in shipped}, key=lambda env_id: (place(env_id), env_id))
    algos = sorted({algo for algo, _ in shipped})
    size = (2.6 * len(env_ids), 2.8 * len(algos))
    figure, grid = plt.subplots(len(algos), len(env_ids), figsize=size, squeeze=False)
    for row, algo in enumerate(algos):
        for column, env_id in enumerate(env_ids):
            axes, found = grid[row][column], shipped.get((algo, env_id))
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{algo.upper()} {env_id}", fontsize=9)
            if found is None:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "not run", ha="center", fontsize=9, color="grey", transform=axes.transAxes)
                continue
            panel(axes, found, stock_for(found, groups))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_all(rows: Sequence[Row], folder: Path = DOCS) -> None:
    """
    Draw both files.

    :param rows: of the CSV file
    :param folder: where
    """
    draw(rows, final_returns, folder / "scores.png")
    draw(rows, learning_curves, folder / "score_curves.png")

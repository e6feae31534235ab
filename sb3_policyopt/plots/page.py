"""Draws the page: the learning curve on top, below it the metrics of the updates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from sb3_policyopt import registry
from sb3_policyopt.plots.experiments import Experiment, group
from sb3_policyopt.plots.outcomes import SUCCESS, line_search_outcomes
from sb3_policyopt.plots.panels import Panel, panels_of
from sb3_policyopt.plots.runs import RETURN, Run
from sb3_policyopt.plots.statistics import Band, bootstrap_interval, interquartile_mean, pool

_COLUMNS = 4
_ROOMY_LEGEND = 6  # up to this number of experiments, the legend has two lines for each
_FORMATS = (".png", ".pdf", ".svg", ".jpg")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


def draw_page(runs: Sequence[Run], out: Path, pool_seeds: bool = True) -> Path:
    """
    Draw runs on one page and write it.

    :param runs: at least one
    :param out: file to write; its folder is made if it is missing
    :param pool_seeds: see :func:`sb3_policyopt.plots.plot_runs`
    :return: ``out``
    :raises ValueError: when there is no run, nothing in them can be drawn, or the format is unknown
    """
    if out.suffix.lower() not in _FORMATS:
        raise ValueError(f"Cannot draw into {out.name}: the name must end in one of {', '.join(_FORMATS)}.")
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure = make_figure(runs, pool_seeds)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=130)
    return out


def make_figure(runs: Sequence[Run], pool_seeds: bool = True) -> Figure:
    """
    Draw runs on one page.

    :param runs: at least one
    :param pool_seeds: see :func:`sb3_policyopt.plots.plot_runs`
    :return: the figure
    :raises ValueError: when there is no run, or nothing in them can be drawn
    """
    experiments = group(runs, pool_seeds)
    sections = [(algo, _drawable(panels_of(algo), experiments, algo)) for algo in registry.ALGORITHMS]
    sections = [(algo, panels) for algo, panels in sections if panels]
    if not sections and not any(_has_returns(run) for run in runs):
        names = ", ".join(str(run.path) for run in runs)
        raise ValueError(f"There is nothing to draw in {names}: {_what_is_missing(runs)}.")
    rows = [-(-len(panels) // _COLUMNS) for _, panels in sections]
    heights = [3.3, *(2.2 * n + 0.4 for n in rows)]
    figure = Figure(figsize=(15, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel()
    curve, legend = parts[0].subplots(1, 2, width_ratios=(2.6, 1))
    _draw_learning_curve(curve, experiments)
    _draw_legend(legend, experiments)
    for part, (algo, panels), n_rows in zip(parts[1:], sections, rows, strict=True):
        _draw_section(part, algo, panels, n_rows, [e for e in experiments if e.algo == algo])
    return figure


def _drawable(panels: Sequence[Panel], experiments: Sequence[Experiment], algo: str) -> list[Panel]:
    """The panels for which some run of the algorithm has data."""
    runs = [run for experiment in experiments if experiment.algo == algo for run in experiment.runs]
    return [panel for panel in panels if any(_has(run, panel) for run in runs)]


def _has(run: Run, panel: Panel) -> bool:
    return bool(line_search_outcomes(run.metrics)) if panel.column == SUCCESS else len(run.series(panel.column)[0]) > 0


def _what_is_missing(runs: Sequence[Run]) -> str:
    """Why runs without a return cannot be drawn."""
    if any(not run.algo and any(str(column).startswith("train/") for column in run.metrics) for run in runs):
        keys = " or ".join(list(registry.ALGORITHMS)[:2])
        return (
            "no return, and the algorithm is unknown, which says what of the train/ metrics to draw. Name the folder above "
            f"the run's after it, such as {keys}"
        )
    return "no return and no train/ metric"


def _has_returns(run: Run) -> bool:
    return len(run.series(RETURN)[0]) > 0 or not run.evaluations.empty


def _draw_learning_curve(axes: Axes, experiments: Sequence[Experiment]) -> None:
    for experiment in experiments:
        _draw_curves(axes, experiment, RETURN)
        _draw_evaluations(axes, experiment)
    environments = sorted({run.env for e in experiments for run in e.runs} - {""})
    axes.set_title("Learning curve: " + ", ".join(environments) if environments else "Learning curve", fontsize=11, loc="left")
    axes.set_ylabel("return per episode")
    if np.abs(axes.get_ylim()).max() >= 1e5:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    styles = [Line2D([], [], color="0.3", label="training, exploring")]
    if any(not run.evaluations.empty for e in experiments for run in e.runs):
        styles.append(Line2D([], [], color="0.3", linestyle="--", marker="o", markersize=4, linewidth=1, label="evaluation"))
    axes.legend(handles=styles, loc="best")


def _draw_evaluations(axes: Axes, experiment: Experiment) -> None:
    tables = [run.evaluations for run in experiment.comparable if not run.evaluations.empty]
    if not tables:
        return
    band = pool([(table["timesteps"].to_numpy(), table["mean"].to_numpy()) for table in tables], smoothing=False)
    axes.plot(band.steps, band.centre, color=experiment.color, linestyle="--", linewidth=1, marker="o", markersize=4, zorder=3)


def _draw_curves(axes: Axes, experiment: Experiment, column: str, scale: float = 1.0, linestyle: str = "-") -> None:
    """Draw each run as a thin line, and over them the smoothed or pooled curve with its interval."""
    single, pooled = (_curves(runs, column, scale) for runs in (experiment.runs, experiment.comparable))
    if not single:
        return
    band: Band = pool(pooled or single)
    marker = "o" if len(band.steps) == 1 else ""
    axes.plot(band.steps, band.centre, color=experiment.color, linestyle=linestyle, marker=marker)
    if linestyle != "-":  # a companion: its single runs would hide the metric itself
        return
    for steps, values in single:
        axes.plot(steps, values, color=experiment.color, linewidth=0.7, alpha=0.3)
    if len(pooled) > 1:
        axes.fill_between(band.steps, band.low, band.high, color=experiment.color, alpha=0.18, linewidth=0)


def _curves(runs: Sequence[Run], column: str, scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The metric of each run that has it."""
    return [(steps, scale * values) for steps, values in (run.series(column) for run in runs) if len(steps)]


def _draw_legend(axes: Axes, experiments: Sequence[Experiment]) -> None:
    """A table of the experiments: colour, name, number of runs, return at the end."""
    axes.axis("off")
    many = len(experiments) > _ROOMY_LEGEND
    labels = [f"{e.label}{': ' if many else chr(10)}{_summary(e)}" for e in experiments]
    handles = [Line2D([], [], color=e.color, linewidth=3, label=text) for e, text in zip(experiments, labels, strict=True)]
    fontsize = 9 if not many else max(3.0, min(8.0, 110 / len(handles)))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0, labelspacing=0.7, fontsize=fontsize)
    if any(len(e.runs) > 1 for e in experiments):
        note = "Several runs: interquartile mean,\nband and brackets: 95% bootstrap interval."
        axes.text(0, 0, note, transform=axes.transAxes, fontsize=8, color="0.4", va="bottom")


def _summary(experiment: Experiment) -> str:
    """Return over the last tenth of the training, and the best evaluation."""
    finals = np.array([_final_return(run) for run in experiment.comparable])
    finals = finals[np.isfinite(finals)]
    parts = [f"{len(experiment.runs)} runs"] if len(experiment.runs) > 1 else []
    if unfinished := len(experiment.runs) - len(experiment.comparable):
        parts[0] += f", {unfinished} of them unfinished and left out"
    if len(finals):
        text = f"last 10%: {float(interquartile_mean(finals)):.4g}"
        if len(finals) > 1:
            low, high = bootstrap_interval(finals)
            text += f" [{float(low):.4g}, {float(high):.4g}]"
        parts.append(text)
    best = [float(run.evaluations["mean"].max()) for run in experiment.runs if not run.evaluations.empty]
    if best:
        parts.append(f"best evaluation: {max(best):.4g}")
    return "; ".join(parts) or "no return logged"


def _final_return(run: Run) -> float:
    steps, values = run.series(RETURN)
    return float(values[steps >= 0.9 * steps[-1]].mean()) if len(steps) else float("nan")


def _draw_section(part: SubFigure, algo: str, panels: Sequence[Panel], n_rows: int, experiments: Sequence[Experiment]) -> None:
    part.suptitle(f"{registry.title(algo)}: metrics of the updates", fontsize=11, x=0.005, ha="left")
    grid = part.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(panel.title, loc="left")
        if panel.column == SUCCESS:
            _draw_outcomes(axes, experiments)
        else:
            _draw_panel(axes, panel, experiments)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    for axes in grid[max(0, len(panels) - _COLUMNS) : len(panels)]:
        if axes.get_xlabel() == "":
            axes.set_xlabel("environment steps")


def _draw_panel(axes: Axes, panel: Panel, experiments: Sequence[Experiment]) -> None:
    lines = [(panel.column, panel.name, "-"), *panel.companions]
    shown = []
    for column, name, linestyle in lines:
        for experiment in experiments:
            _draw_curves(axes, experiment, column, panel.scale, linestyle)
        if any(len(run.series(column)[0]) for e in experiments for run in e.runs):
            shown.append(Line2D([], [], color="0.3", linestyle=linestyle, label=name))
    if len(shown) > 1:
        axes.legend(handles=shown, loc="best", fontsize=8)
    if panel.log and 0 < 20 * axes.dataLim.minposy < axes.dataLim.ymax:
        axes.set_yscale("log")
    bottom, top = panel.limits
    axes.set_ylim(bottom, 1.08 * axes.dataLim.ymax if bottom == 0 and top is None and axes.dataLim.ymax > 0 else top)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _draw_outcomes(axes: Axes, experiments: Sequence[Experiment]) -> None:
    """Draw the frequency of each outcome of the line search: one bar for each outcome and experiment."""
    counts = [line_search_outcomes(pd.concat([run.metrics for run in e.runs], ignore_index=True)) for e in experiments]
    words = sorted({word for c in counts for word in c}, key=lambda word: (word != "accepted", word))
    height = 0.8 / len(experiments)
    for i, (experiment, outcomes) in enumerate(zip(experiments, counts, strict=True)):
        shares = [100 * outcomes.get(word, 0.0) / max(1, sum(outcomes.values())) for word in words]
        bars = axes.barh(np.arange(len(words)) + (i + 0.5) * height - 0.4, shares, height * 0.9, color=experiment.color)
        if len(experiments) <= 3:
            axes.bar_label(bars, fmt="%.3g%%", padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(words)), [word.replace("_", " ") for word in words])
    axes.set_ylim(max(len(words), 3) - 0.5, -0.5)
    axes.set_xlim(0, 115)
    axes.set_xticks([0, 50, 100])
    axes.xaxis.set_major_formatter(PercentFormatter())
    axes.set_xlabel(" ")

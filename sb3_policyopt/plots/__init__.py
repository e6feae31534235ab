"""Pictures of training runs (needs the ``plots`` extra)."""

from collections.abc import Sequence
from pathlib import Path


def plot_run(run: str | Path, out: str | Path) -> Path:
    """
    Draw the page of one run: learning curve, evaluations and the metrics of the updates.

    :param run: run folder (``logs/{algo}/{env}_{n}``, or any folder with ``progress.csv``), or a csv file
    :param out: picture to write; its suffix chooses the format (``.png``, ``.pdf``, ``.svg``)
    :return: the path of the picture
    :raises ValueError: when there is nothing to draw, or the format is unknown
    :raises ModuleNotFoundError: when the ``plots`` extra is not installed
    """
    return plot_runs([run], out)


def plot_runs(runs: Sequence[str | Path], out: str | Path, pool_seeds: bool = True) -> Path:
    """
    Draw several runs on one page.

    :param runs: run folders or csv files
    :param out: picture to write
    :param pool_seeds: draw the runs of one experiment (same algorithm, environment, log folder and
        hyperparameters) as one curve, the interquartile mean with a 95% bootstrap interval
    :return: the path of the picture
    :raises ValueError: when there is nothing to draw, or the format is unknown
    :raises ModuleNotFoundError: when the ``plots`` extra is not installed
    """
    from sb3_policyopt.plots.extra import require

    require("pandas", "matplotlib", "scipy", "yaml")
    from sb3_policyopt.plots.page import draw_page
    from sb3_policyopt.plots.runs import read_run

    return draw_page([read_run(run) for run in runs], Path(out), pool_seeds)

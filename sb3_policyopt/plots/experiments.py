"""Which runs are repetitions of one experiment, and how each is labelled on the page."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sb3_policyopt import registry
from sb3_policyopt.plots.runs import Run

Color = str | tuple[float, float, float, float]
"""As matplotlib takes it: hexadecimal, or RGBA."""

_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that people with the common kinds of colour blindness can distinguish (Okabe and Ito 2008), without the yellow."""
_MAX_NAMED_DIFFERENCES = 3


@dataclass(frozen=True)
class Experiment:
    """
    One curve of the page.

    :param label: name in the legend
    :param color: of every line that belongs to it
    :param runs: repetitions, at least one
    """

    label: str
    color: Color
    runs: tuple[Run, ...]

    @property
    def algo(self) -> str:
        """Algorithm of its runs."""
        return self.runs[0].algo

    @property
    def comparable(self) -> tuple[Run, ...]:
        """Its runs without those that are known to be unfinished, unless none is finished."""
        return tuple(run for run in self.runs if run.facts.get("finished") is not False) or self.runs


def group(runs: Sequence[Run], pool_seeds: bool = True) -> list[Experiment]:
    """
    Group runs into experiments.

    :param runs: in the order of the legend
    :param pool_seeds: join runs with the same algorithm, environment, log folder and hyperparameters (except the seed)
    :return: one experiment per curve; the part of a run that was continued in another folder is left out of it, as that
        folder's log holds it too
    """
    members: dict[object, list[Run]] = {}
    for run in runs:
        members.setdefault(_identity(run) if pool_seeds and run.env else run.path.resolve(), []).append(run)
    groups = [_without_parts(group) for group in members.values()]
    colors = _colors(len(groups))
    return [Experiment(label, color, tuple(g)) for label, color, g in zip(_labels(groups), colors, groups, strict=True)]


def _identity(run: Run) -> tuple[str, str, Path, str]:
    hyperparameters = {key: value for key, value in run.hyperparameters.items() if key != "seed"}
    addresses = r" at 0x[0-9a-f]+"  # of functions and other objects, which differ from process to process
    return run.algo, run.env, run.path.resolve().parent, re.sub(addresses, "", repr(sorted(hyperparameters.items())))


def _without_parts(runs: list[Run]) -> list[Run]:
    """Of the runs of one experiment, those that no later one of the same seed took up and has in its log."""

    def is_part(index: int) -> bool:
        seed = runs[index].facts.get("seed")
        return seed is not None and any(run.facts.get("seed") == seed and run.was_resumed for run in runs[index + 1 :])

    return [run for index, run in enumerate(runs) if not is_part(index)]


def _colors(count: int) -> list[Color]:
    if count <= len(_OKABE_ITO):
        return list(_OKABE_ITO[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](i / (count - 1) * 0.92) for i in range(count)]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Short labels that differ: the algorithm, then environment, hyperparameters, log folder, run folder as needed."""
    firsts = [g[0] for g in groups]
    labels = [registry.title(run.algo) or run.path.stem for run in firsts]
    distinctions: tuple[Callable[[list[Run]], list[str]], ...] = (
        lambda runs: [run.env for run in runs],
        _differences,
        lambda runs: [_log_folder(run) for run in runs],
        lambda runs: [run.path.name for run in runs],
        lambda runs: [str(run.path) for run in runs],
    )
    for distinguish in distinctions:
        for label in {label for label in labels if labels.count(label) > 1}:
            alike = [i for i, other in enumerate(labels) if other == label]
            parts = distinguish([firsts[i] for i in alike])
            if len(set(parts)) > 1:
                for i, part in zip(alike, parts, strict=True):
                    labels[i] = f"{label}, {part}" if part else label
    return labels


def _differences(runs: list[Run]) -> list[str]:
    """The hyperparameters in which the runs differ, if they are few."""
    keys = sorted({key for run in runs for key in run.hyperparameters} - {"seed"})
    differing = [key for key in keys if len({repr(run.hyperparameters.get(key)) for run in runs}) > 1]
    if len(differing) > _MAX_NAMED_DIFFERENCES:
        return [""] * len(runs)
    return [", ".join(f"{key}={run.hyperparameters[key]}" for key in differing if key in run.hyperparameters) for run in runs]


def _log_folder(run: Run) -> str:
    """The folder ``logs`` in ``{logs}/{algo}/{env}_{n}``."""
    parent = run.path.resolve().parent
    return parent.parent.name if parent.name == run.algo else parent.name

"""Callbacks and those that they call, under names that are the same in every run of a script."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, ProgressBarCallback

T = TypeVar("T")


def numbered(things: Sequence[T]) -> dict[str, T]:
    """
    Name objects.

    :param things: in the order in which the script made them
    :return: by class, and number among those of that class
    """
    counts: Counter[str] = Counter()
    names = []
    for thing in things:
        name = type(thing).__name__
        names.append(f"{name} {counts[name]}")
        counts[name] += 1
    return dict(zip(names, things, strict=True))


def all_callbacks(callback: BaseCallback) -> Iterator[BaseCallback]:
    """
    Find the callbacks that learn something during a training: not lists and progress bars.

    :param callback: the outermost one
    :return: in the order in which they are called
    """
    if not isinstance(callback, (CallbackList, ProgressBarCallback)):
        yield callback
    for name, value in vars(callback).items():
        children = value if isinstance(value, list) else [value]
        if name != "parent":
            for child in children:
                if isinstance(child, BaseCallback):
                    yield from all_callbacks(child)


def forget_lost_best_models(callbacks: Iterable[object]) -> None:
    """
    Let evaluations find a best model anew whose best model is not where the next one would be: in rl-zoo3's next run folder.

    :param callbacks: those of ``EvalCallback`` are changed
    """
    for callback in (one for one in callbacks if isinstance(one, EvalCallback)):
        folder = callback.best_model_save_path
        if folder is not None and not (Path(folder) / "best_model.zip").is_file():
            callback.best_mean_reward = -np.inf

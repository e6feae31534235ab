"""Which callbacks run on which rank."""

from collections.abc import Callable
from typing import cast

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_policyopt.parallel.launcher import rank


class ProgressBar(ProgressBarCallback):
    """SB3's progress bar, which counts the environments of this rank only, made to count those of all."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.first_timestep = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self.first_timestep - self.pbar.n)
        return True


def callbacks_of_this_rank(callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
    """
    All callbacks on rank 0; on the others those that do more than evaluate, save or show.

    :param callback: the user's
    :param progress_bar: whether to show one
    :return: the callback for this rank, and whether SB3 should add its progress bar
    """
    if rank() == 0:
        bar = [ProgressBar()] if progress_bar else []
        return CallbackList([_with_our_bar(_as_callback(callback)), *bar]), False
    return _without_rank_0s(_as_callback(callback)), False


def _as_callback(callback: MaybeCallback) -> BaseCallback:
    """
    As SB3 does it.

    :param callback: a callback, a function, a list of callbacks, or None
    :return: a callback
    """
    if isinstance(callback, list):
        return CallbackList(callback)
    return (
        callback if isinstance(callback, BaseCallback) else ConvertCallback(cast(Callable[[object, object], bool], callback))
    )


def _with_our_bar(callback: BaseCallback) -> BaseCallback:
    """
    Replace SB3's progress bar, which rl-zoo3 adds by itself.

    :param callback: any; a list is changed
    :return: the callback, or our bar in its place
    """
    if type(callback) is ProgressBarCallback:
        return ProgressBar()
    if isinstance(callback, CallbackList):
        callback.callbacks = [_with_our_bar(child) for child in callback.callbacks]
    return callback


def _without_rank_0s(callback: BaseCallback) -> BaseCallback | None:
    """
    Leave out what only rank 0 should do.

    :param callback: any
    :return: what is left of it
    """
    if isinstance(callback, (EvalCallback, CheckpointCallback, ProgressBarCallback)):
        return None
    if getattr(callback, "rank_zero_only", False):
        return None
    if isinstance(callback, CallbackList):
        return CallbackList([left for child in callback.callbacks if (left := _without_rank_0s(child)) is not None])
    if isinstance(callback, EventCallback) and callback.callback is not None and _without_rank_0s(callback.callback) is None:
        return None
    return callback

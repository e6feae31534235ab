"""Which callbacks run on which rank."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

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


class WithChild(BaseCallback):
    """
    A callback on events that has another child while it is called. Between two calls it is as the user made it.

    :param callback: the user's, which keeps its own counts
    :param child: what it shall call
    """

    def __init__(self, callback: EventCallback, child: BaseCallback) -> None:
        super().__init__()
        self.callback, self.child = callback, child
        child.parent = callback

    @contextmanager
    def _exchanged(self) -> Iterator[EventCallback]:
        """The callback with the other child."""
        whole, self.callback.callback = self.callback.callback, self.child
        try:
            yield self.callback
        finally:
            self.callback.callback = whole

    def _init_callback(self) -> None:
        with self._exchanged() as callback:
            callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        with self._exchanged() as callback:
            callback.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        with self._exchanged() as callback:
            callback.on_rollout_start()

    def _on_step(self) -> bool:
        with self._exchanged() as callback:
            return callback.on_step()

    def _on_rollout_end(self) -> None:
        with self._exchanged() as callback:
            callback.on_rollout_end()

    def _on_training_end(self) -> None:
        with self._exchanged() as callback:
            callback.on_training_end()

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """
        Pass on the local variables of the rollout.

        :param locals_: by name
        """
        with self._exchanged() as callback:
            callback.update_locals(locals_)


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

    :param callback: any; it is not changed
    :return: what is left of it; None for nothing
    """
    if isinstance(callback, (EvalCallback, CheckpointCallback, ProgressBarCallback)):
        return None
    if getattr(callback, "rank_zero_only", False):
        return None
    if isinstance(callback, CallbackList):
        left = [child for child in map(_without_rank_0s, callback.callbacks) if child is not None]
        if left == callback.callbacks:
            return callback
        return CallbackList(left) if left else None
    if isinstance(callback, EventCallback) and callback.callback is not None:
        child = _without_rank_0s(callback.callback)
        if child is None or child is callback.callback:
            return None if child is None else callback
        return WithChild(callback, child)
    return callback

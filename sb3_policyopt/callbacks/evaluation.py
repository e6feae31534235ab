"""SB3's callback that evaluates during training, for policies with masks too."""

from typing import Any, cast

from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_policyopt.evaluation import CurrentMasks, WithMasks, uses_masks


class EvaluatesWithMasks(callbacks.EvalCallback):
    """
    Mix-in for SB3's :class:`~stable_baselines3.common.callbacks.EvalCallback` and its subclasses.

    For a policy with masks, the masks of the evaluation environments are used, as in sb3-contrib's ``MaskableEvalCallback``;
    and what a policy with memory remembers is kept, unlike there.
    """

    _masks: CurrentMasks | None = None

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq or not uses_masks(self.model):
            return super()._on_step()
        model, self._masks = self.model, CurrentMasks(self.eval_env)
        self.model = cast(BaseAlgorithm, WithMasks(model, self._masks))
        try:
            return super()._on_step()
        finally:
            self.model, self._masks = model, None

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """SB3 calls it in every step of an evaluation, for each environment that still counts."""
        if self._masks is not None:
            self._masks.note(locals_["infos"], locals_["dones"])
        super()._log_success_callback(locals_, globals_)


class EvalCallback(EvaluatesWithMasks):
    """
    Evaluate the agent regularly: SB3's ``EvalCallback``, its arguments and results, for policies with masks too.

    :param eval_env: the environment for the evaluations
    :param options: see :class:`stable_baselines3.common.callbacks.EvalCallback`
    """


__all__ = ["EvalCallback", "EvaluatesWithMasks"]

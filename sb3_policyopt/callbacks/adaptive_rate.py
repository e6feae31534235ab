"""A learning rate that follows the KL divergence of PPO's updates."""

import math

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule

FACTOR = 1.5
"""By which the rate is divided or multiplied after an update."""


class AdaptiveLearningRate(BaseCallback):
    """
    Adapt PPO's learning rate to the KL divergence of its updates, in place of a schedule: the rule of rl_games and of rsl_rl's
    ``schedule="adaptive"``, once per update.

    The first rate is the model's ``learning_rate``. After an update whose divergence is above twice ``desired_kl``, the rate
    is divided by 1.5; below half of it, multiplied by 1.5. The divergence is ``train/approx_kl``, the mean over all
    minibatches of an update. A :class:`sb3_policyopt.callbacks.ResumableCheckpointCallback` keeps the rate.

    :param desired_kl: divergence of an update, in nats
    :param bounds: lowest and highest rate
    :param verbose: 1 prints each change of the rate
    :raises ValueError: if an argument makes no sense, or the model's updates log no ``train/approx_kl``
    """

    def __init__(self, desired_kl: float = 0.01, bounds: tuple[float, float] = (1e-5, 1e-2), verbose: int = 0) -> None:
        super().__init__(verbose)
        if not (desired_kl > 0 and math.isfinite(desired_kl)):
            raise ValueError(f"desired_kl must be a number greater than 0, got {desired_kl}")
        lowest, highest = bounds
        if not 0 < lowest <= highest < math.inf:
            raise ValueError(f"bounds must be two numbers greater than 0, the lowest rate first, got {bounds}")
        self.desired_kl = desired_kl
        self.bounds = (lowest, highest)
        self.rate = 0.0
        self.kl: float | None = None
        self.n_rollouts = 0

    def _on_training_start(self) -> None:
        self.rate, self.n_rollouts = float(self.model.lr_schedule(1.0)), 0
        self._set()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Read the divergence of the last update. Evaluations write the log in the middle of a rollout, and remove it."""
        self.kl = self.logger.name_to_value.get("train/approx_kl")
        if self.kl is None and self.n_rollouts > 0:
            raise ValueError(
                f"AdaptiveLearningRate needs train/approx_kl, which updates of {type(self.model).__name__} do not log. It is "
                "for PPO; give TRPO a target_kl instead"
            )
        self.n_rollouts += 1

    def _on_rollout_end(self) -> None:
        """Set the rate of the next update."""
        if self.kl is None:  # there was no update yet
            return
        rate = adapted_rate(self.rate, self.kl, self.desired_kl, self.bounds)
        if self.verbose and rate != self.rate:
            print(f"Learning rate {rate:.3g}, as the KL divergence was {self.kl:.3g}")
        self.rate = rate
        self._set()

    def _set(self) -> None:
        self.model.lr_schedule = FloatSchedule(self.rate)


def adapted_rate(rate: float, kl: float, desired_kl: float, bounds: tuple[float, float]) -> float:
    """
    The rate of an update, by the divergence of the one before.

    :param rate: of the update before
    :param kl: its KL divergence in nats; NaN leaves the rate
    :param desired_kl: the one wanted
    :param bounds: lowest and highest rate
    :return: the rate of the next update
    """
    factor = 1 / FACTOR if kl > 2 * desired_kl else FACTOR if kl < desired_kl / 2 else 1.0
    return min(max(rate * factor, bounds[0]), bounds[1])

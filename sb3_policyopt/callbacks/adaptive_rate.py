"""A learning rate that follows the KL divergence of PPO's updates."""

import math

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

FACTOR = 1.5
"""By which the rate is divided or multiplied after an update."""

KL = "train/approx_kl"
"""The divergence of an update in the log."""

OWN = "own_schedule"
"""Attribute of the schedule of an update: the model's own one. It is not in a checkpoint if that cannot be pickled."""


class AdaptiveLearningRate(BaseCallback):
    """
    Adapt PPO's learning rate to the KL divergence of its updates, in place of a schedule: the rule of rl_games and of rsl_rl's
    ``schedule="adaptive"``, once per update.

    The first rate is the model's ``learning_rate``. After an update whose divergence is above twice ``desired_kl``, the rate
    is divided by 1.5; below half of it, multiplied by 1.5. The divergence is ``train/approx_kl``, the mean over all
    minibatches of an update. A :class:`sb3_policyopt.callbacks.ResumableCheckpointCallback` keeps the rate.

    The model's own ``lr_schedule`` is replaced for the updates only. It holds again in a later ``learn`` without this
    callback, except after an error in the middle of an update. ``learn(reset_num_timesteps=False)`` with the same callback
    goes on with its rate. A new callback begins with the model's own rate, also with a model that was saved and loaded.

    :param desired_kl: divergence of an update, in nats
    :param bounds: lowest and highest rate
    :param verbose: 1 prints each change of the rate
    :raises ValueError: if an argument makes no sense, or ``train/approx_kl`` is not in the log when a rollout starts
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
        self.n_rollouts = 0
        if self.rate == 0.0 or self.model.num_timesteps == 0:  # otherwise an earlier training goes on
            self.rate, self.kl = float(own_schedule(self.model.lr_schedule)(1.0)), None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Read the divergence of the last update. Evaluations write the log in the middle of a rollout, and remove it."""
        self._end_update()
        if self.n_rollouts > 0 and self.kl is None:
            raise ValueError(self._missing())
        self.n_rollouts += 1

    def _on_rollout_end(self) -> None:
        """Set the rate of the next update."""
        if self.kl is not None:  # there was an update
            rate = adapted_rate(self.rate, self.kl, self.desired_kl, self.bounds)
            if self.verbose and rate != self.rate:
                print(f"Learning rate {rate:.3g}, as the KL divergence was {self.kl:.3g}")
            self.rate, self.kl = rate, None
        schedule = FloatSchedule(self.rate)
        setattr(schedule, OWN, own_schedule(self.model.lr_schedule))
        self.model.lr_schedule = schedule

    def _on_training_end(self) -> None:
        self._end_update()

    def _end_update(self) -> None:
        """Give the model its own schedule back, and read the divergence, which the log of the next training no longer has."""
        self.model.lr_schedule = own_schedule(self.model.lr_schedule)
        if self.n_rollouts > 0:
            self.kl = self.logger.name_to_value.get(KL, self.kl)

    def _missing(self) -> str:
        """Why there is no divergence."""
        if any(name.startswith("train/") for name in self.logger.name_to_value):
            return (
                f"AdaptiveLearningRate needs {KL}, which updates of {type(self.model).__name__} do not log. It is "
                "for PPO; give TRPO a target_kl instead"
            )
        return (
            f"AdaptiveLearningRate needs {KL}, but another callback has written the log at the start of the rollout, which "
            "removes the numbers of the update from it: list AdaptiveLearningRate before callbacks that call logger.dump"
        )


def own_schedule(schedule: Schedule) -> Schedule:
    """
    The model's own schedule.

    :param schedule: of the model, as it is now
    :return: the one in whose place this callback has set it, or itself
    """
    own: Schedule = getattr(schedule, OWN, schedule)
    return own


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

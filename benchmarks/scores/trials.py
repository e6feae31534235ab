"""
Changes of the algorithms that were tried and did not enter them, as callbacks of rl-zoo3's entries:
``--entry "shared callback=benchmarks.scores.trials.RecomputedAdvantages"``. For one process and without resuming.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import FloatSchedule

from sb3_policyopt.maths.advantages import gae
from sb3_policyopt.rollout.batch import Batch


class RecomputedAdvantages(BaseCallback):
    """
    Advantages and value targets from the critic as it is before each pass of PPO (Andrychowicz et al. 2021), in place of
    the critic that collected the rollout. The value behind a time limit stays that of the rollout.
    """

    def _on_training_start(self) -> None:
        model: Any = self.model
        passes = model.passes

        def recomputing(data: Any, n_passes: int, normalized: bool = False) -> Iterator[Iterator[Batch[Any]]]:
            for i in range(n_passes):
                if i > 0:
                    recompute(model)
                    data = model.engine_in_use.data(model.rollout_buffer, model.sequence_length)
                yield from passes(data, 1, normalized)

        model.passes = recomputing

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        del self.model.passes  # a model with a function of its own could not be saved


def recompute(model: Any) -> None:
    """
    Fill the buffer's values, advantages and returns by the critic as it is.

    :param model: PPO in the middle of an update, whose buffer's rows lie one environment after the other
    """
    buffer = model.rollout_buffer
    model.engine_in_use.flat.push()
    with th.no_grad():
        values, last_values = (
            model.policy.predict_values(th.as_tensor(observations, dtype=th.float32, device=model.device)).cpu().numpy()
            for observations in (buffer.observations, model._last_obs)
        )
    by_step = values.reshape(buffer.n_envs, buffer.buffer_size).T
    ends = np.concatenate((buffer.episode_starts[1:], model._last_episode_starts[None])).astype(np.float32)
    advantages = gae(buffer.rewards, by_step, last_values[:, 0], ends, model.gamma, model.gae_lambda)
    buffer.values = values.reshape(buffer.values.shape)
    buffer.advantages = advantages.T.reshape(buffer.advantages.shape)
    buffer.returns = buffer.advantages + buffer.values


class AdaptiveRate(BaseCallback):
    """
    A learning rate that follows the KL divergence, as rl_games and rsl_rl have it: divided by 1.5 after an update whose
    approximate KL exceeds twice the wanted one, times 1.5 after one that stays below half of it.

    :param wanted: KL divergence of an update in nats
    """

    def __init__(self, wanted: float = 0.01, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.wanted = wanted

    def _on_rollout_end(self) -> None:
        approx_kl = self.logger.name_to_value.get("train/approx_kl")
        if approx_kl is None:
            return
        rate = self.model.lr_schedule(1.0)
        if approx_kl > 2 * self.wanted:
            rate = max(rate / 1.5, 1e-6)
        elif approx_kl < self.wanted / 2:
            rate = min(rate * 1.5, 1e-2)
        self.model.lr_schedule = FloatSchedule(rate)

    def _on_step(self) -> bool:
        return True

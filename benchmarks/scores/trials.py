"""
A change of PPO that was tried and did not enter it, as a callback of rl-zoo3's entries:
``--entry "shared callback=benchmarks.scores.trials.RecomputedAdvantages"``. For one process and without resuming.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

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

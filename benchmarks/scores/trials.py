"""
Changes of PPO that were tried and did not enter it, most of them as a callback of rl-zoo3's entries:
``--entry "shared callback=benchmarks.scores.trials.RecomputedAdvantages"``. For one process and without resuming.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_policyopt.callbacks import AdaptiveLearningRate
from sb3_policyopt.maths.advantages import gae
from sb3_policyopt.rollout.batch import Batch


class Trial(BaseCallback):
    """A callback that has nothing to do at a step."""

    def _on_step(self) -> bool:
        return True


class RecomputedAdvantages(Trial):
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

    def _on_training_end(self) -> None:
        model: Any = self.model
        del model.passes  # a model with a function of its own could not be saved


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


class DecayingDivergence(AdaptiveLearningRate):
    """The adaptive learning rate with a divergence that falls linearly to 0 over the training."""

    def _on_rollout_end(self) -> None:
        at_first: float = self.desired_kl
        self.desired_kl = at_first * self.model._current_progress_remaining
        super()._on_rollout_end()
        self.desired_kl = at_first


class ShrinkingNoise(Trial):
    """
    A highest log standard deviation that falls linearly from its first value to ``final`` over the training, so that what is
    trained at the end is close to the deterministic policy.

    :param final: the highest log standard deviation at the end
    :param verbose: as in SB3
    """

    def __init__(self, final: float, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.final = final

    def _on_training_start(self) -> None:
        model: Any = self.model
        self.first = float(model.policy.log_std.detach().max())

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        highest = self.final + (self.first - self.final) * model._current_progress_remaining
        with th.no_grad():
            model.policy.log_std.clamp_(max=highest)


class FasterCritic(Trial):
    """PPO with a rate of its own for the critic, ``FACTOR`` times that of the actor, by a second group of the optimizer."""

    FACTOR = 3.0

    def _on_training_start(self) -> None:
        model: Any = self.model
        policy, optimizer = model.policy, model.policy.optimizer
        critic = {id(p) for part in (policy.mlp_extractor.value_net, policy.value_net) for p in part.parameters()}
        (group,) = optimizer.param_groups
        theirs = [p for p in group["params"] if id(p) in critic]
        group["params"] = [p for p in group["params"] if id(p) not in critic]
        optimizer.add_param_group({**group, "params": theirs})

        def faster(optimizer: th.optim.Optimizer, *step: object) -> None:
            actor, critic = optimizer.param_groups
            critic["lr"] = self.FACTOR * actor["lr"]

        self.hook = optimizer.register_step_pre_hook(faster)

    def _on_training_end(self) -> None:
        """The optimizer has one group again, as the saved model's will have."""
        model: Any = self.model
        self.hook.remove()
        optimizer = model.policy.optimizer
        order = {id(parameter): i for i, parameter in enumerate(model.policy.parameters())}
        first, second = optimizer.param_groups
        first["params"] = sorted(first["params"] + second["params"], key=lambda parameter: order[id(parameter)])
        del optimizer.param_groups[1]


class NormedTanh(nn.Module):
    """
    LayerNorm without scale and shift, then tanh, as ``activation_fn``:
    ``policy_kwargs=dict(activation_fn=importlib.import_module('benchmarks.scores.trials').NormedTanh)``.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: what the layer before returns, shape (..., units)
        :return: of the same shape
        """
        return th.tanh(nn.functional.layer_norm(x, x.shape[-1:]))


class ColouredNoise(Trial):
    """
    The noise of a Gaussian policy's actions with the spectrum f^(-``BETA``) over the steps of each environment, in place of
    white noise (Hollenstein et al. 2024). Its distribution at a step is the same.
    """

    BETA = 0.5
    STEPS = 1024
    """Steps that are drawn at a time."""

    def _on_training_start(self) -> None:
        model: Any = self.model
        distribution, shape = model.policy.action_dist, (model.n_envs, *model.action_space.shape)
        noise = coloured(np.random.default_rng(model.seed), self.BETA, self.STEPS, shape)

        def sample() -> th.Tensor:
            normal = distribution.distribution
            return normal.mean + normal.stddev * th.as_tensor(next(noise), dtype=normal.mean.dtype)

        distribution.sample = sample

    def _on_training_end(self) -> None:
        model: Any = self.model
        del model.policy.action_dist.sample  # which is that of its class again


def coloured(rng: np.random.Generator, beta: float, n_steps: int, shape: tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    """
    Noise of mean 0 and variance 1 at every step, with a spectrum that falls as f^-beta.

    :param rng: the generator
    :param beta: 0 for white noise, 1 for pink
    :param n_steps: even; length of the stretches, which are independent of each other
    :param shape: of the noise of one step
    :return: one step after the other, without end
    """
    frequency = np.fft.rfftfreq(n_steps)
    scale = np.append(0.0, frequency[1:] ** (-beta / 2))  # the mean over a stretch would be one number for all its steps
    weights = np.append(np.full(len(scale) - 1, 2.0), 1.0)  # each frequency but the last stands for a pair
    scale /= np.sqrt((weights * scale**2).sum() / n_steps)
    while True:
        white = np.fft.rfft(rng.standard_normal((n_steps, *shape)), axis=0)
        yield from np.fft.irfft(white * scale.reshape(-1, *[1] * len(shape)), n_steps, axis=0)


class StaggeredEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment whose first episode is cut off after a random number of steps, as ``env_wrapper``. Environments whose
    episodes all end at the time limit are no longer in the same part of an episode at the same step.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.n_steps = 0
        self.first_end: int | None = None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        :param action: for the environment
        :return: what the environment returns, with ``truncated`` at the end that was drawn
        """
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_steps += 1
        if self.first_end is None:
            self.first_end = int(self.np_random.integers(1, self.get_wrapper_attr("_max_episode_steps") + 1))
        return observation, reward, terminated, truncated or self.n_steps == self.first_end, info

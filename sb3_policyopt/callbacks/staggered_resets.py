"""Environments that are in different parts of their episodes."""

import warnings
from abc import ABC
from collections.abc import Sequence

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.envs.tensors.classic_control import ClassicControl
from sb3_policyopt.parallel.launcher import rank, world_size

TIME_LIMIT = ("_elapsed_steps", "_max_episode_steps")
"""Steps that have passed and the limit, attributes of Gymnasium's TimeLimit."""

SIMULATOR = ("episode_length_buf", "max_episode_length")
"""The same of simulators for Isaac Lab and rsl_rl; the first is a tensor of all environments."""


class AnyTimeLimit(ABC):  # noqa: B024
    """
    Stands for Gymnasium's TimeLimit and its subclasses in ``env_is_wrapped``, which has to send a class to the workers.
    Importing rl-zoo3 replaces ``gymnasium.wrappers.TimeLimit`` by a subclass: environments that were made before then have
    another class than those made after, and the first class cannot be pickled any more.
    """

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        gymnasiums = [base for base in gym.wrappers.TimeLimit.__mro__ if base.__module__.startswith("gymnasium.wrappers.")]
        return any(base in other.__mro__ for base in gymnasiums)


class StaggeredResets(BaseCallback):
    """
    Stagger the first episodes, so that environments whose episodes all end at the time limit are not always in the same part
    of an episode (Bharthulwar et al. 2025, arXiv:2511.21011). Without it, rollouts that are shorter than an episode hold
    only its beginning, then only what follows, and so on.

    When a training starts, the i-th of n environments counts i/n of its time limit as passed (with ``torchrun``, of the
    environments of all ranks). Its first episode, which a ``Monitor`` reports as the short one that it is, is cut off that
    much earlier; all later ones are whole. rsl_rl's ``init_at_random_ep_len`` draws such numbers at random.

    The limit is that of ``gymnasium.wrappers.TimeLimit``, of the simulators of Isaac Lab and rsl_rl, or of our CartPole and
    Pendulum in torch. A warning says so where an environment has none of these, as those of EnvPool; they stay as they are.
    They also do if an environment is already in the middle of an episode, as in ``learn(reset_num_timesteps=False)`` and in
    a training that is resumed.

    :param verbose: 1 prints the steps that count as passed in the environments of this process
    """

    def _on_training_start(self) -> None:
        env = self.training_env
        if all(env.env_is_wrapped(AnyTimeLimit)):  # type: ignore[arg-type]
            passed, limits = map(env.get_attr, TIME_LIMIT)
            if not any(passed):
                put(staggered := steps_that_count(limits), env)
                self._say(staggered)
        elif (found := of_tensors(env)) is not None:
            steps, limit = found
            if not steps.any():
                staggered = steps_that_count([limit] * env.num_envs)
                steps.copy_(th.as_tensor(staggered))
                self._say(staggered)
        else:
            warnings.warn(
                "StaggeredResets does nothing: it needs gymnasium.wrappers.TimeLimit around each environment, which "
                "gymnasium.make adds where an environment is registered with max_episode_steps",
                stacklevel=2,
            )

    def _on_step(self) -> bool:
        return True

    def _say(self, staggered: Sequence[int]) -> None:
        if self.verbose:
            print(f"Steps of the first episodes that count as passed: {', '.join(map(str, staggered))}")


def steps_that_count(limits: Sequence[int]) -> list[int]:
    """
    How many steps count as passed in each environment.

    :param limits: of the environments of this rank, in steps; other ranks have as many environments
    :return: a number from 0 to below the limit for each
    """
    first, n_envs = len(limits) * rank(), len(limits) * world_size()
    return [(first + i) * limit // n_envs for i, limit in enumerate(limits)]


def put(passed: Sequence[int], env: VecEnv) -> None:
    """
    Set the steps that have passed.

    :param passed: for each environment
    :param env: whose environments have Gymnasium's TimeLimit; a warning says if this version of Gymnasium cannot set it
    """
    name, _ = TIME_LIMIT
    for i, n_steps in enumerate(passed):
        env.env_method("set_wrapper_attr", name, n_steps, indices=i)
    if env.get_attr(name) != list(passed):
        warnings.warn(
            "StaggeredResets does nothing: with this version of Gymnasium TimeLimit may not be the outermost wrapper; "
            "wrap each environment by stable_baselines3.common.monitor.Monitor, as make_vec_env does",
            stacklevel=3,
        )


def of_tensors(env: VecEnv) -> tuple[th.Tensor, int] | None:
    """
    The steps of all environments of a simulator.

    :param env: the environments
    :return: the simulator's own tensor, shape (n_envs,), and the limit; None if it has no such attributes
    """
    base = env.unwrapped
    if isinstance(base, ClassicControl):
        return base.elapsed, base.max_episode_steps
    if all(map(env.has_attr, SIMULATOR)):
        steps, limit = (env.get_attr(name)[0] for name in SIMULATOR)
        if isinstance(steps, th.Tensor) and steps.shape == (env.num_envs,):
            return steps, int(limit)
    return None

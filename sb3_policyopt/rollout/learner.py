"""What the loop needs of others: an algorithm, a model, and the processes that train together."""

from collections import deque
from typing import Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_policyopt.graphs import Recorder
from sb3_policyopt.maths.advantages import ValueTarget
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.context import Context, Memory
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.masks import Masks


class ActingModel(Protocol):
    """What acts in a rollout, see :class:`sb3_policyopt.models.Model`."""

    recorder: Recorder | None
    """Of CUDA graphs."""

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Prepare to act."""

    def act(
        self, observations: Observations[NumpyArray], context: Context
    ) -> tuple[NumpyArray, NumpyArray, NumpyArray, Memory | None]:
        """Actions, values, log-probabilities and states for one step of all environments."""

    def values(self, observations: Observations[NumpyArray], context: Context) -> NumpyArray:
        """V(s)."""

    def decide(self, observations: Observations[th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor, object]:
        """As ``act``, for tensors; the last of four is None for a policy without memory."""

    def values_of(self, observations: Observations[th.Tensor]) -> th.Tensor:
        """As ``values``, for tensors."""

    def action_parameters(self, observations: Observations[NumpyArray], context: Context) -> NumpyArray | None:
        """What the action distributions are made of."""


class Learner(Protocol):
    """What the loop needs of an algorithm. Most of it is SB3's ``OnPolicyAlgorithm``."""

    policy: ActorCriticPolicy
    action_space: spaces.Space[object]
    use_sde: bool
    sde_sample_freq: int
    gamma: float
    value_target: ValueTarget
    check_observations: bool
    num_timesteps: int
    ep_info_buffer: deque[Info] | None
    ep_success_buffer: deque[bool] | None
    _last_obs: Observations[NumpyArray] | None
    _last_episode_starts: NumpyArray | None
    _last_lstm_states: Memory | None
    _last_action_masks: NumpyArray | None

    @property
    def device(self) -> th.device:
        """Of the policy."""

    def prepare_engine(self) -> ActingModel:
        """The model for the policy as it is now."""

    def current_engine(self) -> ActingModel:
        """The model in the middle of a rollout."""

    def masks_of(self, env: VecEnv) -> Masks | None:
        """Where masks come from; None for a policy without, and where they are not used."""

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The environments' normalisation."""

    def _update_info_buffer(self, infos: list[Info], dones: NumpyArray | None = None) -> None:
        """Note the episodes that ended."""


class RolloutOfTeam(Protocol):
    """One rollout of all processes that train together."""

    n_envs: int
    """Number of environments of all processes."""

    def note(self, infos: list[Info], dones: NumpyArray) -> None:
        """Remember the episodes that ended with a step."""

    def end(self, complete: bool) -> bool:
        """Exchange what the processes have to know of each other; False if a callback of any of them asked to stop."""


class RolloutTeam(Protocol):
    """The processes that train together, see :class:`sb3_policyopt.parallel.Team`."""

    def rollout(self, learner: Learner, n_envs: int) -> RolloutOfTeam:
        """About to collect with so many environments in this process."""

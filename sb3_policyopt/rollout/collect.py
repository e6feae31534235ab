"""S5: the one loop that collects a rollout, for both algorithms and all engines, with SB3's callback contract."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.maths.advantages import gae, value_targets
from sb3_policyopt.models import Engine
from sb3_policyopt.models.torch_policy import AutogradEngine
from sb3_policyopt.parallel import SharedRollout
from sb3_policyopt.rollout.buffers import RESIZE, is_stock
from sb3_policyopt.rollout.finiteness import RolloutGuard, is_finite, not_finite

if TYPE_CHECKING:
    from sb3_policyopt.on_policy import PolicyOptimization

SMALL_OBSERVATIONS = 4096
"""Bytes, of all environments, that are copied faster than a tensor is made of them."""


def collect(
    self: "PolicyOptimization",
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> bool:
    """
    Run the current policy for ``n_rollout_steps`` steps of every environment and fill the buffer.

    The names of the local variables are part of SB3's callback contract (``callback.locals``).

    :param self: the algorithm, under the name that callbacks know it by
    :param env: the training environments
    :param callback: called at the start, after each step and at the end
    :param rollout_buffer: filled with n_rollout_steps × n_envs transitions, advantages and value targets
    :param n_rollout_steps: steps of each environment
    :return: False if a callback asked to stop (on any rank), and the rollout is then incomplete
    :raises NonFiniteError: if an observation, a reward, a value or an action is not finite; it names the environment
    :raises ValueError: if the buffer has no room for so many steps
    """
    assert self._last_obs is not None, "No previous observation was provided"
    self.policy.set_training_mode(False)
    rollout_buffer.reset()  # makes new arrays, so that whoever kept those of the last rollout keeps their numbers
    callback.on_rollout_start()  # before the first random draw, so that a checkpoint made here holds all that follows

    engine = self.prepare_engine()
    to_env_action = action_converter(self)
    guard = RolloutGuard(rollout_buffer, n_rollout_steps, self.check_observations, is_stock(rollout_buffer, "reset", "add"))
    store = storing_function(rollout_buffer, guard)
    watched = runs_code_of_users(callback)  # without it nobody changes modules before the rollout ends
    n_steps = 0
    shared = SharedRollout(self, env.num_envs)
    discrete, continuous = (isinstance(self.action_space, kind) for kind in (spaces.Discrete, spaces.Box))
    if self.use_sde:
        draw_noise(self, env)
    engine.start_rollout(n_rollout_steps, env.num_envs)
    observation_tensors = tensors_of_observations(n_rollout_steps, self._last_obs, self.device)
    value_tensors = StepTensors((n_rollout_steps, env.num_envs, 1), np.float32)
    log_prob_tensors = StepTensors((n_rollout_steps, env.num_envs), np.float32)

    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            draw_noise(self, env)

        obs_tensor = observation_tensors(n_steps, self._last_obs)
        engine = self.current_engine(thorough=watched)
        if self.device.type != "cpu":  # drawing an action from NaN there ends the process's use of the GPU
            guard.check(observation=self._last_obs)
        try:
            actions, value, log_prob = engine.act(self._last_obs)
        except RuntimeError:  # torch draws no categorical action from NaN
            check_action_parameters(engine, guard, self._last_obs)
            raise
        values, log_probs = value_tensors(n_steps, value[:, None]), log_prob_tensors(n_steps, log_prob)
        if continuous and not is_finite(actions.reshape(-1)):  # before it reaches the environment
            guard.check(observation=self._last_obs, value=value, action=actions)
        clipped_actions = to_env_action(actions)

        new_obs, rewards, dones, infos = env.step(clipped_actions)
        self.num_timesteps += shared.n_envs

        callback.update_locals(locals())
        if not callback.on_step():
            return shared.end(complete=False)

        self._update_info_buffer(infos, dones)
        n_steps += 1
        if discrete:
            actions = actions.reshape(-1, 1)

        rewards = np.asarray(rewards, dtype=np.float32)
        if np.count_nonzero(dones):  # as dones.any(), in a tenth of the time
            shared.note(infos, dones)
            of_step = {"observation": self._last_obs, "value": value, "action": actions, "log_prob": log_prob}
            rewards = bootstrapped(self, guard, rewards, dones, infos, of_step)

        store(self._last_obs, actions, rewards, self._last_episode_starts, value, log_prob)
        guard.note_stored()
        self._last_obs = new_obs  # type: ignore[assignment]
        self._last_episode_starts = dones

    last_values = self.current_engine().value(new_obs)
    if not is_finite(last_values):
        guard.check(observation=new_obs, value=last_values)
    values = th.from_numpy(last_values)[:, None]
    finish(self, rollout_buffer, last_values, dones)

    if not shared.end(complete=True):
        return False
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def runs_code_of_users(callback: BaseCallback) -> bool:
    """
    Whether a callback can do what it likes to the model.

    :param callback: of a training
    :return: False for those of SB3 that stand for no callback, and its progress bar
    """
    if type(callback) is CallbackList:
        return any(map(runs_code_of_users, callback.callbacks))
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    return type(callback) is not ProgressBarCallback


def check_action_parameters(engine: Engine, guard: RolloutGuard, observations: Any) -> None:
    """
    Look for what is behind torch's refusal to draw an action.

    :param engine: that was to act
    :param guard: of the rollout
    :param observations: as the VecEnv gave them
    :raises NonFiniteError: if something is not finite
    """
    if isinstance(engine, AutogradEngine):
        guard.check(observation=observations)  # before the policy sees it once more
        guard.check(observation=observations, action=engine.action_parameters(observations))


class StepTensors:
    """
    Tensors that ``callback.locals`` shows, one a step, made for all steps at once.

    A step of the environments leaves the caches cold: making three tensors then takes as long as half a forward pass.

    :param shape: (n_steps, ...)
    :param dtype: of NumPy
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = np.empty(shape, dtype)
        self.tensors = th.from_numpy(self.array).unbind()

    def __call__(self, step: int, array: np.ndarray[Any, Any]) -> th.Tensor:
        """
        Show an array.

        :param step: number of the step
        :param array: shape (...,)
        :return: the step's tensor, with the entries of the array
        """
        self.array[step] = array
        return self.tensors[step]


def tensors_of_observations(n_steps: int, observations: Any, device: th.device) -> Callable[[int, Any], Any]:
    """
    What makes tensors of the observations for ``callback.locals``.

    :param n_steps: number of steps to come
    :param observations: as the VecEnv gives them
    :param device: of the policy
    :return: a function of the step's number and its observations; a copy of few numbers on the CPU, a view of many
    """
    if isinstance(observations, np.ndarray) and device.type == "cpu":
        if observations.nbytes <= SMALL_OBSERVATIONS:
            return StepTensors((n_steps, *observations.shape), observations.dtype)
        return lambda step, obs: th.from_numpy(obs)
    return lambda step, obs: obs_as_tensor(obs, device)


def draw_noise(self: "PolicyOptimization", env: VecEnv) -> None:
    """
    Draw gSDE's noise matrices, without the graph that would tie them to the policy's parameters.

    :param self: the algorithm
    :param env: the training environments, each of which gets its own
    """
    with th.no_grad():
        self.policy.reset_noise(env.num_envs)


def action_converter(self: "PolicyOptimization") -> Any:
    """
    What turns a sampled action into one that the environment accepts.

    :param self: the algorithm
    :return: a function of an array of shape (n_envs, *action_shape)
    """
    space = self.action_space
    if not isinstance(space, spaces.Box):
        return lambda actions: actions
    if self.policy.squash_output:
        return self.policy.unscale_action
    low, high = space.low, space.high
    return lambda actions: np.minimum(np.maximum(actions, low), high)


def bootstrapped(
    self: "PolicyOptimization",
    guard: RolloutGuard,
    rewards: np.ndarray[Any, Any],
    dones: np.ndarray[Any, Any],
    infos: list[dict[str, Any]],
    of_step: dict[str, Any],
) -> np.ndarray[Any, Any]:
    """
    S3: r + γ V(final observation) in the environments that a time limit cut off, whose values come from one batch.

    :param self: the algorithm
    :param guard: of the rollout
    :param rewards: float32, shape (n_envs,)
    :param dones: whose episode ended, shape (n_envs,)
    :param infos: of all environments
    :param of_step: what else this step consists of, by the names that the guard knows
    :return: float32, shape (n_envs,)
    :raises NonFiniteError: if a final observation or its value is not finite, or something before it
    """
    cut = [
        i
        for i in np.flatnonzero(dones).tolist()
        if infos[i].get("TimeLimit.truncated", False) and infos[i].get("terminal_observation") is not None
    ]
    if not cut:
        return rewards
    finals = [infos[i]["terminal_observation"] for i in cut]
    observations: Any
    if isinstance(finals[0], dict):
        observations = {key: np.stack([final[key] for final in finals]) for key in finals[0]}
    else:
        observations = np.stack(finals)
    values = self.current_engine().value(observations)
    sums = rewards.copy()  # as they are the environment's own
    sums[cut] += self.gamma * values
    if not is_finite(sums) or (self.check_observations and not_finite(observations)):
        guard.check(**of_step, reward=rewards)
        guard.check(cut, final_observation=observations, final_value=values, bootstrapped_reward=sums[cut])
    return sums


def storing_function(buffer: RolloutBuffer, guard: RolloutGuard) -> Any:
    """
    What puts one step into the buffer.

    :param buffer: the rollout buffer
    :param guard: of the rollout
    :return: ``buffer.add`` of a buffer with its own; for SB3's, a function that writes each array in place
    :raises ValueError: if SB3's has no room for the rollout
    """
    if not guard.in_rows:
        return partial(add, buffer, guard)
    if guard.n_steps > buffer.buffer_size:
        raise ValueError(
            f"rollout_buffer has room for {buffer.buffer_size} steps, and {guard.n_steps} are to be collected. {RESIZE}"
        )
    n_envs, action_dim, replaced = buffer.n_envs, buffer.action_dim, vars(buffer)
    shape = None if isinstance(buffer.observations, dict) else buffer.observations.shape[1:]

    def store(obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any) -> None:
        if "add" in replaced:  # by a callback, during this rollout
            return add(buffer, guard, obs, action, reward, episode_start, value, log_prob)
        row = buffer.pos
        observations: Any = buffer.observations
        if isinstance(obs, dict):
            for key, array in observations.items():
                array[row] = obs[key].reshape(array.shape[1:])
        else:
            observations[row] = obs if obs.shape == shape else obs.reshape(shape)
        buffer.actions[row] = action.reshape(n_envs, action_dim)
        buffer.rewards[row] = reward
        buffer.episode_starts[row] = episode_start
        buffer.values[row] = value
        buffer.log_probs[row] = log_prob
        buffer.pos = row + 1
        buffer.full = buffer.pos == buffer.buffer_size
        return None

    return store


def add(
    buffer: RolloutBuffer,
    guard: RolloutGuard,
    obs: Any,
    action: Any,
    reward: Any,
    episode_start: Any,
    value: np.ndarray[Any, Any],
    log_prob: np.ndarray[Any, Any],
) -> None:
    """
    Hand a step to a buffer with its own way of storing it, which the guard cannot look into.

    :param buffer: the rollout buffer
    :param guard: of the rollout
    :param obs: observations, first axis n_envs
    :param action: actions, first axis n_envs
    :param reward: shape (n_envs,)
    :param episode_start: shape (n_envs,)
    :param value: shape (n_envs,)
    :param log_prob: shape (n_envs,)
    :raises NonFiniteError: if one of them is not finite
    """
    guard.check(observation=obs, value=value, action=action, log_prob=log_prob, reward=reward)
    buffer.add(obs, action, reward, episode_start, th.from_numpy(value[:, None]), th.from_numpy(log_prob))


def finish(
    self: "PolicyOptimization", buffer: RolloutBuffer, last_values: np.ndarray[Any, Any], dones: np.ndarray[Any, Any]
) -> None:
    """
    S4, T10: advantages and value targets of a full buffer, with its own γ and λ, as SB3's buffer computes them.

    :param self: the algorithm
    :param buffer: full; its ``advantages`` and ``returns`` are written
    :param last_values: V of the observations after the last step, shape (n_envs,)
    :param dones: whose episode ended with the last step, shape (n_envs,)
    """
    if not is_stock(buffer, "compute_returns_and_advantage"):
        buffer.compute_returns_and_advantage(last_values=th.from_numpy(last_values), dones=dones)
        if self.value_target == "td_lambda":
            return
    ended = np.concatenate((buffer.episode_starts[1:], dones[None].astype(np.float32)))
    rollout = (buffer.rewards, buffer.values, last_values, ended, buffer.gamma)
    if is_stock(buffer, "compute_returns_and_advantage"):
        buffer.advantages[:] = gae(*rollout, buffer.gae_lambda)
    if self.value_target == "td_lambda":
        buffer.returns = buffer.advantages + buffer.values
    else:
        buffer.returns = value_targets(self.value_target, *rollout, buffer.gae_lambda)

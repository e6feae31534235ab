"""S5: the one loop that collects a rollout, for all algorithms and models, with SB3's callback contract."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.buffers import is_stock
from sb3_policyopt.rollout.context import NO_CONTEXT, Context, Memory
from sb3_policyopt.rollout.finiteness import RolloutGuard, is_finite
from sb3_policyopt.rollout.learner import ActingModel, Learner, RolloutTeam
from sb3_policyopt.rollout.step_tensors import StepTensors, tensors_of_observations
from sb3_policyopt.rollout.storing import storing_function
from sb3_policyopt.rollout.targets import bootstrapped, finish, stacking, time_limits


def collect(
    self: Learner,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
    team: RolloutTeam,
) -> bool:
    """
    Run the current policy for ``n_rollout_steps`` steps of every environment and fill the buffer.

    The names of the local variables are part of SB3's callback contract (``callback.locals``).

    :param self: the algorithm, under the name that callbacks know it by
    :param env: the training environments
    :param callback: called at the start, after each step and at the end
    :param rollout_buffer: filled with n_rollout_steps × n_envs transitions, advantages and value targets
    :param n_rollout_steps: steps of each environment
    :param team: the processes that train together
    :return: False if a callback asked to stop (on any rank), and the rollout is then incomplete
    :raises NonFiniteError: if an observation, a reward, a value or an action is not finite; it names the environment
    :raises ValueError: if the buffer has no room for so many steps
    """
    assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation was provided"
    self.policy.set_training_mode(False)
    rollout_buffer.reset()  # makes new arrays, so that whoever kept those of the last rollout keeps their numbers
    callback.on_rollout_start()  # before the first random draw, so that a checkpoint made here holds all that follows

    engine = self.prepare_engine()
    to_env_action = action_converter(self.policy, self.action_space)
    guard = RolloutGuard(rollout_buffer, n_rollout_steps, self.check_observations, is_stock(rollout_buffer, "reset", "add"))
    store = storing_function(rollout_buffer, guard)
    n_steps = 0
    shared = team.rollout(self, env.num_envs)
    discrete, continuous = (isinstance(self.action_space, kind) for kind in (spaces.Discrete, spaces.Box))
    if self.use_sde:
        draw_noise(self.policy, env.num_envs)
    engine.start_rollout(n_rollout_steps, env.num_envs)
    observation_tensors = tensors_of_observations(n_rollout_steps, self._last_obs, self.device)
    value_tensors = StepTensors((n_rollout_steps, env.num_envs, 1), np.float32)
    log_prob_tensors = StepTensors((n_rollout_steps, env.num_envs), np.float32)
    masks, action_masks, context, lstm_states = self.masks_of(env), None, NO_CONTEXT, self._last_lstm_states

    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            draw_noise(self.policy, env.num_envs)

        obs_tensor = observation_tensors(n_steps, self._last_obs)
        engine = self.current_engine()
        if masks is not None and masks.used:
            action_masks = masks.current(n_steps)
        if action_masks is not None or lstm_states is not None:
            context = Context(action_masks, lstm_states, self._last_episode_starts)
        if lstm_states is not None:
            episode_starts = th.from_numpy(np.asarray(self._last_episode_starts, np.float32))
        actions, value, log_prob, lstm_states = act(engine, guard, self._last_obs, context, self.device, continuous)
        values, log_probs = value_tensors(n_steps, value[:, None]), log_prob_tensors(n_steps, log_prob)
        clipped_actions = to_env_action(actions)

        new_obs, rewards, dones, infos = env.step(clipped_actions)
        self.num_timesteps += shared.n_envs

        callback.update_locals(locals())
        if not callback.on_step():
            return shared.end(complete=False)

        value, log_prob = values.numpy()[:, 0], log_probs.numpy()  # which a callback may have edited, as it may rewards
        self._update_info_buffer(infos, dones)
        n_steps += 1
        if discrete:
            actions = actions.reshape(-1, 1)

        rewards = np.asarray(rewards, dtype=np.float32)
        if np.count_nonzero(dones):  # as dones.any(), in a tenth of the time
            shared.note(infos, dones)
            of_step = {"observation": self._last_obs, "value": value, "action": actions, "log_prob": log_prob}
            cut_off = time_limits(infos, dones)
            if cut_off:
                values_of = self.current_engine().values
                rewards = bootstrapped(
                    values_of, self.gamma, guard, rewards, stacking(self.policy), infos, cut_off, of_step, lstm_states
                )

        store(self._last_obs, actions, rewards, self._last_episode_starts, value, log_prob, context)
        guard.note_stored()
        self._last_obs = observations_of(new_obs)
        self._last_episode_starts = dones
        self._last_lstm_states = lstm_states
        if masks is not None:
            self._last_action_masks = masks.note(infos, dones)

    after = NO_CONTEXT if lstm_states is None else Context(memory=lstm_states, episode_starts=dones)
    last_values = self.current_engine().values(observations_of(new_obs), after)
    if not is_finite(last_values):
        guard.check(observation=observations_of(new_obs), value=last_values)
    values = th.from_numpy(last_values)[:, None]
    finish(rollout_buffer, self.value_target, last_values, dones)

    if not shared.end(complete=True):
        return False
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def observations_of(new_obs: VecEnvObs) -> Observations[NumpyArray]:
    """
    What a VecEnv returned.

    :param new_obs: SB3's type allows a tuple, which no VecEnv of SB3 returns
    :return: an array, or a dict of arrays
    """
    return cast("Observations[NumpyArray]", new_obs)


def act(
    engine: ActingModel,
    guard: RolloutGuard,
    observations: Observations[NumpyArray],
    context: Context,
    device: th.device,
    continuous: bool,
) -> tuple[NumpyArray, NumpyArray, NumpyArray, Memory | None]:
    """
    One step's actions, which are finite.

    :param engine: the model
    :param guard: of the rollout
    :param observations: as the VecEnv gave them
    :param context: masks and states, for a policy that takes them
    :param device: of the policy
    :param continuous: whether the action space is a Box
    :return: actions, values, log-probabilities, and the states after the step
    :raises NonFiniteError: if an action is not finite, or cannot be drawn because something is not
    """
    if device.type != "cpu":  # drawing an action from NaN there ends the process's use of the GPU
        guard.check(observation=observations)
    try:
        actions, value, log_prob, memory = engine.act(observations, context)
    except RuntimeError:  # torch draws no categorical action from NaN
        check_action_parameters(engine, guard, observations, context)
        raise
    if continuous and not is_finite(actions.reshape(-1)):  # before it reaches the environment
        guard.check(observation=observations, value=value, action=actions)
    return actions, value, log_prob, memory


def check_action_parameters(
    engine: ActingModel, guard: RolloutGuard, observations: Observations[NumpyArray], context: Context
) -> None:
    """
    Look for the cause of torch's refusal to draw an action.

    :param engine: that was to act
    :param guard: of the rollout
    :param observations: as the VecEnv gave them
    :param context: masks and states, for a policy that takes them
    :raises NonFiniteError: if something is not finite
    """
    guard.check(observation=observations)  # before the policy is called with it once more
    parameters = engine.action_parameters(observations, context)
    if parameters is not None:
        guard.check(observation=observations, action=parameters)


def draw_noise(policy: ActorCriticPolicy, n_envs: int) -> None:
    """
    Draw gSDE's noise matrices, without the graph that would tie them to the policy's parameters.

    :param policy: with gSDE
    :param n_envs: number of environments, each of which gets its own
    """
    with th.no_grad():
        policy.reset_noise(n_envs)


def action_converter(policy: ActorCriticPolicy, space: spaces.Space[Any]) -> Callable[[NumpyArray], NumpyArray]:
    """
    What turns a sampled action into one that the environment accepts.

    :param policy: that samples; one that squashes has bounds of its own
    :param space: of the model's actions
    :return: a function of an array of shape (n_envs, *action_shape)
    """
    if not isinstance(space, spaces.Box):
        return lambda actions: actions
    if policy.squash_output:
        return policy.unscale_action
    low, high = space.low, space.high
    return lambda actions: np.minimum(np.maximum(actions, low), high)

"""
S5 on tensors: the loop of :mod:`sb3_policyopt.rollout.collect` for environments that give and take tensors.

No step waits for the device.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.buffers import RESIZE, is_stock
from sb3_policyopt.rollout.collect import draw_noise
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.learner import Learner, RolloutTeam
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer
from sb3_policyopt.rollout.tensors.env import StepOfTensors, TensorEnv, type_of_actions
from sb3_policyopt.rollout.tensors.lazy import LazyArray, LazyInfos, Moment
from sb3_policyopt.rollout.tensors.rollout import TensorRollout, copied
from sb3_policyopt.rollout.transfer import observations_to_host, to_host


def collect_tensors(
    self: Learner,
    env: TensorEnv,
    callback: BaseCallback,
    rollout_buffer: TensorRolloutBuffer,
    n_rollout_steps: int,
    team: RolloutTeam,
) -> bool:
    """
    Run the current policy for ``n_rollout_steps`` steps of every environment and fill the buffer.

    The names of the local variables are part of SB3's callback contract (``callback.locals``). Those that SB3 has as arrays
    are made when a callback looks at them.

    :param self: the algorithm, under the name that callbacks know it by
    :param env: the training environments
    :param callback: called at the start, after each step and at the end
    :param rollout_buffer: filled with n_rollout_steps × n_envs transitions, advantages and value targets
    :param n_rollout_steps: steps of each environment
    :param team: the processes that train together
    :return: False if a callback asked to stop, and the rollout is then incomplete
    :raises NonFiniteError: at the end of the rollout, if an observation, a reward, a value or an action in it is not finite
    :raises ValueError: if the buffer is for another number of steps, or its ``add`` was replaced
    """
    assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation was provided"
    if n_rollout_steps != rollout_buffer.buffer_size:
        size = rollout_buffer.buffer_size
        raise ValueError(f"rollout_buffer is for {size} steps, and {n_rollout_steps} are to be collected. {RESIZE}")
    self.policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()
    if not is_stock(rollout_buffer, "add"):
        raise ValueError(
            "rollout_buffer.add was replaced, and rollouts of tensors do not call it. Pass a rollout_buffer_class of your "
            "own: rollouts then go through arrays and its methods"
        )

    engine = self.prepare_engine()
    to_env_action = tensor_action_converter(self.policy, self.action_space, env.device)
    shows = runs_code_of_users(callback)
    shared, n_steps = team.rollout(self, env.num_envs), 0
    if self.use_sde:
        draw_noise(self.policy, env.num_envs)
    engine.start_rollout(n_rollout_steps, env.num_envs)
    rollout = TensorRollout(rollout_buffer, env, self._last_obs, self._last_episode_starts)

    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            draw_noise(self.policy, env.num_envs)

        obs_tensor = rollout.observations(n_steps)
        engine = self.current_engine()
        sampled, values, log_probs, _ = engine.decide(obs_tensor)
        rollout.store_decision(n_steps, sampled, values, log_probs)
        with th.no_grad():  # a simulator may have parameters of its own, such as those of a learned reward
            given = env.step_tensors(to_env_action(sampled))
            rollout.store_step(n_steps, given)
        self.num_timesteps += shared.n_envs

        if shows:
            with Moment() as moment:
                shown = shown_to_callbacks(moment, rollout, n_steps, sampled, to_env_action, given)
                shown |= {"obs_tensor": copied(obs_tensor), "values": values[:, None].clone(), "log_probs": log_probs.clone()}
                callback.update_locals({**locals(), **shown})
                go_on = callback.on_step()
        else:
            go_on = callback.on_step()
        n_steps += 1
        if not go_on:
            break

    if go_on:
        engine = self.current_engine()
        episodes, last_values = rollout.finish(
            engine.values_of, self.gamma, self.value_target, self.check_observations, engine.recorder
        )
    else:  # the next rollout goes on from here
        episodes = rollout.episodes.ended(n_steps)
    self._update_info_buffer(episodes, np.ones(len(episodes), bool))
    self._last_obs, self._last_episode_starts = arrays_of(rollout.following(n_steps)), to_host(rollout.starts)[0]

    if not shared.end(complete=go_on):
        return False
    with Moment() as moment:
        shown = shown_to_callbacks(moment, rollout, n_steps - 1, sampled, to_env_action, given)
        callback.update_locals({**locals(), **shown, "values": last_values[:, None].clone()})
        callback.on_rollout_end()
    return True


def runs_code_of_users(callback: BaseCallback) -> bool:
    """
    Whether a callback contains code of the user, which may look at local variables.

    :param callback: of a training
    :return: False for SB3's empty callbacks and its progress bar
    """
    if type(callback) is CallbackList:
        return any(map(runs_code_of_users, callback.callbacks))
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    return type(callback) is not ProgressBarCallback


def arrays_of(observations: Observations[th.Tensor]) -> Observations[NumpyArray]:
    """
    Observations as arrays.

    :param observations: first axis n_envs
    :return: with memory of their own
    """
    return copy.deepcopy(observations_to_host(observations))


def tensor_action_converter(
    policy: ActorCriticPolicy, space: spaces.Space[Any], device: th.device
) -> Callable[[th.Tensor], th.Tensor]:
    """
    What turns a sampled action into one that the environment accepts.

    :param policy: that samples; one that squashes has bounds of its own
    :param space: of the model's actions
    :param device: of the environments
    :return: a function of a tensor of shape (n_envs, *action_shape)
    """
    kind = type_of_actions(space)
    space = policy.action_space if policy.squash_output else space
    if not isinstance(space, spaces.Box):
        return lambda actions: actions.to(device, kind, copy=True)  # a graph overwrites them
    low, high = (th.as_tensor(bound, device=device) for bound in (space.low, space.high))
    if policy.squash_output:
        return lambda actions: (low + 0.5 * (actions.to(device) + 1.0) * (high - low)).to(kind)  # as policy.unscale_action
    return lambda actions: th.minimum(th.maximum(actions.to(device), low), high).to(kind)


def shown_to_callbacks(
    moment: Moment,
    rollout: TensorRollout,
    step: int,
    sampled: th.Tensor,
    to_env_action: Callable[[th.Tensor], th.Tensor],
    given: StepOfTensors,
) -> dict[str, object]:
    """
    SB3's names for what SB3 has as arrays.

    :param moment: the step
    :param rollout: into which it was stored
    :param step: its number
    :param sampled: the policy's actions
    :param to_env_action: makes of them what the environments got
    :param given: by the environments
    :return: by name
    """
    observations, rewards, terminated, truncated, extras = given

    def lazy(name: str, function: Callable[[], th.Tensor]) -> LazyArray:
        return LazyArray(moment, name, lambda: to_host(function())[0].copy())

    def infos() -> list[Info]:
        cut_off, ended = to_host(truncated & ~terminated, truncated | terminated)
        made = rollout.episodes.infos_at(step)
        final = arrays_of(extras["final_obs"]) if ended.any() and "final_obs" in extras else None
        for i, info in enumerate(made):
            info["TimeLimit.truncated"] = bool(cut_off[i])
            if ended[i] and final is not None:
                row = {name: array[i] for name, array in final.items()} if isinstance(final, dict) else final[i]
                info["terminal_observation"] = row
        return made

    new_obs: object
    if isinstance(observations, dict):
        new_obs = {name: lazy("new_obs", partial(observations.__getitem__, name)) for name in observations}
    else:
        new_obs = lazy("new_obs", lambda: observations)
    return {
        "actions": lazy("actions", lambda: sampled),
        "clipped_actions": lazy("clipped_actions", lambda: to_env_action(sampled)),
        "new_obs": new_obs,
        "rewards": lazy("rewards", lambda: rewards.to(th.float32)),
        "dones": lazy("dones", lambda: truncated | terminated),
        "infos": LazyInfos(moment, rollout.buffer.n_envs, infos),
    }

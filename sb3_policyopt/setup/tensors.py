"""Environments that give and take tensors: whether a rollout stays on the device, and the buffer for it."""

import warnings

from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_policyopt.identity.kinds import PLAIN, kind_of
from sb3_policyopt.parallel import current_team
from sb3_policyopt.rollout.buffers import is_of_library
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer
from sb3_policyopt.rollout.tensors.env import is_tensor_env
from sb3_policyopt.setup import arguments
from sb3_policyopt.setup.kinds import new_buffer


class OnTensors(OnPolicyAlgorithm):
    """An algorithm whose rollouts stay on the device where the environments allow it."""

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """
        SB3's preparations, and the buffer that suits the environments.

        :param total_timesteps: environment steps to train for
        :param callback: the user's
        :param reset_num_timesteps: False continues the count of an earlier call
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: whether to show one
        :return: the number of steps to stop at, and one callback
        """
        suit_buffer(self)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)


def suit_buffer(model: OnPolicyAlgorithm) -> None:
    """
    Give a model a buffer of tensors if its environments give tensors, and SB3's if they no longer do.

    :param model: about to learn
    """
    env, has_tensors = model.env, isinstance(model.rollout_buffer, TensorRolloutBuffer)
    reason = obstacle(model) if is_tensor_env(env) else wrapped(env)
    if reason is not None:
        message = f"The environments give tensors, but rollouts go through NumPy arrays on the CPU: {reason}"
        warnings.warn(message, stacklevel=arguments.level_of_user())
    if is_tensor_env(env) and reason is None:
        sizes = (model.rollout_buffer.buffer_size, model.rollout_buffer.n_envs)
        if not has_tensors or sizes != (model.n_steps, env.num_envs):
            model.rollout_buffer = new_buffer(model, TensorRolloutBuffer)
    elif has_tensors:
        of_dict = isinstance(model.observation_space, spaces.Dict)
        model.rollout_buffer = new_buffer(model, DictRolloutBuffer if of_dict else RolloutBuffer)


def wrapped(env: VecEnv | None) -> str | None:
    """
    What hides environments of tensors.

    :param env: the training environments
    :return: the wrapper that works with arrays, None if there are no tensors below it
    """
    if isinstance(env, VecEnvWrapper) and is_tensor_env(env.unwrapped):
        return f"{type(env).__name__} works with arrays; of the wrappers only TensorVecNormalize works with tensors"
    return None


def obstacle(model: OnPolicyAlgorithm) -> str | None:
    """
    What keeps the rollouts of environments of tensors from the device.

    :param model: about to learn from such
    :return: the obstacle, None if there is none
    """
    if kind_of(model.policy) != PLAIN:
        return "the policy has masks or memory"
    if not is_of_library(type(model.rollout_buffer)):
        return f"rollout_buffer_class is {type(model.rollout_buffer).__name__}"
    if current_team().size > 1:
        return "several processes train together"
    return None

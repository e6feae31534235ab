"""The rollout buffer of a model: made for its policy, and of tensors where the environments give tensors."""

import warnings
from typing import Any, cast

from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_policyopt.identity.kinds import PLAIN, kind_of, states_shape
from sb3_policyopt.identity.originals import is_original
from sb3_policyopt.parallel import current_team
from sb3_policyopt.rollout.buffers import is_of_library
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer
from sb3_policyopt.rollout.tensors.env import is_tensor_env
from sb3_policyopt.setup import arguments


def new_buffer(model: OnPolicyAlgorithm, buffer_class: type[RolloutBuffer]) -> RolloutBuffer:
    """
    An empty buffer for a model.

    :param model: whose policy has been made
    :param buffer_class: of the buffer
    :return: on the model's device
    """
    further: dict[str, Any] = dict(model.rollout_buffer_kwargs)
    if kind_of(model.policy).memory:
        layers, hidden_size = states_shape(model.policy)
        further["hidden_state_shape"] = (model.n_steps, layers, model.n_envs, hidden_size)
    env = model.env
    return buffer_class(
        model.n_steps,
        env.returned_space() if is_tensor_env(env) and buffer_class is TensorRolloutBuffer else model.observation_space,
        model.action_space,
        device=model.device,
        gamma=model.gamma,
        gae_lambda=model.gae_lambda,
        n_envs=model.n_envs,
        **further,
    )


def suit_buffer(model: OnPolicyAlgorithm) -> None:
    """
    Give a model a buffer of tensors if its environments give tensors, and SB3's if they no longer do.

    :param model: about to learn
    :raises ValueError: if rollouts cannot tell resets from steps
    """
    env, has_tensors = model.env, isinstance(model.rollout_buffer, TensorRolloutBuffer)
    reason = obstacle(model) if is_tensor_env(env) else wrapped(env)
    if reason is not None:
        if getattr(cast(VecEnv, env).unwrapped, "autoreset_mode", "same_step") == "next_step":
            raise ValueError(
                "env resets its environments in a step of its own (autoreset_mode 'next_step'), which arrays cannot tell from "
                f"other steps, and rollouts have to go through arrays: {reason}. Construct it with AutoresetMode.SAME_STEP"
            )
        message = f"The environments give tensors, but rollouts go through NumPy arrays on the CPU: {reason}"
        warnings.warn(message, stacklevel=arguments.level_of_user())
    if is_tensor_env(env) and reason is None:
        buffer = model.rollout_buffer
        fits = (buffer.buffer_size, buffer.n_envs, buffer.observation_space) == (
            model.n_steps,
            env.num_envs,
            env.returned_space(),
        )
        if not has_tensors or not fits:
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
    for owner, name in ((BasePolicy, "unscale_action"), (BaseModel, "obs_to_tensor")):
        if not is_original(model.policy, owner, name):
            return f"{name} of the policy is not that of {owner.__name__}"
    return None

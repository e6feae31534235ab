"""Environments in JAX: gymnax, Brax, MuJoCo Playground."""

from typing import Any

import torch as th
from gymnasium import spaces
from torch.utils.dlpack import from_dlpack

from sb3_policyopt.envs.tensors.adapter import Adapter
from sb3_policyopt.envs.tensors.vec_env import TensorStep
from sb3_policyopt.rollout.batch import Observations


def from_jax(
    env: Any,
    num_envs: int,
    seed: int = 0,
    device: th.device | str | None = None,
    episode_length: int | None = None,
    params: Any = None,
    new_starts: bool = True,
) -> "JaxAdapter":
    """
    A tensor environment from one of gymnax, Brax or MuJoCo Playground.

    Reset and step of all environments are compiled by JAX. Arrays and tensors pass from one library to the other in the
    device's memory by DLPack, and are copied there.

        env = from_jax(brax.envs.get_environment("ant"), num_envs=4096, episode_length=1000)

    :param env: of gymnax 1.0 or later, or of Brax or Playground without wrappers
    :param num_envs: number of environments
    :param seed: of the random numbers
    :param device: where JAX computes, by default its first device
    :param episode_length: steps after which an episode is cut off; 1,000 by default for Brax and Playground, and for gymnax
        the limit of its parameters
    :param params: of a gymnax environment
    :param new_starts: whether each episode begins with a new state. All environments are reset in every step in which an
        episode ends, which costs as much as the simulator's reset; False begins each episode with the first state of its
        environment, as Brax's own wrapper does
    :return: the tensor environment, with ``env`` as its attribute ``simulator``
    :raises ValueError: if ``env`` is of another kind or wrapped, JAX does not compute on ``device``, or a number is below 1
    :raises ImportError: if JAX is not installed
    """
    if episode_length is not None and episode_length < 1:
        raise ValueError(f"episode_length must be at least 1, got {episode_length}")
    from sb3_policyopt.envs.tensors import jax_functions

    if hasattr(env, "step_env") and hasattr(env, "reset_env"):
        functions = jax_functions.of_gymnax(env, params)
    elif hasattr(env, "observation_size") and hasattr(env, "action_size"):
        functions = jax_functions.of_brax(env)
        episode_length = 1000 if episode_length is None else episode_length
    else:
        raise ValueError(f"env must be of gymnax, Brax or MuJoCo Playground, not {type(env).__name__}")
    return JaxAdapter(env, functions, num_envs, seed, device, episode_length, new_starts)


class JaxAdapter(Adapter):
    """
    See :func:`from_jax`.

    :param env: as there
    :param functions: of one environment, a :class:`~sb3_policyopt.envs.tensors.jax_functions.Functions`
    :param num_envs: number of environments
    :param seed: of the random numbers
    :param device: where JAX computes
    :param episode_length: steps after which an episode is cut off, or None
    :param new_starts: whether each episode begins with a new state
    """

    def __init__(
        self,
        env: Any,
        functions: Any,
        num_envs: int,
        seed: int,
        device: th.device | str | None,
        episode_length: int | None,
        new_starts: bool,
    ) -> None:
        import jax

        from sb3_policyopt.envs.tensors.jax_functions import vectorized

        self._jax = jax
        where = jax.devices()[0]
        place = "cuda" if where.platform in ("gpu", "cuda", "rocm") else where.platform
        device = th.device(place) if device is None else th.device(device)
        if device.type != place:
            raise ValueError(
                f"device is {device}, but JAX computes on {where.platform}; install JAX for that device, such as "
                f"jax[cuda12], or pass device={place!r}"
            )
        super().__init__(env, num_envs, functions.observation_space, functions.action_space, device, "final")
        self._reset, self._step = vectorized(functions, num_envs, episode_length, new_starts)
        self._key = jax.random.PRNGKey(seed)
        self._carry: Any = None
        self._actions: th.Tensor | None = None

    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        """
        Begin a new episode in all environments.

        :param seed: of all random numbers from here on; None to go on with them as they are
        :return: shape (n_envs, ...), or a dict of such
        """
        key = self._key if self._carry is None else self._carry.key
        self._carry, observations = self._reset(key if seed is None else self._jax.random.PRNGKey(seed))
        return self._tensors(observations)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: shape (n_envs, ...)
        :return: copies of JAX's arrays
        :raises ValueError: before the first reset
        """
        if self._carry is None:
            raise ValueError(f"{type(self).__name__}: call reset_tensors before step_tensors")
        # JAX may read the actions later than torch's next operation: they are a copy that nothing writes to, and it is kept
        # until the next step. JAX has no 64-bit numbers by default.
        integers = isinstance(self.action_space, (spaces.Discrete, spaces.MultiDiscrete))
        self._actions = actions.to(th.int32 if integers else th.float32, copy=True)
        given = self._jax.dlpack.from_dlpack(self._actions)
        self._carry, observations, rewards, terminated, truncated, final = self._step(self._carry, given)
        return TensorStep(
            self._tensors(observations),
            self._tensor(rewards),
            self._tensor(terminated).bool(),
            self._tensor(truncated).bool(),
            {"final_obs": self._tensors(final)},
        )

    def _tensors(self, observations: Any) -> Observations[th.Tensor]:
        if hasattr(observations, "items"):
            return {name: self._tensor(array) for name, array in observations.items()}
        return self._tensor(observations)

    def _tensor(self, array: Any) -> th.Tensor:
        """
        A copy of JAX's array. JAX's arrays do not change, and its memory must not be written to.

        :param array: on the device
        :return: on the same device
        """
        return from_dlpack(array).clone()

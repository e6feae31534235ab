"""Environments in JAX as two functions for all environments at once, with autoreset in the same step. Imports JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

Array: TypeAlias = Any
"""A JAX array; JAX is not among the packages that types are checked with."""


class Stepped(NamedTuple):
    """
    What a step of one environment gives, before any reset.

    :param state: the simulator's, any pytree
    :param observation: an array, or arrays by name
    :param reward: shape ()
    :param terminated: shape ()
    :param truncated: cut off by the simulator itself, shape ()
    """

    state: Any
    observation: Any
    reward: Array
    terminated: Array
    truncated: Array


class Functions(NamedTuple):
    """
    One environment of a library.

    :param reset: key ↦ state, observation
    :param step: key, state, action ↦ :class:`Stepped`
    :param observation_space: Gymnasium's
    :param action_space: Gymnasium's
    """

    reset: Callable[[Array], tuple[Any, Any]]
    step: Callable[[Array, Any, Array], Stepped]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]


class Carry(NamedTuple):
    """
    What is kept from step to step.

    :param key: of random numbers
    :param state: of all environments
    :param steps: since the episode began, int32, shape (n_envs,)
    :param first: states and observations of the first episodes
    """

    key: Array
    state: Any
    steps: Array
    first: tuple[Any, Any]


def of_gymnax(env: Any, params: Any) -> Functions:
    """
    A gymnax environment.

    :param env: of gymnax 1.0 or later
    :param params: its parameters; None for the default ones
    :return: its functions
    :raises ValueError: if it does not tell time limits from other ends
    """
    if not hasattr(env, "is_truncated"):
        raise ValueError("env does not tell time limits from other ends, as gymnax does since 1.0; install gymnax>=1.0")
    params = env.default_params if params is None else params

    def reset(key: Array) -> tuple[Any, Any]:
        observation, state = env.reset_env(key, params)
        return state, observation

    def step(key: Array, state: Any, action: Array) -> Stepped:
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return Stepped(state, observation, reward, terminated, env.is_truncated(state, params))

    return Functions(reset, step, _space(env.observation_space(params)), _space(env.action_space(params)))


def of_brax(env: Any) -> Functions:
    """
    An environment of Brax or MuJoCo Playground, without wrappers.

    :param env: with ``reset(key)`` and ``step(state, action)``
    :return: its functions
    :raises ValueError: if it is wrapped
    """
    if hasattr(env, "env"):
        raise ValueError(
            f"env is wrapped in {type(env).__name__}; Brax's wrappers lose last observations: give the environment itself, "
            "from brax.envs.get_environment(name) or mujoco_playground.registry.load(name), and episode_length here"
        )

    def reset(key: Array) -> tuple[Any, Any]:
        state = env.reset(key)
        return state, state.obs

    def step(key: Array, state: Any, action: Array) -> Stepped:
        state = env.step(state, action)
        return Stepped(state, state.obs, state.reward, state.done > 0, jnp.zeros((), bool))

    size = env.observation_size
    box: spaces.Space[Any]
    if isinstance(size, dict) or hasattr(size, "items"):
        box = spaces.Dict({name: _unbounded(shape) for name, shape in size.items()})
    else:
        box = _unbounded(size)
    return Functions(reset, step, box, spaces.Box(-1.0, 1.0, (env.action_size,), np.float32))


def _unbounded(shape: Any) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (shape,) if isinstance(shape, int) else tuple(shape), np.float32)


def _space(space: Any) -> spaces.Space[Any]:
    """
    Gymnasium's space.

    :param space: gymnax's
    :return: the same
    :raises ValueError: if it is of another kind
    """
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    if hasattr(space, "low") and hasattr(space, "high"):
        shape = tuple(space.shape)
        low, high = (np.broadcast_to(np.asarray(bound, np.float32), shape) for bound in (space.low, space.high))
        return spaces.Box(low, high, shape, np.float32)
    if isinstance(getattr(space, "spaces", None), dict):
        return spaces.Dict({name: _space(inner) for name, inner in space.spaces.items()})
    raise ValueError(f"env has a space of an unknown kind: {space}")


def vectorized(
    functions: Functions, num_envs: int, episode_length: int | None, new_starts: bool
) -> tuple[Callable[[Array], tuple[Any, Any]], Callable[[Any, Array], tuple[Any, ...]]]:
    """
    Compiled functions of all environments.

    :param functions: of one environment
    :param num_envs: number of environments
    :param episode_length: steps after which an episode is cut off; None for the simulator's own limit only
    :param new_starts: whether each episode begins with a new state; else with the first one of its environment
    :return: key ↦ carry, observations; and carry, actions ↦ carry, observations, rewards, terminated, truncated (uint8, as
        DLPack of older versions has no bool), last observations
    """

    def resets(key: Array) -> tuple[Any, Any]:
        return jax.vmap(functions.reset)(jax.random.split(key, num_envs))

    def reset(key: Array) -> tuple[Carry, Any]:
        key, now = jax.random.split(key)
        first = resets(now)
        return Carry(key, first[0], jnp.zeros(num_envs, jnp.int32), first), first[1]

    def step(carry: Carry, actions: Array) -> tuple[Any, ...]:
        key, for_step, for_reset = jax.random.split(carry.key, 3)
        stepped = jax.vmap(functions.step)(jax.random.split(for_step, num_envs), carry.state, actions)
        steps = carry.steps + 1
        terminated, truncated = stepped.terminated.astype(bool), stepped.truncated.astype(bool)
        if episode_length is not None:
            truncated |= steps >= episode_length
        ended = terminated | truncated

        def choose(old: Array, new: Array) -> Array:
            return jnp.where(ended.reshape((num_envs,) + (1,) * (jnp.ndim(old) - 1)), new, old)

        def with_resets(now: tuple[Any, Any]) -> tuple[Any, Any]:
            starts = resets(for_reset) if new_starts else carry.first
            chosen: tuple[Any, Any] = jax.tree.map(choose, now, starts)
            return chosen

        now = (stepped.state, stepped.observation)
        now = jax.lax.cond(ended.any(), with_resets, lambda now: now, now)
        after = Carry(key, now[0], jnp.where(ended, 0, steps), carry.first)
        flags = (terminated.astype(jnp.uint8), truncated.astype(jnp.uint8))
        return after, now[1], stepped.reward.astype(jnp.float32), *flags, stepped.observation

    return jax.jit(reset), jax.jit(step)

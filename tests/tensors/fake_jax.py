"""Environments in JAX that name each row: one with gymnax's methods, one with Brax's. They import JAX."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LIMIT = 5


class Space:
    """gymnax's spaces, as far as they are read."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Clock(NamedTuple):
    """
    State of one environment.

    :param name: drawn at the beginning of an episode
    :param steps: since then
    :param action: the last one
    """

    name: Any
    steps: Any
    action: Any


def observe(clock: Clock) -> Any:
    return jnp.stack([clock.name, clock.steps, clock.action])


def start(key: Any) -> Clock:
    return Clock(jax.random.randint(key, (), 0, 10_000).astype(jnp.float32), jnp.float32(0), jnp.float32(0))


def has_ended(clock: Clock) -> Any:
    """After 2 to 8 steps, by the name of the episode."""
    return clock.steps == 2 + clock.name % 7


class FakeGymnax:
    """
    gymnax's methods.

    :param dicts: whether observations are dicts, and actions Discrete
    """

    default_params = LIMIT

    def __init__(self, dicts: bool = False) -> None:
        self.dicts = dicts

    def form(self, clock: Clock) -> Any:
        return {"clock": observe(clock), "steps": clock.steps.astype(jnp.int32)} if self.dicts else observe(clock)

    def reset_env(self, key: Any, params: Any) -> tuple[Any, Clock]:
        clock = start(key)
        return self.form(clock), clock

    def step_env(self, key: Any, clock: Clock, action: Any, params: Any) -> tuple[Any, Clock, Any, Any, dict[str, Any]]:
        number = action.astype(jnp.float32) if self.dicts else action[0]
        clock = Clock(clock.name, clock.steps + 1, number)
        return self.form(clock), clock, clock.steps + number, has_ended(clock), {}

    def is_truncated(self, clock: Clock, params: Any) -> Any:
        return clock.steps >= params

    def observation_space(self, params: Any) -> Space:
        box = Space(low=-jnp.inf, high=jnp.inf, shape=(3,))
        return Space(spaces={"clock": box, "steps": Space(n=100)}) if self.dicts else box

    def action_space(self, params: Any) -> Space:
        return Space(n=3) if self.dicts else Space(low=-1.0, high=1.0, shape=(2,))


class BraxState(NamedTuple):
    """What Brax calls State, as far as it is read."""

    clock: Clock
    obs: Any
    reward: Any
    done: Any


class FakeBrax:
    """
    Brax's methods.

    :param dicts: whether observations are dicts
    """

    action_size = 2

    def __init__(self, dicts: bool = False) -> None:
        self.dicts = dicts
        self.observation_size: Any = {"state": (3,), "privileged": 3} if dicts else 3

    def state(self, clock: Clock, reward: Any, done: Any) -> BraxState:
        obs = observe(clock)
        return BraxState(clock, {"state": obs, "privileged": 2 * obs} if self.dicts else obs, reward, done)

    def reset(self, key: Any) -> BraxState:
        return self.state(start(key), jnp.float32(0), jnp.float32(0))

    def step(self, state: BraxState, action: Any) -> BraxState:
        clock = Clock(state.clock.name, state.clock.steps + 1, action[0])
        return self.state(clock, clock.steps + action[0], has_ended(clock).astype(jnp.float32))

"""An environment that is restored goes on as the one that was captured, whatever it has done in between."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from hypothesis import given, settings
from hypothesis import strategies as st
from opaque_environment import Opaque
from resume_scenarios import FASTEST
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.saving.env_state import capture_env, restore_env
from sb3_policyopt.saving.environments import VecEnvState

CLASSIC = ("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1", "FrozenLake-v1")
MUJOCO = ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "Pusher-v5")


def play(env: gym.Env[Any, Any], n_steps: int, generator: np.random.Generator) -> list[Any]:
    """Random actions; the episode starts again where it ends."""
    trace: list[Any] = []
    space: Any = env.action_space
    for _ in range(n_steps):
        action = (
            generator.uniform(space.low, space.high).astype(space.dtype)
            if isinstance(space, spaces.Box)
            else int(generator.integers(space.n))
        )
        observation, reward, terminated, truncated, _ = env.step(action)
        trace.append((np.array(observation), float(reward), terminated, truncated))
        if terminated or truncated:
            trace.append((np.array(env.reset()[0]),))
    return trace


def assert_continues(make: Callable[..., Any], before: int = 30, elsewhere: int = 17, after: int = 80) -> None:
    first, second = make(), make()
    first.reset(seed=1)
    play(first, before, np.random.default_rng(0))
    state = capture_env(first)
    second.reset(seed=2)
    play(second, elsewhere, np.random.default_rng(5))
    restore_env(second, state)
    expected, continued = play(first, after, np.random.default_rng(7)), play(second, after, np.random.default_rng(7))
    for one, other in zip(expected, continued, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    first.close()
    second.close()


def wrapped(env_id: str, **options: Any) -> gym.Env[Any, Any]:
    env = gym.make(env_id, max_episode_steps=25, **options)
    if isinstance(env.observation_space, spaces.Box):
        env = wrappers.NormalizeObservation(env)
        env = wrappers.FrameStackObservation(env, 2)
    env = wrappers.TransformReward(env, lambda reward: 2 * float(reward))
    return Monitor(env)


@pytest.mark.fast
@settings(max_examples=15)
@given(env_id=st.sampled_from(CLASSIC), before=st.integers(0, 60), elsewhere=st.integers(0, 60))
def test_classic_control_with_wrappers(env_id: str, before: int, elsewhere: int) -> None:
    assert_continues(lambda: wrapped(env_id), before, elsewhere)


@pytest.mark.fast
@pytest.mark.parametrize("env_id", MUJOCO)
def test_mujoco(env_id: str) -> None:
    pytest.importorskip("mujoco")
    assert_continues(lambda: wrapped(env_id))


def test_mujoco_with_a_model_that_changes() -> None:
    """A task may vary masses and gravity; they belong to the state."""
    pytest.importorskip("mujoco")

    class Heavier(gym.Wrapper):
        def reset(self, **options: Any) -> Any:
            result = self.env.reset(**options)
            world: Any = self.unwrapped
            model = world.model
            model.body_mass[1:] *= self.unwrapped.np_random.uniform(0.9, 1.2)
            model.opt.gravity[2] = -9 - self.unwrapped.np_random.random()
            return result

    assert_continues(lambda: Heavier(gym.make("Hopper-v5", max_episode_steps=25)))


def test_restoring_leaves_mujocos_structures_in_place() -> None:
    """A renderer holds references to them."""
    pytest.importorskip("mujoco")
    env = gym.make("Hopper-v5")
    env.reset(seed=0)
    world: Any = env.unwrapped
    data, model = world.data, world.model
    restore_env(env, capture_env(env))
    assert world.data is data is world.mujoco_renderer.data
    assert world.model is model


@pytest.mark.fast
def test_the_arcade_learning_environment() -> None:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    assert_continues(lambda: gym.make("ALE/Pong-v5", repeat_action_probability=0.25), after=40)


@pytest.mark.fast
def test_what_cannot_be_kept_is_named() -> None:
    pytest.importorskip("Box2D")
    env = gym.make("LunarLander-v3")
    env.reset(seed=0)
    with pytest.raises(StateNotKeptError, match=r"LunarLander\.world \(b2World\) cannot be pickled"):
        capture_env(env)


class Offering(Opaque):
    """The same, but it offers its state."""

    def get_state(self) -> Any:
        return self.last

    def set_state(self, state: Any) -> None:
        self.numbers = self._count(state + 1)


def test_an_environment_that_offers_its_state() -> None:
    with pytest.raises(StateNotKeptError, match=r"Opaque\.numbers \(generator\)"):
        capture_env(Opaque())
    assert_continues(lambda: Monitor(Offering()))


class Nameless:
    """Its class has a property for the name of its module, as the class of Cython's functions has on Python 3.10."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return nameless, (self.number,)


setattr(Nameless, "__module__", property(lambda self: __name__))  # noqa: B010 (to mypy it is a string)


def nameless(number: int) -> Any:
    return Nameless(number)


def test_a_class_without_the_name_of_a_module() -> None:
    first, second = gym.make("CartPole-v1"), gym.make("CartPole-v1")
    worlds: list[Any] = [first.unwrapped, second.unwrapped]
    worlds[0].part, worlds[1].part = Nameless(3), Nameless(4)
    restore_env(second, capture_env(first))
    assert worlds[1].part.number == 3


def test_an_environment_inside_another_object_is_not_taken_for_its_constructor_arguments() -> None:
    """Gymnasium's EzPickle pickles an environment as the arguments it was made with, which loses its state."""
    pytest.importorskip("mujoco")

    class Holder:
        def __init__(self) -> None:
            self.inner = gym.make("Hopper-v5").unwrapped

    env = gym.make("CartPole-v1")
    world: Any = env.unwrapped
    world.simulator = Holder().inner
    with pytest.raises(StateNotKeptError, match="pickled without its state"):
        capture_env(env)


def test_other_wrappers_are_refused() -> None:
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="it was CartPoleEnv"):
        restore_env(Monitor(gym.make("CartPole-v1")), capture_env(env))


@pytest.mark.parametrize("venv_class", [DummyVecEnv, SubprocVecEnv])
def test_vectorised(venv_class: Any) -> None:
    def make() -> Any:
        options = {"start_method": FASTEST} if venv_class is SubprocVecEnv else {}
        return venv_class([lambda: wrapped("Pendulum-v1"), lambda: wrapped("Pendulum-v1")], **options)

    first, second = make(), make()
    generator = np.random.default_rng(0)
    actions = generator.uniform(-2, 2, size=(60, 2, 1)).astype(np.float32)
    first.seed(1)
    first.reset()
    for action in actions[:20]:
        first.step(action)
    state = VecEnvState(first).capture()
    second.reset()
    VecEnvState(second).restore(state)
    for action in actions[20:]:
        for one, other in zip(first.step(action)[:3], second.step(action)[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    first.close()
    second.close()


def test_a_worker_survives_what_cannot_be_kept() -> None:
    venv = SubprocVecEnv([Opaque, Opaque])
    venv.reset()
    with pytest.raises(StateNotKeptError, match="generator"):
        VecEnvState(venv).capture()
    assert np.asarray(venv.step(np.zeros(2, int))[0]).shape == (2, 1)
    venv.close()


def test_a_state_of_the_zoo_s_time_limit_fits_gymnasium_s() -> None:
    patches = pytest.importorskip("rl_zoo3.gym_patches")
    from gymnasium.envs.classic_control import PendulumEnv

    zoo, plain = patches.PatchedTimeLimit(PendulumEnv(), 5), patches.PatchedTimeLimit.__base__(PendulumEnv(), 5)
    for env in (zoo, plain):
        env.reset(seed=3 if env is zoo else 4)
    zoo.step(np.ones(1, np.float32))
    restore_env(plain, capture_env(zoo))
    for _ in range(4):
        one, other = zoo.step(np.zeros(1, np.float32)), plain.step(np.zeros(1, np.float32))
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:4] == other[1:4]
    assert other[3]  # both are cut off after the fifth step

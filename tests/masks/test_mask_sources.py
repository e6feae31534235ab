"""M1: where masks come from."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from contrib_twins import MASKABLE, MaskedToy, is_allowed, masked_toy
from gymnasium import spaces
from masked_worlds import N_ACTIONS, SMALL, ByInfo, ByMethod, ByObservation, ByVecEnv, allowed_after, vec
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from toy_environments import VECTOR, collect, start

from benchmarks.environments import ToyEnv
from sb3_policyopt import PPO, MaskablePPO, MaskableTRPO
from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.evaluation import evaluate_policy


class InItsOwnMemory(ByVecEnv):
    """Always gives the same array, which its step writes anew."""

    def reset(self) -> Any:
        self.masks = np.zeros((self.num_envs, N_ACTIONS), bool)
        return self.noted(super().reset())

    def step_wait(self) -> Any:
        observations, *rest = super().step_wait()
        return (self.noted(observations), *rest)

    def noted(self, observations: Any) -> Any:
        self.masks[:] = super().action_masks()
        return observations

    def action_masks(self) -> np.ndarray:
        return self.masks


def with_action_masker(env: gym.Env[Any, Any]) -> ActionMasker:
    return ActionMasker(env, lambda wrapped: allowed_after(wrapped.unwrapped.observation))


SOURCES: dict[str, Callable[[], VecEnv]] = {
    "method": lambda: vec(ByMethod),
    "method, wrapped": lambda: vec(ByMethod, wrapper=lambda env: gym.wrappers.TimeLimit(env, 5)),
    "method, VecMonitor": lambda: VecMonitor(vec(ByMethod)),
    "ActionMasker": lambda: vec(
        ByObservation, wrapper=lambda env: ActionMasker(env, lambda e: allowed_after(e.unwrapped.observation))
    ),
    "info": lambda: vec(ByInfo),
    "info, VecMonitor": lambda: VecMonitor(vec(ByInfo)),
    "VecEnv": lambda: ByVecEnv(vec(ByObservation)),
    "VecEnv, its own memory": lambda: InItsOwnMemory(vec(ByObservation)),
    "VecEnv, wrapped": lambda: VecMonitor(ByVecEnv(vec(ByObservation))),
    "method, SubprocVecEnv": lambda: vec(ByMethod, SubprocVecEnv),
    "method, SharedMemoryVecEnv": lambda: vec(ByMethod, SharedMemoryVecEnv),
    "info, SubprocVecEnv": lambda: vec(ByInfo, SubprocVecEnv),
    "info, SharedMemoryVecEnv": lambda: vec(ByInfo, SharedMemoryVecEnv),
}


@pytest.mark.parametrize(
    "name", [n if "Memory" in n or "Sub" in n else pytest.param(n, marks=pytest.mark.fast) for n in SOURCES]
)
def test_M1_each_step_has_the_mask_of_its_observation(name: str) -> None:
    """Also in the second rollout, which begins in the middle of episodes, and in the steps after an episode's end."""
    env = SOURCES[name]()
    try:
        model = PPO("MaskableMlpPolicy", env, **SMALL)
        for _ in range(2):
            buffer = collect(model)
            assert buffer.episode_starts[1:].any()
            expected = np.apply_along_axis(allowed_after, 2, buffer.observations)
            np.testing.assert_array_equal(buffer.action_masks, expected)
            taken = buffer.actions.astype(int)
            assert np.take_along_axis(buffer.action_masks, taken, 2).all()
    finally:
        env.close()


def test_M1_a_training_that_resets_forgets_the_masks_of_the_one_before() -> None:
    """SB3's VecFrameStack resets into the array that it gave before."""
    model = PPO("MaskableMlpPolicy", VecFrameStack(vec(ByInfo), 2), **SMALL)
    for _ in range(2):
        start(model)
        buffer = collect(model)
        last = buffer.observations[..., -VECTOR.shape[0] :]
        np.testing.assert_array_equal(buffer.action_masks, np.apply_along_axis(allowed_after, 2, last))


class Narrower(VecEnvWrapper):
    """Allows one action less than the environments do, where they allow several."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        results = super().env_method(method_name, *args, indices=indices, **kwargs)
        return [narrowed(mask) for mask in results] if method_name == "action_masks" else results


def narrowed(mask: np.ndarray) -> np.ndarray:
    """Without the first of several allowed actions."""
    fewer = mask.copy()
    if mask.sum() > 1:
        fewer[np.flatnonzero(mask)[0]] = False
    return fewer


@pytest.mark.fast
@pytest.mark.parametrize("outside", [lambda env: env, VecMonitor])
def test_M1_a_wrapper_with_an_env_method_of_its_own_is_asked(outside: Any) -> None:
    """sb3-contrib asks ``env_method`` of the outermost VecEnv; only SB3's own is passed by."""
    buffer = collect(PPO("MaskableMlpPolicy", outside(Narrower(vec(ByMethod))), **SMALL))
    of_environments = np.apply_along_axis(allowed_after, 2, buffer.observations)
    np.testing.assert_array_equal(buffer.action_masks, np.apply_along_axis(narrowed, 2, of_environments))
    assert (buffer.action_masks != of_environments).any()


class WithOwn(ByVecEnv):
    """Its own method hands through what the environments give."""

    def action_masks(self) -> np.ndarray:
        return np.stack(self.env_method("action_masks"))


def test_M1_an_env_method_around_a_vec_env_with_masks_of_its_own_is_asked() -> None:
    """sb3-contrib never asks a VecEnv's own method, so what a wrapper around it makes of the masks counts there."""
    buffer = collect(PPO("MaskableMlpPolicy", VecMonitor(Narrower(WithOwn(vec(ByMethod)))), **SMALL))
    of_environments = np.apply_along_axis(allowed_after, 2, buffer.observations)
    np.testing.assert_array_equal(buffer.action_masks, np.apply_along_axis(narrowed, 2, of_environments))
    alone = collect(PPO("MaskableMlpPolicy", Narrower(ByVecEnv(vec(ByObservation))), **SMALL))  # the environments have none
    np.testing.assert_array_equal(alone.action_masks, np.apply_along_axis(allowed_after, 2, alone.observations))


class Task(ToyEnv):
    """Allows one action only."""

    def __init__(self, allowed: int) -> None:
        super().__init__(VECTOR, spaces.Discrete(N_ACTIONS))
        self.allowed = allowed

    def action_masks(self) -> np.ndarray:
        return np.arange(N_ACTIONS) == self.allowed


class Tasks(gym.Wrapper[Any, Any, Any, Any]):
    """Goes on with the environment of another task at each reset; counts the actions that the current one forbids."""

    def __init__(self) -> None:
        self.tasks = [Task(allowed) for allowed in range(N_ACTIONS)]
        super().__init__(self.tasks[0])
        self.n_resets = self.n_steps = self.n_forbidden = 0

    def reset(self, **options: Any) -> Any:
        self.n_resets += 1
        self.env = self.tasks[self.n_resets % N_ACTIONS]
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        self.n_forbidden += not self.env.get_wrapper_attr("action_masks")()[action]
        return self.env.step(action)


@pytest.mark.fast
def test_M1_an_environment_that_goes_on_with_another_one_is_asked_for_its_masks() -> None:
    """The method is looked up in every step, in trainings and in evaluations, as by sb3-contrib's ``env_method``."""
    trained, evaluated = Tasks(), Tasks()
    model = MaskablePPO("MlpPolicy", trained, **SMALL).learn(96)
    evaluate_policy(model, evaluated, 6, warn=False)
    for env in (trained, evaluated):
        assert env.n_resets > 4 and env.n_steps > 24 and env.n_forbidden == 0


def test_M1_methods_that_a_callback_sets_in_the_middle_of_a_rollout_are_asked() -> None:
    def only(action: int, *rows: int) -> Callable[[], np.ndarray]:
        mask = np.arange(N_ACTIONS) == action
        return lambda: np.tile(mask, (*rows, 1)) if rows else mask

    def in_environments(env: Any) -> None:
        env.set_attr("action_masks", only(2), indices=[1])

    def by_method(env: Any) -> None:
        env.env_method("__setattr__", "action_masks", only(2), indices=[1])

    def in_list(env: Any) -> None:
        env.envs[1] = Monitor(Task(2))
        env.envs[1].reset()

    def in_vec_env(env: Any) -> None:
        env.action_masks = only(2, 3)

    for change in (in_environments, by_method, in_list, in_vec_env):
        model = PPO("MaskableMlpPolicy", vec(ByMethod), **SMALL)

        def callback(local: dict[str, Any], _: Any, change: Callable[[Any], None] = change) -> bool:
            if local["self"].num_timesteps == 30:
                change(local["env"])
            return True

        buffer: Any = model.learn(72, callback=callback).rollout_buffer
        changed, other, _ = buffer.action_masks.reshape(3, 24, 4)[[1, 0, 2], 10:]  # after 10 steps of 3 environments
        assert (changed == only(2)()).all()
        assert (other == only(2)()).all() == (change is in_vec_env)


@pytest.mark.parametrize("make", [lambda env: VecNormalize(env), lambda env: VecMonitor(VecNormalize(env))])
@pytest.mark.parametrize("env", [ByMethod, ByInfo])
def test_M1_vec_normalize_hands_masks_through(env: Any, make: Callable[..., Any]) -> None:
    normalized = make(vec(env))
    model = MaskablePPO("MlpPolicy", normalized, **SMALL)
    buffer = collect(model)
    assert not buffer.action_masks.all()
    assert np.take_along_axis(buffer.action_masks, buffer.actions.astype(int), 2).all()
    model.learn(144)


class WrongInfo(ByMethod):
    """As Taxi-v3 under an ``ActionMasker``: the info's masks are not those that count."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest, info = super().step(action)
        return (observation, *rest, {**info, "action_mask": np.ones(N_ACTIONS, bool)})

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        return observation, {**info, "action_mask": np.ones(N_ACTIONS, bool)}


class WrongMethod(WrongInfo):
    def action_masks(self) -> np.ndarray:
        raise AssertionError("not asked for")


def test_masks_of_the_vec_env_come_before_those_of_environments_and_of_infos() -> None:
    for env in (vec(WrongInfo), ByVecEnv(vec(WrongMethod)), VecMonitor(ByVecEnv(InItsOwnMemory(vec(WrongMethod))))):
        buffer = collect(PPO("MaskableMlpPolicy", env, **SMALL))
        np.testing.assert_array_equal(buffer.action_masks, np.apply_along_axis(allowed_after, 2, buffer.observations))


class FewerByVecEnv(ByVecEnv):
    """Allows one action less than the VecEnv that it wraps."""

    def action_masks(self) -> np.ndarray:
        return np.apply_along_axis(narrowed, 1, super().action_masks())


def test_the_outermost_of_two_vec_envs_with_masks_is_asked_under_a_wrapper_too() -> None:
    """SB3's wrappers refuse a name that two others have."""
    buffer = collect(PPO("MaskableMlpPolicy", VecMonitor(FewerByVecEnv(ByVecEnv(vec(ByObservation)))), **SMALL))
    of_environments = np.apply_along_axis(allowed_after, 2, buffer.observations)
    np.testing.assert_array_equal(buffer.action_masks, np.apply_along_axis(narrowed, 2, of_environments))


def test_masks_of_infos_hold_after_a_rollout_that_did_not_use_them() -> None:
    model = MaskablePPO("MlpPolicy", vec(ByInfo), **SMALL)
    for used in (True, False, True, False, True):
        buffer: Any = model.learn(3 * 24, use_masking=used, reset_num_timesteps=False).rollout_buffer
        expected = np.apply_along_axis(allowed_after, -1, buffer.observations) if used else np.ones(buffer.action_masks.shape)
        np.testing.assert_array_equal(buffer.action_masks, expected)


def test_what_cannot_be_asked_for_attributes_has_no_masks_in_its_environments() -> None:
    class CannotBeAsked(ByVecEnv):
        action_masks = None  # type: ignore[assignment]

        def has_attr(self, attr_name: str) -> bool:
            raise NotImplementedError

    buffer = collect(PPO("MaskableMlpPolicy", CannotBeAsked(vec(ByInfo)), **SMALL))
    np.testing.assert_array_equal(buffer.action_masks, np.apply_along_axis(allowed_after, 2, buffer.observations))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("algorithm", [MaskablePPO, MaskableTRPO])
@pytest.mark.parametrize("space", MASKABLE)
def test_M1_forbidden_actions_are_never_drawn(algorithm: type[Any], space: str, engine: str) -> None:
    """What the environments got, in a training long enough that 1 in 1000 would show; half of all actions are forbidden."""
    env: Any = masked_toy(action=MASKABLE[space])
    algorithm("MlpPolicy", env, engine=engine, **{**SMALL, "n_steps": 128, "batch_size": 128}).learn(1024)
    taken = [entry for number in range(4) for entry in env.envs[number].get_wrapper_attr("taken")]
    assert len(taken) == 1024
    assert all(is_allowed(MASKABLE[space], action, mask) for action, mask in taken)


def test_memory_of_the_masks_is_kept_and_boolean(engine: str) -> None:
    model = PPO("MaskableMlpPolicy", masked_toy(), engine=engine, **SMALL)
    first = collect(model).action_masks
    assert first.dtype == bool and first.shape == (24, 4, 4) and first.nbytes == 24 * 4 * 4
    model.train()
    assert np.shares_memory(collect(model).action_masks, first)


def test_a_toy_with_masks_is_one() -> None:
    env = MaskedToy()
    env.reset(seed=0)
    assert sum(not env._forbid().all() for _ in range(100)) > 80

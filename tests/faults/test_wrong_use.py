"""Unusual and wrong use, each either right or refused by name."""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_policyopt import PPO, TRPO

ALGORITHMS = [PPO, TRPO]


class World(gym.Env):
    """Random observations, rewards and ends of episodes, each of which a test may replace."""

    def __init__(
        self,
        observation_space: Any = None,
        action_space: Any = None,
        observe: Any = None,
        reward: Any = None,
        episode_length: int = 5,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = action_space or spaces.Box(-1, 1, (2,), np.float32)
        self.observe = observe or (lambda generator: generator.uniform(-1, 1, 3).astype(np.float32))
        self.reward = reward or (lambda action: float(-np.square(action).sum()))
        self.episode_length = episode_length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(self.np_random), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(self.np_random), self.reward(action), self.steps >= self.episode_length, False, {}


def make(
    algorithm: Any,
    n_envs: int = 2,
    n_steps: int = 16,
    batch_size: int = 16,
    venv: Any = DummyVecEnv,
    options: Any = None,
    **world: Any,
) -> Any:
    return algorithm(
        "MlpPolicy",
        venv([lambda: World(**world) for _ in range(n_envs)]),
        n_steps=n_steps,
        batch_size=batch_size,
        seed=0,
        **(options or {}),
    )


def parameters(model: Any) -> Any:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def saved(model: Any) -> Any:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


pytestmark = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.mark.parametrize(
    ("world", "named"),
    [
        ({"observation_space": spaces.Box(-1, 1, (4,), np.float32)}, "Observation spaces do not match"),
        ({"action_space": spaces.Box(-1, 1, (3,), np.float32)}, "Action spaces do not match"),
        ({"action_space": spaces.Discrete(2)}, "Action spaces do not match"),
    ],
)
def test_spaces_that_changed_are_refused_on_load(algorithm: Any, world: Any, named: str) -> None:
    file = saved(make(algorithm))
    with pytest.raises(ValueError, match=named):
        algorithm.load(file, env=DummyVecEnv([lambda: World(**world)]))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_another_number_of_environments_than_at_saving_trains(algorithm: Any, n_envs: int) -> None:
    model = algorithm.load(saved(make(algorithm).learn(32)), env=DummyVecEnv([World] * n_envs))
    before = parameters(model)
    model.learn(16 * n_envs)
    assert model.rollout_buffer.rewards.shape == (16, n_envs)
    assert not th.equal(parameters(model), before)


@pytest.mark.parametrize("kind", [np.float64, np.float32, int, np.int64, bool, lambda x: np.array([x])[0]])
def test_any_real_type_of_reward_counts_the_same(algorithm: Any, kind: Any) -> None:
    """Rewards 0 and 1, which every type represents exactly."""

    def rewards(as_type: Any) -> Any:
        return lambda action: as_type(int(action[0] > 0))

    assert th.equal(
        parameters(make(algorithm, reward=rewards(kind)).learn(64)),
        parameters(make(algorithm, reward=rewards(float)).learn(64)),
    )


@pytest.mark.parametrize("venv", [DummyVecEnv, lambda functions: SubprocVecEnv(functions, start_method="fork")])
@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float16])
def test_observations_of_another_dtype_than_their_space(algorithm: Any, venv: Any, dtype: Any) -> None:
    """Small integers, which every type represents exactly; a SubprocVecEnv passes the type on."""

    def trained(dtype: Any) -> Any:
        model = make(algorithm, observe=lambda generator: generator.integers(-1, 2, 3).astype(dtype), venv=venv)
        model.learn(64)
        model.env.close()
        return parameters(model)

    assert th.equal(trained(dtype), trained(np.float32))


def test_episodes_of_one_step(algorithm: Any) -> None:
    model = make(algorithm, episode_length=1).learn(64)
    buffer = model.rollout_buffer
    assert buffer.episode_starts.all()
    # Each return is its reward, as no step has a successor.
    np.testing.assert_allclose(buffer.returns, buffer.swap_and_flatten(buffer.rewards), rtol=1e-5, atol=1e-6)
    assert th.isfinite(parameters(model)).all()


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (-1, np.inf)])
def test_infinite_bounds_of_actions_are_refused(algorithm: Any, bounds: Any) -> None:
    with pytest.raises(AssertionError, match="Continuous action space must have a finite lower and upper bound"):
        make(algorithm, action_space=spaces.Box(bounds[0], bounds[1], (2,), np.float32))


@pytest.mark.parametrize("engine", ["autograd", "closed_form"])
def test_advantages_that_are_all_zero_leave_the_policy_alone(algorithm: Any, engine: str) -> None:
    """Without entropy bonus the policy's gradient is zero, and the critic has nothing to learn where its values are right."""
    model = make(algorithm, options={"engine": engine}).learn(32)
    buffer = model.rollout_buffer
    model.collect_rollouts(model.env, NoCallback, buffer, model.n_steps)
    buffer.advantages = np.zeros_like(buffer.advantages)
    buffer.returns = buffer.values.copy()
    model.policy.optimizer.state.clear()  # momentum would move the parameters without a gradient
    before = parameters(model)
    model.train()
    # Adam turns a rounding error of a zero gradient into steps of up to its learning rate, so only the policy of TRPO and
    # finiteness are exact.
    assert th.isfinite(parameters(model)).all()
    if algorithm is TRPO:
        actor = model.prepare_engine().n_actor
        assert th.equal(model.prepare_engine().actor_parameters, before_actor(model, before)[:actor])
        assert model.logger.name_to_value["train/line_search_zero_step"] == 1


class NoCallback:
    on_rollout_start = on_rollout_end = staticmethod(lambda: None)
    on_step = staticmethod(lambda: True)
    update_locals = staticmethod(lambda locals_: None)


def before_actor(model: Any, before: Any) -> Any:
    """The actor's stretch of all parameters, in the order of the engine."""
    sizes = {id(p): i for i, p in enumerate(model.policy.parameters())}
    pieces = before.split([p.numel() for p in model.policy.parameters()])
    return th.cat([pieces[sizes[id(p)]].flatten() for p in model.prepare_engine().flat.parameters])


@pytest.mark.parametrize("engine", ["autograd", "closed_form"])
@pytest.mark.parametrize("value", [0.0, 1.0, -1e6])
def test_a_constant_reward(algorithm: Any, value: float, engine: str) -> None:
    model = make(algorithm, reward=lambda action: value, options={"engine": engine}).learn(320)
    assert th.isfinite(parameters(model)).all()


def test_a_batch_of_one(algorithm: Any) -> None:
    model = make(algorithm, batch_size=1, n_steps=4, options={"normalize_advantage": False}).learn(16)
    assert th.isfinite(parameters(model)).all()


def test_a_last_minibatch_of_one(algorithm: Any) -> None:
    """33 = 2 · 16 + 1: a minibatch of one cannot be normalised by its own deviation."""
    with pytest.warns(UserWarning, match="truncated mini-batch of size 1"):
        model = make(algorithm, n_envs=1, n_steps=33)
    assert th.isfinite(parameters(model.learn(66))).all()


def test_a_rollout_of_one_is_refused(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=r"n_steps \* n_envs must be greater than 1 to normalize advantages"):
        make(algorithm, n_envs=1, n_steps=1)


def test_one_step_of_many_environments(algorithm: Any) -> None:
    model = make(algorithm, n_envs=32, n_steps=1).learn(320)
    assert model.num_timesteps == 320
    assert th.isfinite(parameters(model)).all()

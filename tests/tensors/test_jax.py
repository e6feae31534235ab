"""``from_jax`` on environments that name each row, and, where they are installed, on gymnax's and Brax's own."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from no_sync import NoSync
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from sb3_policyopt import PPO
from sb3_policyopt.envs.tensors import TensorVecEnv, TensorVecNormalize, from_jax, is_tensor_env

pytest.importorskip("jax", reason="from_jax needs JAX")

from fake_jax import LIMIT, FakeBrax, FakeGymnax

N = 9


def gymnax_like(**settings: Any) -> TensorVecEnv:
    return from_jax(FakeGymnax(), N, **settings)


def brax_like(**settings: Any) -> TensorVecEnv:
    return from_jax(FakeBrax(), N, episode_length=LIMIT, **settings)


@pytest.mark.parametrize("make", [gymnax_like, brax_like])
def test_every_row_is_in_its_place(make: Any) -> None:
    """A clock written in Python says what each environment has to give: by its name an episode ends after 2 to 8 steps."""
    env = make(seed=1)
    assert is_tensor_env(env) and env.bootstrap == "final"
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert env.action_space == spaces.Box(-1, 1, (2,), np.float32)
    observations: Any = env.reset_tensors()
    names, steps = observations[:, 0].tolist(), [0] * N
    assert (observations[:, 1:] == 0).all() and len(set(names)) > 6
    ends = {(True, False): 0, (False, True): 0, (True, True): 0}
    for number in range(60):
        actions = th.full((N, 2), number / 100)
        observations, rewards, terminated, truncated, extras = env.step_tensors(actions)
        actions.fill_(9.0)
        for row in range(N):
            steps[row] += 1
            flags = (steps[row] == 2 + names[row] % 7, steps[row] == LIMIT)
            assert (bool(terminated[row]), bool(truncated[row])) == flags
            assert extras["final_obs"][row].tolist() == pytest.approx([names[row], steps[row], number / 100])
            assert float(rewards[row]) == pytest.approx(steps[row] + number / 100)
            if any(flags):
                ends[flags] += 1
                assert observations[row, 1:].tolist() == [0, 0] and observations[row, 0] != names[row]
                names[row], steps[row] = float(observations[row, 0]), 0
            else:
                assert observations[row].tolist() == extras["final_obs"][row].tolist()
    assert min(ends.values()) > 5
    assert rewards.dtype == th.float32 and terminated.dtype == truncated.dtype == th.bool


def test_dicts_and_discrete_actions() -> None:
    env = from_jax(FakeGymnax(dicts=True), N)
    assert isinstance(env.observation_space, spaces.Dict) and env.action_space == spaces.Discrete(3)
    first = env.reset()
    assert isinstance(first, dict) and first["steps"].dtype == np.int64 and first["clock"].shape == (N, 3)
    observations, _, dones, infos = env.step(np.full(N, 2))
    assert isinstance(observations, dict)
    for row in range(N):
        last = infos[row]["terminal_observation"]["clock"] if dones[row] else observations["clock"][row]
        assert last.tolist()[1:] == [1, 2]
    env = from_jax(FakeBrax(dicts=True), N)
    step = (env.reset_tensors(), env.step_tensors(th.zeros(N, 2)))[1]
    assert isinstance(step.observations, dict)
    assert th.equal(step.observations["privileged"], 2 * step.observations["state"])


def test_what_is_returned_is_the_callers() -> None:
    """JAX's memory must not be written to: what the caller writes changes nothing in the simulator."""
    one, other = gymnax_like(), gymnax_like()
    for env in (one, other):
        env.reset_tensors().zero_() if env is one else env.reset_tensors()  # type: ignore[union-attr]
    for _ in range(20):
        first, second = one.step_tensors(th.ones(N, 2)), other.step_tensors(th.ones(N, 2))
        assert th.equal(first.observations, second.observations)  # type: ignore[arg-type]
        for tensor in (first.observations, first.rewards, first.terminated, first.truncated, first.extras["final_obs"]):
            tensor.zero_()  # type: ignore[union-attr]


def test_seeds() -> None:
    env, other = gymnax_like(seed=0), gymnax_like(seed=0)
    first, again = env.reset_tensors(), env.reset_tensors()
    assert th.equal(first, other.reset_tensors()) and not th.equal(first, again)  # type: ignore[arg-type]
    assert th.equal(env.reset_tensors(seed=5), other.reset_tensors(seed=5))  # type: ignore[arg-type]
    env.seed(5)
    np.testing.assert_array_equal(env.reset(), other.reset_tensors(seed=5))  # type: ignore[arg-type]
    assert not th.equal(first, gymnax_like(seed=1).reset_tensors())  # type: ignore[arg-type]


def test_episodes_can_begin_with_the_first_state() -> None:
    env = brax_like(new_starts=False)
    names = env.reset_tensors()[:, 0]  # type: ignore[index]
    for _ in range(20):
        assert th.equal(env.step_tensors(th.zeros(N, 2)).observations[:, 0], names)  # type: ignore[index]


def test_no_step_waits_for_the_device_in_torch() -> None:
    env = TensorVecNormalize(gymnax_like())
    env.reset_tensors()
    env.step_tensors(th.zeros(N, 2))
    with NoSync():
        for _ in range(10):
            env.step_tensors(th.zeros(N, 2))


def test_bad_arguments_are_named() -> None:
    class Wrapped(FakeBrax):
        env = None

    class Old(FakeGymnax):
        is_truncated: Any = property(lambda self: getattr(self, "no such attribute"))

    class OtherSpace(FakeGymnax):
        def action_space(self, params: Any) -> Any:
            return object()

    for call, name in (
        (lambda: from_jax(Wrapped(), 2), "get_environment"),
        (lambda: from_jax(Old(), 2), r"gymnax>=1\.0"),
        (lambda: from_jax(OtherSpace(), 2), "space of an unknown kind"),
        (lambda: from_jax(gym.make("CartPole-v1"), 2), "env must be of gymnax, Brax"),
        (lambda: from_jax(FakeBrax(), 2, episode_length=0), "episode_length"),
        (lambda: from_jax(FakeBrax(), 0), "num_envs"),
        (lambda: from_jax(FakeBrax(), 2, device="meta"), "device"),
        (lambda: gymnax_like().step_tensors(th.zeros(N, 2)), "reset_tensors"),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def test_importing_the_package_does_not_import_jax() -> None:
    script = "import sys, sb3_policyopt.envs.tensors; print('jax' in sys.modules, 'brax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_gymnaxs_cart_pole_moves_as_gymnasiums() -> None:
    """Its observations are the state, so that each step is one of Gymnasium's from there."""
    gymnax = pytest.importorskip("gymnax")
    made = gymnax.make("CartPole-v1")
    env = from_jax(made[0] if isinstance(made, tuple) else made, 8)
    inner: Any = gym.make("CartPole-v1").unwrapped
    inner.reset(seed=0)
    observations: Any = env.reset_tensors()
    random, cut_off, ended = np.random.default_rng(0), 0, 0
    for _ in range(1200):
        actions = random.integers(0, 2, 8)
        actions[:4] = observations[:4].numpy() @ np.array([0.1, 0.3, 3.0, 1.0]) > 0  # balances the pole until the limit
        step = env.step_tensors(th.from_numpy(actions))
        for row in range(8):
            inner.state, inner.steps_beyond_terminated = observations[row].double().numpy(), None
            expected, reward, terminated, _, _ = inner.step(int(actions[row]))
            np.testing.assert_allclose(step.extras["final_obs"][row], expected, rtol=1e-4, atol=1e-5)
            assert (float(step.rewards[row]), bool(step.terminated[row])) == (reward, terminated)
        observations = step.observations
        cut_off, ended = cut_off + int(step.truncated.sum()), ended + int(step.terminated.sum())
    assert cut_off == 8 and ended > 100  # four poles that stand are cut off after 500 steps, twice


@pytest.mark.slow
def test_training_with_gymnax() -> None:
    """PPO on CartPole: from about 20 to a mean return above 150."""
    gymnax = pytest.importorskip("gymnax")
    made = gymnax.make("CartPole-v1")
    env = from_jax(made[0] if isinstance(made, tuple) else made, 16)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=256, learning_rate=1e-3, seed=0, device="cpu").learn(50_000)
    mean, _ = evaluate_policy(model, VecMonitor(env), n_eval_episodes=16)
    assert np.mean(mean) > 150


@pytest.mark.slow
def test_training_with_brax() -> None:
    """A rollout and an update on the inverted pendulum; with episodes of 20 steps, some are cut off."""
    envs = pytest.importorskip("brax.envs")
    env = TensorVecNormalize(from_jax(envs.get_environment("inverted_pendulum", backend="spring"), 16, episode_length=20))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=256, seed=0, device="cpu").learn(1024)
    assert model.num_timesteps == 1024 and env.obs_rms.count == pytest.approx(1024 + 16, abs=1e-3)
    env.reset_tensors()
    truncated = 0
    for _ in range(40):
        step = env.step_tensors(th.zeros(16, 1))
        truncated += int(step.truncated.sum())
        assert all(bool(th.isfinite(tensor).all()) for tensor in (step.observations, step.rewards))  # type: ignore[arg-type]
    assert truncated > 0

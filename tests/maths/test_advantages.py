"""S3, S4, T10, P4: temporal-difference errors, advantages and value targets."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_policyopt.maths.advantages import ValueTarget, discounted_sum, gae, td_errors, value_targets

pytestmark = pytest.mark.fast

fractions = st.floats(0, 1)


@st.composite
def rollouts(draw: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, values, last values and dones of 1-40 steps in 1-4 environments, in float64."""
    n_steps, n_envs = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    dones = (rng.random((n_steps, n_envs)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))).astype(float)
    return rng.standard_normal((n_steps, n_envs)), rng.standard_normal((n_steps, n_envs)), rng.standard_normal(n_envs), dones


def n_step_advantage(
    rollout: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], t: int, env: int, n: int, gamma: float
) -> Any:
    """A^(n) = r_t + γ r_{t+1} + … + γ^(n−1) r_{t+n−1} + γⁿ V(s_{t+n}) − V(s_t); nothing follows the end of an episode."""
    rewards, values, last_values, dones = rollout
    total, discount = -values[t, env], 1.0
    for k in range(t, t + n):
        total += discount * rewards[k, env]
        discount *= gamma
        if dones[k, env]:
            return total
    t += n
    return total + discount * (values[t, env] if t < len(values) else last_values[env])


@given(rollout=rollouts(), gamma=fractions, gae_lambda=st.floats(0, 0.99))
def test_S4_is_the_exponential_mean_of_the_n_step_advantages(
    rollout: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], gamma: float, gae_lambda: float
) -> None:
    """
    A = (1 − λ) Σ_{n≥1} λ^(n−1) A^(n). Where the rollout or the episode ends after m steps all A^(n) with n ≥ m equal
    A^(m), and the weights of those sum to λ^(m−1).
    """
    rewards, _, _, dones = rollout
    advantages = gae(*rollout, gamma, gae_lambda)
    n_steps, n_envs = rewards.shape
    for env in range(n_envs):
        for t in {0, n_steps // 2, n_steps - 1}:
            ends = np.flatnonzero(dones[t:, env])
            m = (ends[0] if len(ends) else n_steps - t - 1) + 1
            by_n = [n_step_advantage(rollout, t, env, n, gamma) for n in range(1, m + 1)]
            weights = [(1 - gae_lambda) * gae_lambda ** (n - 1) for n in range(1, m)] + [gae_lambda ** (m - 1)]
            assert advantages[t, env] == pytest.approx(np.dot(weights, by_n), rel=1e-9, abs=1e-9)


@given(rollout=rollouts(), gamma=fractions)
def test_S4_lambda_zero_is_the_td_error_S3(
    rollout: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], gamma: float
) -> None:
    rewards, values, _, _ = rollout
    errors = gae(*rollout, gamma, 0.0)
    np.testing.assert_array_equal(errors, td_errors(*rollout, gamma))
    for t, env in np.ndindex(*rewards.shape):
        assert errors[t, env] == pytest.approx(n_step_advantage(rollout, t, env, 1, gamma), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(value_targets("td_zero", *rollout, gamma, 0.7), errors + values)


@given(rollout=rollouts(), gamma=fractions)
def test_S4_lambda_one_is_the_monte_carlo_return_minus_the_value(
    rollout: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], gamma: float
) -> None:
    rewards, values, last_values, dones = rollout
    expected = np.empty_like(rewards)
    following = last_values.copy()  # a rollout that is cut goes on with the value of what comes after the cut
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * (1 - dones[t]) * following
        expected[t] = following
    np.testing.assert_allclose(gae(*rollout, gamma, 1.0), expected - values, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(value_targets("monte_carlo", *rollout, gamma, 0.7), expected, rtol=1e-9, atol=1e-10)


@given(rollout=rollouts(), gamma=fractions, gae_lambda=fractions)
def test_S4_T10_the_advantages_and_the_lambda_return_are_those_of_the_buffer_of_sb3(
    rollout: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], gamma: float, gae_lambda: float
) -> None:
    rewards, values, last_values, dones = (array.astype(np.float32) for array in rollout)
    n_steps, n_envs = rewards.shape
    buffer = RolloutBuffer(
        n_steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), gae_lambda=gae_lambda, gamma=gamma, n_envs=n_envs
    )
    starts = np.concatenate((np.zeros((1, n_envs), np.float32), dones[:-1]))
    nothing = np.zeros((n_envs, 1))
    for t in range(n_steps):
        buffer.add(nothing, nothing, rewards[t], starts[t], th.from_numpy(values[t]), th.zeros(n_envs))
    buffer.compute_returns_and_advantage(th.from_numpy(last_values), dones[-1])
    ours = gae(rewards, values, last_values, dones, gamma, gae_lambda)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, buffer.advantages, rtol=1e-4, atol=2e-5)
    targets = value_targets("td_lambda", rewards, values, last_values, dones, gamma, gae_lambda)
    np.testing.assert_allclose(targets, buffer.returns, rtol=1e-4, atol=2e-5)


def test_S3_truncation_bootstraps_and_termination_does_not() -> None:
    """
    Reward 1 a step for ever is worth V = 1/(1−γ) = 10. Episodes are cut every second step. If the value of the final
    observation goes into the reward, V explains everything and all advantages vanish; if the cut is mistaken for a
    termination, the last step misses γV = 9.
    """
    gamma, value = 0.9, 10.0
    dones = np.array([[0.0], [1.0], [0.0], [1.0]])
    values, last_values = np.full((4, 1), value), np.array([value])
    bootstrapped = np.ones((4, 1)) + gamma * value * dones
    for gae_lambda in (0.0, 0.95, 1.0):
        np.testing.assert_allclose(gae(bootstrapped, values, last_values, dones, gamma, gae_lambda), 0, atol=1e-12)
    mistaken = td_errors(np.ones((4, 1)), values, last_values, dones, gamma)
    np.testing.assert_allclose(mistaken.ravel(), [0, -9, 0, -9], atol=1e-12)


def test_S4_nothing_crosses_the_end_of_an_episode() -> None:
    rng = np.random.default_rng(0)
    rewards, values, last_values = rng.standard_normal((6, 1)), rng.standard_normal((6, 1)), np.zeros(1)
    dones = np.zeros((6, 1))
    dones[2] = 1
    before = gae(rewards, values, last_values, dones, 0.99, 0.95)
    rewards[3:] += 100
    values[3:] -= 100
    np.testing.assert_array_equal(gae(rewards, values, last_values, dones, 0.99, 0.95)[:3], before[:3])


@given(seed=st.integers(0, 2**31), n_steps=st.integers(1, 300), n_envs=st.integers(1, 3))
def test_discounted_sum_is_the_plain_loop(seed: int, n_steps: int, n_envs: int) -> None:
    rng = np.random.default_rng(seed)
    x, decay = rng.standard_normal((n_steps, n_envs)), rng.random((n_steps, n_envs)) * (rng.random((n_steps, n_envs)) > 0.1)
    expected, following = np.empty_like(x), np.zeros(n_envs)
    for t in reversed(range(n_steps)):
        following = x[t] + decay[t] * following
        expected[t] = following
    copies = x.copy(), decay.copy()
    np.testing.assert_allclose(discounted_sum(x, decay), expected, rtol=1e-10, atol=1e-11)
    np.testing.assert_array_equal((x, decay), copies)  # the arguments stay as they were


def test_the_sum_over_a_long_rollout_does_not_drift() -> None:
    # Σ_{k<n} dᵏ = (1 − dⁿ)/(1 − d) for constant summands, also in float32.
    n, d = 4096, 0.999
    total = discounted_sum(np.ones((n, 1), np.float32), np.full((n, 1), d, np.float32))
    remaining = n - np.arange(n)[:, None]
    np.testing.assert_allclose(total, (1 - d**remaining) / (1 - d), rtol=1e-4)


@given(
    rollout=rollouts(), gamma=fractions, gae_lambda=fractions, kind=st.sampled_from(["td_lambda", "td_zero", "monte_carlo"])
)
def test_numpy_and_torch_alike(
    rollout: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], gamma: float, gae_lambda: float, kind: ValueTarget
) -> None:
    tensors = tuple(th.from_numpy(array) for array in rollout)
    functions: list[Callable[..., Any]] = [
        partial(gae, gamma=gamma, gae_lambda=gae_lambda),
        partial(value_targets, kind, gamma=gamma, gae_lambda=gae_lambda),
    ]
    for function in functions:
        result = function(*tensors)
        assert isinstance(result, th.Tensor)
        np.testing.assert_allclose(result.numpy(), function(*rollout), rtol=1e-12, atol=1e-13)

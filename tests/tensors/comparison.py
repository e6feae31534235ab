"""The NumPy side of a tensor environment beside SB3's ``DummyVecEnv``."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv


def assert_equal(one: Any, other: Any) -> None:
    """Equal values, shapes and types of arrays or dicts of arrays."""
    if isinstance(one, dict):
        assert isinstance(other, dict) and set(one) == set(other), (one, other)
        for name in one:
            assert_equal(one[name], other[name])
        return
    assert np.asarray(one).dtype == np.asarray(other).dtype
    np.testing.assert_array_equal(one, other)


def assert_same_course(env: VecEnv, expected: VecEnv, n_steps: int, terminal_observations: bool = True) -> int:
    """
    Random actions in both, and everything that ``reset`` and ``step`` return.

    :param env: what is tested
    :param expected: the reference
    :param n_steps: how many steps
    :param terminal_observations: whether infos hold them
    :return: number of episodes that were cut off
    """
    random, cut_off = np.random.default_rng(0), 0
    assert_equal(env.reset(), expected.reset())
    kept = []
    for _ in range(n_steps):
        actions = random.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32)
        ours, theirs = env.step(actions), expected.step(actions)
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            assert_equal(one, other)
        for info, wanted in zip(ours[3], theirs[3], strict=True):
            if not terminal_observations:
                wanted.pop("terminal_observation", None)
            assert_equal(info, wanted)
            cut_off += wanted["TimeLimit.truncated"]
        kept.append((ours, theirs))
    for ours, theirs in kept:  # nothing that was returned is overwritten later
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            assert_equal(one, other)
    return cut_off

"""Where a life of an Atari game ends with the time limit."""

from typing import Any

import numpy as np
import pytest

from sb3_policyopt.envs import envpool_vec_env

pytest.importorskip("envpool")


def ends(n_steps: int, terminal_on_life_loss: bool = True, **settings: Any) -> list[tuple[int, int, bool]]:
    """Of Breakout under random actions: the step of each end, the lives left, and whether the limit alone ended it."""
    wrapper = {"stable_baselines3.common.atari_wrappers.AtariWrapper": {"terminal_on_life_loss": terminal_on_life_loss}}
    settings = {"num_threads": 1, **settings}
    env = envpool_vec_env("BreakoutNoFrameskip-v4", 1, seed=3, env_wrapper=wrapper, frame_stack=4, env_kwargs=settings)
    env.reset()
    rng, found = np.random.default_rng(0), []
    for step in range(1, n_steps + 1):
        _, _, (done,), (info,) = env.step(rng.integers(4, size=1))
        if done:
            found.append((step, int(info["lives"]), info["TimeLimit.truncated"]))
    env.close()
    return found


def test_a_life_that_is_lost_at_the_time_limit_is_an_end_of_its_own() -> None:
    first, lives, _ = ends(60)[0]
    assert lives == 4
    at_the_limit = ends(first + 20, max_episode_steps=first)
    assert at_the_limit[0] == (first, 4, False), "the game was cut off, but the life was lost"
    assert ends(first + 1, max_episode_steps=first + 1)[1] == (first + 1, 4, True), "the next life was cut off"
    assert ends(first, max_episode_steps=first - 1)[0] == (first - 1, 5, True)
    of_whole_games = ends(first, terminal_on_life_loss=False, max_episode_steps=first)
    assert of_whole_games[0][1:] == (4, True), "where a life is no end, only the limit ended it"

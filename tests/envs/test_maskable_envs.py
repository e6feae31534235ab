"""MaskedRoute and MaskedWorkshop: masks, seeds, pictures, and what masks are worth there."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import sb3_policyopt.envs  # noqa: F401  registers them
from sb3_policyopt import PPO, TRPO, MaskablePPO, MaskableTRPO
from sb3_policyopt.envs.maskable import MaskedRoute, MaskedWorkshop
from sb3_policyopt.evaluation import evaluate_policy

IDS = ["MaskedRoute-v0", "MaskedWorkshop-v0"]


def allowed_action(env: Any, rng: np.random.Generator) -> Any:
    masks = env.get_wrapper_attr("action_masks")()
    if isinstance(env.action_space, gym.spaces.Discrete):
        return rng.choice(np.flatnonzero(masks))
    return np.array([rng.choice(np.flatnonzero(row)) for row in masks.reshape(env.action_space.nvec.size, -1)])


def episode(env: Any, seed: int) -> list[Any]:
    """Observations, rewards and masks of an episode of allowed actions."""
    rng, done = np.random.default_rng(seed), False
    seen = [env.reset(seed=seed)[0]]
    while not done:
        seen.append(env.get_wrapper_attr("action_masks")())
        observation, reward, terminated, truncated, _ = env.step(allowed_action(env, rng))
        seen += [observation, np.asarray(reward)]
        done = terminated or truncated
    return seen


@pytest.mark.parametrize("env_id", IDS)
def test_checkers_pass_and_episodes_follow_their_seed(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)
    sb3_check_env(gym.make(env_id).unwrapped)
    assert is_masking_supported(gym.make(env_id))
    one, same, other = (episode(gym.make(env_id), seed) for seed in (1, 1, 2))
    assert len(one) == len(same) and all(map(np.array_equal, one, same))
    assert len(one) != len(other) or not all(map(np.array_equal, one, other))


@pytest.mark.parametrize("env_id", IDS)
def test_pictures(env_id: str) -> None:
    env: Any = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8 and before.shape[2] == 3 and before.shape[0] % 32 == before.shape[1] % 32 == 0
    for _ in range(3):
        env.step(allowed_action(env, np.random.default_rng(0)))
    assert (env.render() != before).any()
    assert gym.make(env_id).unwrapped.render() is None
    with pytest.raises(ValueError, match="render_mode"):
        type(env.unwrapped)(render_mode="ansi")


def test_masks_of_the_route_are_the_neighbours() -> None:
    """side 4: the wall is the second row but for its third and its last cell, 6 and 7."""
    env = MaskedRoute(side=4)
    assert env.walls.ravel().nonzero()[0].tolist() == [4, 5]
    env.reset(seed=0)
    # above 4 there is nothing to the left, below it a wall; 6 has three neighbours and a wall; 15 is the corner
    for cell, neighbours in {0: [1], 2: [1, 3, 6], 6: [2, 7, 10], 14: [10, 13, 15]}.items():
        env.cell = cell
        assert env.action_masks().nonzero()[0].tolist() == neighbours
    env.cell = 6
    _, reward, terminated, truncated, _ = env.step(5)
    assert (env.cell, reward, terminated, truncated) == (6, -0.01, False, False), "a wall"
    env.cell = 14
    assert env.step(15)[1:4] == (0.99, True, False)


@pytest.mark.parametrize("side", [3, 4, 7, 8, 9])
def test_every_cell_has_a_way_to_the_corner(side: int) -> None:
    env = MaskedRoute(side=side)
    reached, new = {env.goal}, [env.goal]
    while new:
        env.cell = new.pop()
        neighbours = set(env.action_masks().nonzero()[0].tolist()) - reached
        reached |= neighbours
        new += neighbours
    assert reached == set(env.free)


def test_workers_do_what_they_know_and_share_the_last_job() -> None:
    env = MaskedWorkshop(n_workers=2, n_kinds=4)
    # kinds {0, 1, 3} and {2, 3, 1}: with two workers, the second begins two kinds later
    assert env.knows.astype(int).tolist() == [[1, 1, 0, 1], [0, 1, 1, 1]]
    env.reset(seed=0)
    env.arrival = 0.0
    env.waiting = np.array([1, 0, 3, 1])
    assert env.action_masks().astype(int).tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    _, reward, *_ = env.step([4, 4])
    assert reward == 0.5 and env.waiting.tolist() == [1, 0, 3, 0], "one job of value 1, two workers"
    _, reward, *_ = env.step([3, 3])
    assert reward == 0.375 and env.waiting.tolist() == [1, 0, 2, 0], "the first does not know kind 2, of value 3/4"


@pytest.mark.parametrize("arguments", [{"n_kinds": 3}, {"n_workers": 0}])
def test_wrong_sizes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        MaskedWorkshop(**arguments)
    with pytest.raises(ValueError, match="side must be at least 3"):
        MaskedRoute(side=2)


def test_worker_processes_hand_masks_over() -> None:
    env = make_vec_env("sb3_policyopt.envs:MaskedRoute-v0", 2, seed=0, vec_env_cls=SubprocVecEnv)
    env.reset()
    assert get_action_masks(env).shape == (2, 64)
    MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(32)
    env.close()


def test_importing_the_package_registers_nothing() -> None:
    code = "import sb3_policyopt, gymnasium, sys; print('MaskedRoute-v0' in gymnasium.registry, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("masked", [MaskablePPO, MaskableTRPO])
def test_masks_find_the_way_that_is_not_found_without_them(masked: type[Any]) -> None:
    """Of 64 cells 2 to 4 may be named: in 8,192 steps only an agent with masks comes to the corner nearly always."""
    plain = PPO if masked is MaskablePPO else TRPO
    options: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    scores = []
    for algorithm in (masked, plain):
        model = algorithm("MlpPolicy", make_vec_env("MaskedRoute-v0", 8, seed=0), **options).learn(8192)
        mean, _ = evaluate_policy(model, make_vec_env("MaskedRoute-v0", 1, seed=1), 20, deterministic=False)
        scores.append(mean)
    assert scores[0] > 0.5 > scores[1] + 0.5, scores

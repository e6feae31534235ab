"""EnvPool against Gymnasium: the same physics and the same ``VecEnv`` contract as ``DummyVecEnv``."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_policyopt.envs import envpool_vec_env, make_envpool

pytest.importorskip("envpool")


def always(action: int, env: VecEnv) -> np.ndarray:
    """The policy that ignores what it sees."""
    return np.array([action] * env.num_envs)


def set_cartpole(env: Any, obs: np.ndarray) -> None:
    env.unwrapped.state = np.array(obs, dtype=np.float64)


def set_mountain_car(env: Any, obs: np.ndarray) -> None:
    env.unwrapped.state = np.array(obs, dtype=np.float64)


def set_pendulum(env: Any, obs: np.ndarray) -> None:
    env.unwrapped.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]], dtype=np.float64)


def set_half_cheetah(env: Any, obs: np.ndarray) -> None:
    # The first observation leaves out only x, on which neither dynamics nor reward depend.
    env.unwrapped.set_state(np.concatenate([[0.0], obs[:8]]), np.asarray(obs[8:]))


def replayed_episode(
    env_id: str, set_state: Callable[..., Any], first_obs: np.ndarray, actions: np.ndarray, limit: int
) -> Iterator[tuple[Any, ...]]:
    """Gymnasium's own episode from the state that EnvPool started in."""
    env = Monitor(gym.make(env_id, max_episode_steps=limit))
    env.reset(seed=0)
    set_state(env, first_obs)
    for step, action in enumerate(actions):
        obs, reward, terminated, truncated, info = env.step(action)
        yield step, obs, reward, terminated, truncated, info
        if terminated or truncated:
            return


@pytest.mark.parametrize(
    ("env_id", "set_state", "limit", "tolerance"),
    [
        ("CartPole-v1", set_cartpole, 20, 1e-5),
        ("MountainCar-v0", set_mountain_car, 30, 1e-5),
        ("Pendulum-v1", set_pendulum, 15, 1e-4),
        ("HalfCheetah-v5", set_half_cheetah, 10, 1e-5),
    ],
)
def test_every_step_is_gymnasiums_own(env_id: str, set_state: Callable[..., Any], limit: int, tolerance: float) -> None:
    n_envs, n_steps = 4, 60
    env = make_envpool(env_id, n_envs, seed=3, max_episode_steps=limit, num_threads=1)
    rng = np.random.default_rng(0)
    space = gym.make(env_id).action_space
    space.seed(0)
    actions = np.array([[space.sample() for _ in range(n_envs)] for _ in range(n_steps)])
    if env_id == "CartPole-v1":
        # A mixture of poles that fall before the limit and poles that stand.
        actions[:, : n_envs // 2] = 1
        actions[:, n_envs // 2 :] = rng.integers(0, 2, (n_steps, n_envs - n_envs // 2))
    obs: Any = env.reset()
    started = [0] * n_envs
    replays = [replayed_episode(env_id, set_state, obs[i], actions[:, i], limit) for i in range(n_envs)]
    episodes = 0
    for t in range(n_steps):
        obs, rewards, dones, infos = env.step(actions[t])
        assert rewards.dtype == np.float32
        assert dones.dtype == bool
        for i in range(n_envs):
            _, expected_obs, reward, terminated, truncated, expected_info = next(replays[i])
            assert dones[i] == (terminated or truncated), f"step {t} of environment {i}"
            assert infos[i]["TimeLimit.truncated"] == (truncated and not terminated)
            np.testing.assert_allclose(rewards[i], reward, atol=tolerance, rtol=tolerance)
            last = infos[i]["terminal_observation"] if dones[i] else obs[i]
            np.testing.assert_allclose(last, expected_obs, atol=tolerance, rtol=tolerance)
            assert ("episode" in infos[i]) == dones[i]
            if dones[i]:
                episodes += 1
                expected = expected_info["episode"]
                assert infos[i]["episode"]["l"] == expected["l"] == t + 1 - started[i]
                assert infos[i]["episode"]["r"] == pytest.approx(expected["r"], abs=expected["l"] * 10 * tolerance)
                assert infos[i]["episode"]["t"] >= 0
                # The action of the next step acts on the new episode, none is swallowed by a reset.
                started[i] = t + 1
                replays[i] = replayed_episode(env_id, set_state, obs[i], actions[t + 1 :, i], limit)
    assert episodes >= n_envs * (n_steps // limit)
    env.close()


def test_falling_at_the_time_limit_is_termination() -> None:
    """A pole pushed one way falls at its own time; with the limit at just that step it has still fallen."""
    env = make_envpool("CartPole-v1", n_envs=8, seed=1)
    env.reset()
    lengths: dict[int, int] = {}
    while len(lengths) < 8:
        _, _, dones, infos = env.step(always(0, env))
        for i in np.flatnonzero(dones):
            lengths.setdefault(int(i), infos[i]["episode"]["l"])
    limit = sorted(lengths.values())[4]
    limited = make_envpool("CartPole-v1", n_envs=8, seed=1, max_episode_steps=limit)
    limited.reset()
    ended: dict[int, tuple[int, bool]] = {}
    for _ in range(limit):
        _, _, dones, infos = limited.step(always(0, limited))
        for i in np.flatnonzero(dones):
            ended.setdefault(int(i), (infos[i]["episode"]["l"], infos[i]["TimeLimit.truncated"]))
    assert ended == {i: (min(length, limit), length > limit) for i, length in lengths.items()}
    assert (limit, False) in ended.values()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "LunarLander-v3"])
def test_a_fixed_policy_fares_as_in_dummy_vec_env(env_id: str) -> None:
    """Random start states differ, their distribution does not: mean return and length agree within 4.5 standard errors."""
    n_episodes = 100

    def returns_and_lengths(env: VecEnv) -> np.ndarray:
        found = []
        env.reset()
        finished = np.zeros(env.num_envs, dtype=int)
        while finished.min() < n_episodes // env.num_envs:
            _, _, dones, infos = env.step(always(1, env))
            # The same number of episodes from every environment, or short ones would be preferred.
            for i in np.flatnonzero(dones):
                if finished[i] < n_episodes // env.num_envs:
                    found.append((infos[i]["episode"]["r"], infos[i]["episode"]["l"]))
                finished[i] += 1
        return np.array(found)

    # A limit makes Acrobot, which hangs on under a constant torque, fast; both get it.
    ours = returns_and_lengths(make_envpool(env_id, 20, seed=0, max_episode_steps=100))
    theirs = returns_and_lengths(make_vec_env(env_id, 20, seed=0, env_kwargs={"max_episode_steps": 100}))
    standard_error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / n_episodes)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 4.5 * standard_error + 1e-9).all()


def test_seeds_are_per_environment_and_used_once() -> None:
    def first_and_next(seed: int, n_envs: int) -> np.ndarray:
        env = make_envpool("CartPole-v1", n_envs, seed=seed, num_threads=2)
        observations = [env.reset()]
        for _ in range(30):
            observations.append(env.step(always(0, env))[0])
        observations.append(env.reset())
        return np.array(observations)

    np.testing.assert_array_equal(first_and_next(7, 4), first_and_next(7, 4))
    # Environment i of seed s is environment 0 of seed s + i, as SB3 counts them.
    np.testing.assert_array_equal(first_and_next(7, 4)[:, 2], first_and_next(9, 1)[:, 0])
    assert not np.array_equal(first_and_next(7, 4)[0], first_and_next(7, 4)[-1]), "a second reset goes on, it does not repeat"
    one, other = (np.asarray(make_envpool("CartPole-v1").reset()) for _ in range(2))
    assert not np.array_equal(one, other)


def test_seed_after_the_first_reset() -> None:
    env = make_envpool("CartPole-v1", 2)
    env.reset()
    assert env.seed(2**32 - 1) == [2**32 - 1, 2**32]
    first = env.reset()
    env.step(always(0, env))
    env.seed(2**32 - 1)
    np.testing.assert_array_equal(env.reset(), first)


def test_returned_arrays_stay_as_they_are() -> None:
    env = make_envpool("CartPole-v1", 3, seed=0)
    kept: list[Any] = [env.reset()]
    copies = [kept[0].copy()]
    for _ in range(40):
        obs: Any = env.step(always(0, env))[0]
        kept.append(obs)
        copies.append(obs.copy())
    np.testing.assert_array_equal(np.array(kept), np.array(copies))


@pytest.mark.fast
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "LunarLander-v3", "FrozenLake-v1"])
def test_spaces_are_gymnasiums(env_id: str) -> None:
    env: Any = make_envpool(env_id, 2)
    reference: Any = DummyVecEnv([lambda: gym.make(env_id)])
    assert env.observation_space == reference.observation_space
    assert env.action_space == reference.action_space
    obs = env.reset()
    assert obs.shape[1:] == reference.reset().shape[1:]
    assert obs.dtype == reference.reset().dtype
    assert env.step(np.array([env.action_space.sample() for _ in range(2)]))[0].shape == obs.shape


@pytest.mark.fast
def test_dict_observations() -> None:
    env: Any = make_envpool("MiniGrid-DoorKey-5x5-v0", 3, seed=0, max_episode_steps=5)
    first = env.reset()
    for step in range(1, 11):
        obs, _, dones, infos = env.step(always(0, env))
        assert dones.all() == (step % 5 == 0)
        assert {key: value.shape for key, value in obs.items()} == {key: value.shape for key, value in first.items()}
        assert env.observation_space.contains({key: value[0] for key, value in obs.items()})
        if dones.all():
            # It turned left at every of five steps, the first one included.
            last = np.array([info["terminal_observation"]["direction"] for info in infos])
            np.testing.assert_array_equal(last, (first["direction"] - 5) % 4)
            first = obs
            assert all(info["TimeLimit.truncated"] for info in infos)


def test_atari_statistics_are_of_whole_games_and_unclipped_rewards() -> None:
    wrapper = ["stable_baselines3.common.atari_wrappers.AtariWrapper"]
    env = envpool_vec_env("BreakoutNoFrameskip-v4", 4, seed=0, env_wrapper=wrapper, frame_stack=4)
    assert env.observation_space.shape == (4, 84, 84)
    env.reset()
    rng = np.random.default_rng(0)
    rewards_of_game, steps_of_game, lives_lost, games = np.zeros(4), np.zeros(4, dtype=int), np.zeros(4, dtype=int), 0
    for _ in range(700):
        _, rewards, dones, infos = env.step(rng.integers(0, 4, 4))
        rewards_of_game += rewards
        steps_of_game += 1
        lives_lost += dones
        assert set(np.unique(rewards)) <= {-1.0, 0.0, 1.0}
        for i in np.flatnonzero(dones):
            assert infos[i]["TimeLimit.truncated"] is False
            assert ("episode" in infos[i]) == (infos[i]["lives"] == 0)
            if "episode" in infos[i]:
                assert lives_lost[i] == 5
                # The lowest bricks give one point each, the next rows four: unclipped returns are at least the clipped ones.
                assert infos[i]["episode"]["r"] >= rewards_of_game[i]
                assert infos[i]["episode"]["l"] == 4 * steps_of_game[i]
                rewards_of_game[i], steps_of_game[i], lives_lost[i] = 0, 0, 0
                games += 1
    assert games > 4
    env.close()


def test_monitor_file_is_read_by_sb3(tmp_path: Path) -> None:
    env = envpool_vec_env("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path), info_keywords=("elapsed_step",))
    env.reset()
    episodes: list[Any] = []
    while len(episodes) < 6:
        _, _, _, infos = env.step(always(0, env))
        episodes += [info["episode"] for info in infos if "episode" in info]
    env.close()
    table = load_results(str(tmp_path))
    assert table["l"].tolist() == [episode["l"] for episode in episodes]
    assert table["r"].tolist() == [episode["r"] for episode in episodes]
    assert table["elapsed_step"].tolist() == table["l"].tolist()


@pytest.mark.fast
def test_the_vec_env_interface() -> None:
    env = make_envpool("CartPole-v1", 3, seed=0)
    assert env.get_attr("render_mode") == [None, None, None]
    assert env.get_attr("action_space", indices=[0, 2]) == [env.action_space] * 2
    assert not env.has_attr("state")
    assert env.env_is_wrapped(Monitor, indices=1) == [True]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.FrameStackObservation) == [False] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == make_vec_env("CartPole-v1", 3).env_is_wrapped(gym.wrappers.TimeLimit)
    with pytest.raises(AttributeError, match="no Python attribute 'state'"):
        env.get_attr("state")
    with pytest.raises(AttributeError, match="cannot be set"):
        env.set_attr("gravity", 1.0)
    with pytest.raises(AttributeError, match="no method 'seed'"):
        env.env_method("seed")
    with pytest.raises(ValueError, match="no options at reset"):
        env.set_options({"low": 0.0})
    env.set_options(None)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step(always(0, env))
    env.reset()
    env.step_async(always(0, env))
    with pytest.raises(RuntimeError, match="twice"):
        env.step_async(always(0, env))
    assert np.asarray(env.reset()).shape == (3, 4), "a reset cancels the step under way"
    env.step_async(always(0, env))
    env.close()
    env.close()
    for use in (env.reset, lambda: env.step(always(0, env))):
        with pytest.raises(RuntimeError, match="closed"):
            use()


@pytest.mark.fast
def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="no environment 'CartPole-v9'"):
        make_envpool("CartPole-v9")
    with pytest.raises(ValueError, match="n_envs"):
        make_envpool("CartPole-v1", 0)
    with pytest.raises(ValueError, match="gravity"):
        make_envpool("CartPole-v1", gravity=3)
    with pytest.raises(ValueError, match="render_mode"):
        make_envpool("CartPole-v1", 1).get_images()
    env = make_envpool("CartPole-v1", 2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match="reshape"):
        env.step(np.zeros(3, dtype=int))


def test_rendering() -> None:
    env: Any = make_envpool("CartPole-v1", 2, seed=0, render_mode="rgb_array")
    env.reset()
    assert env.render_mode == "rgb_array"
    images = env.get_images()
    assert len(images) == 2
    assert images[0].shape == (400, 600, 3)
    assert len(np.unique(images[0])) > 2
    assert env.render("rgb_array").shape[2] == 3


def test_zoo_words_that_envpool_cannot_follow() -> None:
    atari_wrapper = "stable_baselines3.common.atari_wrappers.AtariWrapper"
    with pytest.raises(ValueError, match=r"gymnasium.wrappers.FlattenObservation.* cannot be applied"):
        envpool_vec_env("CartPole-v1", env_wrapper="gymnasium.wrappers.FlattenObservation")
    with pytest.raises(ValueError, match="frame_stack=4"):
        envpool_vec_env("CartPole-v1", frame_stack=4)
    with pytest.raises(ValueError, match="NoFrameskip"):
        envpool_vec_env("CartPole-v1", env_wrapper=atari_wrapper)
    with pytest.raises(ValueError, match="raw frames"):
        envpool_vec_env("PongNoFrameskip-v4")
    with pytest.raises(ValueError, match="colour"):
        envpool_vec_env("PongNoFrameskip-v4", env_wrapper=[{atari_wrapper: {"colour": True}}])


def test_atari_wrapper_arguments_reach_envpool() -> None:
    wrapper = {"stable_baselines3.common.atari_wrappers.AtariWrapper": {"screen_size": 42, "terminal_on_life_loss": False}}
    env = envpool_vec_env("BreakoutNoFrameskip-v4", 1, seed=0, env_wrapper=[None, wrapper], frame_stack=2)
    assert np.asarray(env.reset()).shape == (1, 2, 42, 42)
    done = False
    for _ in range(2000):
        _, _, (done,), infos = env.step(np.array([1]))
        if done:
            break
    assert done
    assert infos[0]["lives"] == 0, "the episode ends with the game"


def test_sb3_trains_evaluates_and_takes_the_model_elsewhere(tmp_path: Path) -> None:
    env = VecNormalize(make_envpool("CartPole-v1", 8, seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu")
    model.learn(64 * 8 * 2)
    assert model.ep_info_buffer is not None
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    assert len(lengths) > 8
    assert min(lengths) > 1, "no episode of a single step, as a swallowed reset would look like"
    evaluation = make_envpool("CartPole-v1", 2, seed=1)
    returns, episode_lengths = evaluate_policy(model, evaluation, 5, return_episode_rewards=True)
    assert isinstance(episode_lengths, list) and returns == [float(length) for length in episode_lengths]
    model.save(tmp_path / "model")
    PPO.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 8)).learn(512)


def test_vec_monitor_agrees() -> None:
    def first_episodes(env: VecEnv) -> list[Any]:
        env.reset()
        episodes: list[Any] = []
        while len(episodes) < 10:
            episodes += [info["episode"] for info in env.step(always(0, env))[3] if "episode" in info]
        return [(episode["r"], episode["l"]) for episode in episodes]

    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        counted_by_sb3 = VecMonitor(make_envpool("CartPole-v1", 4, seed=0))
    assert first_episodes(counted_by_sb3) == first_episodes(make_envpool("CartPole-v1", 4, seed=0))


def test_importing_the_module_does_not_import_envpool() -> None:
    code = "import sys, sb3_policyopt.envs; assert 'envpool' not in sys.modules and 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""``is_success``, of which SB3 makes ``rollout/success_rate`` and ``eval/success_rate``, beside ``DummyVecEnv``."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import stable_baselines3
import torch as th
from fake_simulator import LIMIT, Clock, FakeManiSkill, FakeTensorEnv
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tensor_models import AutoresetMode, gymnasium_1_1, model_on

from sb3_policyopt import PPO
from sb3_policyopt.envs.tensors import TensorStep, TensorVecNormalize, from_gymnasium_vector

N, T = 7, 24


class Judged(Clock):
    """
    Some episodes are successes, and environment 2 does not tell. In all other steps, and at resets, infos say the contrary.

    :param number: of the environment
    :param kind: of what it tells
    """

    def __init__(self, number: int, kind: Callable[[Any], Any]) -> None:
        super().__init__(number)
        self.kind = kind

    def info(self, ended: bool) -> dict[str, Any]:
        return {} if self.number == 2 else {"is_success": self.kind(success(self.number, self.episode) == ended)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, self.info(ended=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *given, _ = super().step(action)
        return (*given, self.info(ended=given[2] or given[3]))  # type: ignore[return-value]


def success(number: int, episode: int) -> bool:
    return (number + episode) % 3 == 0


def functions(kind: Callable[[Any], Any]) -> list[Callable[[], gym.Env[Any, Any]]]:
    return [functools.partial(Judged, number, kind) for number in range(N)]


@gymnasium_1_1
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    "kind", [bool, np.bool_, float, lambda value: np.array([value])], ids=["bool", "bool_", "float", "array"]
)
def test_equal_those_of_dummy_vec_env(kind: Any, normalised: bool, tmp_path: Path) -> None:
    def env() -> Any:
        made = from_gymnasium_vector(SyncVectorEnv(functions(kind), autoreset_mode=AutoresetMode.SAME_STEP))
        return TensorVecNormalize(made) if normalised else made

    def evaluates(evaluated: Any, folder: str) -> EvalCallback:
        return EvalCallback(evaluated, eval_freq=T, n_eval_episodes=20, log_path=str(tmp_path / folder), verbose=0)

    mine, stock = evaluates(env(), "ours"), evaluates(VecMonitor(DummyVecEnv(functions(kind))), "theirs")
    ours = model_on(PPO, env(), n_steps=T, batch_size=N * T, stats_window_size=1000)
    ours.set_logger(configure(str(tmp_path / "log"), ["csv"]))
    ours.learn(2 * N * T, mine)
    theirs = model_on(
        stable_baselines3.PPO, DummyVecEnv(functions(kind)), n_steps=T, batch_size=N * T, stats_window_size=1000
    ).learn(2 * N * T, stock)
    found, wanted = (np.ravel(model.ep_success_buffer).tolist() for model in (ours, theirs))
    assert found == wanted and len(found) > 60 and 0 < np.mean(found) < 1
    logged = pd.read_csv(tmp_path / "log" / "progress.csv")
    assert logged["rollout/success_rate"].dropna().iloc[-1] == pytest.approx(np.mean(wanted))
    assert logged["eval/success_rate"].notna().any()
    assert [len(row) for row in mine.evaluations_successes] == [len(row) for row in stock.evaluations_successes]
    for one, other in zip(mine.evaluations_successes, stock.evaluations_successes, strict=True):
        np.testing.assert_array_equal(np.ravel(one), np.ravel(other))


@gymnasium_1_1
@pytest.mark.parametrize("kind", [bool, float])
def test_of_environments_that_reset_themselves_in_a_step_of_their_own(kind: Any) -> None:
    env = from_gymnasium_vector(SyncVectorEnv(functions(kind)))
    model = model_on(PPO, env, n_steps=T, batch_size=32, stats_window_size=1000).learn(2 * N * T)
    expected = []
    for number in range(N):
        step = episode = 0
        while (step := step + min(2 + (3 * number + 2 * episode) % 7, LIMIT)) <= 2 * T:
            if number != 2:
                expected.append((step, number, success(number, episode)))
            step, episode = step + 1, episode + 1  # the reset
    assert [bool(value) for value in model.ep_success_buffer] == [told for _, _, told in sorted(expected)]
    env.reset()
    seen = 0
    for _ in range(30):
        _, _, dones, infos = env.step(np.zeros((N, 2), np.float32))
        for ended in np.flatnonzero(dones):
            assert ("is_success" in infos[ended]) == (ended != 2)
            seen += 1
    assert seen > N


def test_maniskill_calls_it_success() -> None:
    """In its infos of the end, as tensors without masks."""

    class Judges(FakeManiSkill):
        def step(self, actions: th.Tensor) -> Any:
            episode = self.episode.clone()
            *given, infos = super().step(actions)
            told = (self.number + episode) % 3 == 0
            ended = given[2] | given[3]
            infos |= {"success": ~told} | ({"final_info": {"success": told}, "_final_info": ended} if ended.any() else {})
            return (*given, infos)

    model = model_on(PPO, from_gymnasium_vector(Judges(N)), n_steps=T, batch_size=N * T, stats_window_size=1000).learn(N * T)
    expected = []
    for number in range(N):
        step = episode = 0
        while (step := step + min(2 + (3 * number + 2 * episode) % 7, LIMIT)) <= T:
            expected.append((step, number, success(number, episode)))
            episode += 1
    assert list(model.ep_success_buffer) == [told for _, _, told in sorted(expected)]


class Tells(FakeTensorEnv):
    """Tells in some steps only, and there of some environments only, with numbers that the next step overwrites."""

    def __init__(self) -> None:
        super().__init__(N)
        self.success, self.told = th.zeros(N), th.zeros(N, dtype=th.bool)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        step = super().step_tensors(actions)
        ended = int(self.simulator.steps[0]) % 2 == 0  # of environment 0: every second step
        extras = {name: value for name, value in step.extras.items() if name == "final_obs"}
        if ended:
            self.success.copy_(self.simulator.number / 8)
            self.told.copy_(self.simulator.number != 1)
            extras |= {"is_success": self.success, "_is_success": self.told}
        return step._replace(extras=extras)


def test_environments_of_ones_own() -> None:
    """The tensor side, the NumPy side and callbacks agree."""

    class Looks(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def _on_step(self) -> bool:
            for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
                assert done or "is_success" not in info
                self.seen += [info["is_success"]] if "is_success" in info else []
            return True

    looks = Looks()
    model = model_on(PPO, Tells(), n_steps=T, batch_size=N * T, stats_window_size=1000).learn(2 * N * T, looks)
    env, expected, without = Tells(), [], 0
    env.reset()
    for _ in range(2 * T):
        _, _, dones, infos = env.step(np.zeros((N, 2), np.float32))
        expected += [infos[number]["is_success"] for number in np.flatnonzero(dones) if "is_success" in infos[number]]
        without += sum("is_success" not in infos[number] for number in np.flatnonzero(dones))
    assert list(model.ep_success_buffer) == looks.seen == expected
    assert without > 10 and 0.125 not in expected and {0.25, 0.375} <= set(expected)

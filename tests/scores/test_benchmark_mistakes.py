"""Mistakes on the command lines of the benchmarks: one sentence and exit code 2, before anything is trained."""

import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.scores import entries, search, train
from benchmarks.scores.__main__ import main

ENV = "InvertedPendulum-v5"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train --env HalfCheeta-v5", "there is no environment HalfCheeta-v5, did you mean HalfCheetah-v5?"),
        ("search --algo ppo --env HalfCheeta-v5", "there is no environment HalfCheeta-v5, did you mean HalfCheetah-v5?"),
        (f"train --env {ENV} --entry sharedd", "has no entry 'sharedd' for ppo; it has "),
        (f"search --algo trpo --env {ENV} --entry sharedd", "has no entry 'sharedd' for trpo; it has "),
        (f"stock --env {ENV} --entry 'shipped gamma'", "a change of an entry is written key=value"),
        (f"train --env {ENV} --candidates nosuch.yml --entry a", "nosuch.yml"),
        (f"train --env {ENV} --jobs 0", "argument --jobs: must be a whole number of at least 1, got '0'"),
        (f"train --env {ENV} -n -5", "argument -n/--n-timesteps: must be a whole number of at least 1, got '-5'"),
        (f"search --algo ppo --env {ENV} --trials many", "argument --trials: must be a whole number"),
    ],
)
def test_a_mistake_of_the_scores_is_one_sentence(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last and expected in last


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--only nothing", "--only nothing: no case or group has such a name"),
        ("--only nothing --list", "--only nothing: no case or group has such a name"),
        ("--sweep --only nothing", "--only nothing: no cell of the sweep has such a name"),
        ("--only (", "argument --only: '(' is no regular expression"),
        ("--report", "results.json cannot be read"),
    ],
)
def test_a_mistake_of_the_speeds_is_one_sentence(
    command: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *command.split(), "--output", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks", run_name="__main__")
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_search_without_a_complete_trial_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, options: Any) -> float:
        raise RuntimeError("a training failed")

    command = ["search", "--algo", "trpo", "--env", ENV, "--trials", "1", "--work", str(tmp_path)]
    with monkeypatch.context() as context:
        context.setattr(search, "score", fail)
        assert main(command) == 1
    assert "no trial of the study came to its end" in capsys.readouterr().err
    monkeypatch.setattr(search, "score", lambda name, options: 1.0)
    assert main(command) == 0


@pytest.mark.parametrize("name", ["target_kl", "cg_damping"])
def test_contrib_has_no_schedules_of_its_trust_region(name: str) -> None:
    entry = {"target_kl": 0.06, "cg_damping": 0.3, "gamma": 0.9}
    assert entries.on_the_scale_of_contrib(entry, 3) == pytest.approx({"target_kl": 0.02, "cg_damping": 0.1, "gamma": 0.9})
    with pytest.raises(ValueError, match=f"sb3-contrib's {name} is a number, not a schedule such as 'lin_0.1'"):
        entries.on_the_scale_of_contrib({**entry, name: "lin_0.1"}, 3)


class Acting(gym.Env[Any, Any]):
    """Has actions of some space."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, space: gym.Space[Any]) -> None:
        self.action_space = space


@pytest.mark.parametrize(
    ("space", "dimensions"),
    [
        (gym.spaces.Box(-1.0, 1.0, (2, 3)), 6),
        (gym.spaces.Box(-1.0, 1.0, (4,)), 4),
        (gym.spaces.MultiBinary(5), 5),
        (gym.spaces.MultiDiscrete([3, 2]), 1),  # contrib takes their sum
        (gym.spaces.Discrete(7), 1),
    ],
)
def test_dimensions_are_those_over_which_contrib_takes_the_mean(space: gym.Space[Any], dimensions: int) -> None:
    gym.register("scores/Acting-v0", entry_point=lambda **_: Acting(space))
    try:
        assert train.action_dimensions("scores/Acting-v0") == dimensions
    finally:
        del gym.registry["scores/Acting-v0"]

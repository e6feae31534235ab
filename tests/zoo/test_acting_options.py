"""``enjoy``, ``record_video`` and ``benchmark`` with impossible options, and with an environment whose id has a dot."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from gymnasium.envs.classic_control import CartPoleEnv

from sb3_policyopt import PPO
from sb3_policyopt.cli.main import main

Process = Callable[..., subprocess.CompletedProcess[str]]
DOTTED = "ns/Cart.Pole-v0"


@pytest.fixture(autouse=True)
def one_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "logs" / "ppo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(run / "CartPole-v1.zip")
    (run / "CartPole-v1" / "args.yml").write_text(
        yaml.safe_dump({"env": "CartPole-v1", "env_kwargs": None, "n_timesteps": 3000})
    )
    (run / "CartPole-v1" / "config.yml").write_text(yaml.safe_dump({"n_timesteps": 100000}))
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("enjoy --no-render --env-kwargs nope:1", "--env-kwargs: CartPoleEnv.__init__() got an unexpected keyword argument"),
        ("record_video --env-kwargs nope:1 -o film", "got an unexpected keyword argument 'nope'"),
        ("enjoy --no-render --n-envs 0", "--n-envs must be at least 1, got 0"),
        ("record_video --n-envs 0", "--n-envs must be at least 1, got 0"),
        ("record_training --n-envs 0", "--n-envs must be at least 1, got 0"),
        ("enjoy --no-render --seed -1", "--seed must be from 0 to 4294967295, got -1"),
        ("record_video --seed -1", "--seed must be from 0 to 4294967295, got -1"),
        ("benchmark --log-dir logs --no-hub --seed -1", "--seed must be from 0 to 4294967295, got -1"),
        ("enjoy --no-render --device foo", "--device foo: torch has no such device; write auto, cpu, cuda or cuda:0"),
        ("record_video -n 0", "--n-timesteps must be at least 1, got 0"),
        ("record_video -o file", "-o file: file is a file, not a folder; name a folder"),
        ("record_video -o file/films", "-o file/films: file is a file, not a folder; name a folder"),
        ("benchmark --log-dir logs --no-hub --gym-packages nosuch", "--gym-packages nosuch: No module named 'nosuch'"),
    ],
)
def test_an_impossible_option_is_one_sentence(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sb3-policyopt: ") and expected in error


def test_an_unknown_option_of_a_script_is_one_line(one_agent: Path, process: Process) -> None:
    result = process(["-m", "sb3_policyopt", "record_video", "--nosuchflag"], one_agent)
    assert result.returncode == 2
    assert result.stderr.startswith("sb3-policyopt: record_video: unrecognized") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["record_video", "record_training", "benchmark"])
def test_help_names_the_option_that_is_added(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "--gym-packages" in capsys.readouterr().out


@pytest.mark.slow
def test_benchmark_without_the_hub_is_one_sentence(one_agent: Path, process: Process) -> None:
    result = process(["-m", "sb3_policyopt", "benchmark", "--log-dir", "logs"], one_agent, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("sb3-policyopt: ") and "with --no-hub it evaluates those of --log-dir only" in sentence
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_benchmark_without_a_row_leaves_the_table_of_before(one_agent: Path, process: Process) -> None:
    (one_agent / "benchmark.md").write_text("before")
    (one_agent / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").unlink()
    result = process(["-m", "sb3_policyopt", "benchmark", "--log-dir", "logs", "--no-hub"], one_agent)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "sb3-policyopt: no agent of logs was evaluated" in result.stderr.strip().splitlines()[-1]
    assert (one_agent / "benchmark.md").read_text() == "before"


def test_benchmark_tells_the_steps_of_the_command_line(one_agent: Path, process: Process) -> None:
    """rl-zoo3 tells those of the configuration, 100k here."""
    command = "benchmark --log-dir logs --no-hub -n 600 --benchmark-dir evaluations"
    result = process(["-m", "sb3_policyopt", *command.split()], one_agent)
    assert result.returncode == 0, result.stderr
    (row,) = [line for line in (one_agent / "benchmark.md").read_text().splitlines() if line.startswith("|ppo")]
    assert row.split("|")[5].strip() == "3k"


def test_an_environment_whose_id_has_a_dot(capsys: pytest.CaptureFixture[str]) -> None:
    """SB3 saves it without .zip, and beside the folder of that name."""
    gym.register(DOTTED, lambda **options: CartPoleEnv(**options), max_episode_steps=20)
    try:
        options = "-n 128 --eval-freq 64 --eval-episodes 1 -params n_envs:1 n_steps:64 batch_size:64 normalize:True"
        options += " policy:'\"MlpPolicy\"'"
        assert main(shlex.split(f"train --algo ppo --env {DOTTED} {options}")) == 0
        run = Path("logs/ppo/ns-Cart.Pole-v0_1")
        assert (run / "ns-Cart.Pole-v0.zip").is_file() and (run / "best_model.zip").is_file()
        assert (run / "ns-Cart.Pole-v0" / "vecnormalize.pkl").is_file()
        for best in ("", " --load-best"):
            capsys.readouterr()
            assert main(shlex.split(f"enjoy --algo ppo --env {DOTTED} --no-render -n 50{best}")) == 0
            output = capsys.readouterr().out
            assert ("best_model.zip" if best else "ns-Cart.Pole-v0.zip") in output and "Mean reward:" in output
    finally:
        del gym.registry[DOTTED]

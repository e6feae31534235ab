"""A wrong value in an entry of hyperparameters is one sentence that names it, with exit code 2, and leaves no run folder."""

import json
import shlex
from pathlib import Path

import pytest

from sb3_policyopt.cli.main import main

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sentence(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(command)) == 2
    assert not list(folder.glob("logs/*/*"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sb3-policyopt: ")
    return error


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_envs", 0, "n_envs must be a whole number of at least 1, got 0"),
        ("n_envs", -1, "n_envs must be a whole number of at least 1, got -1"),
        ("n_envs", 2.5, "n_envs must be a whole number of at least 1, got 2.5"),
        ("n_envs", "two", "n_envs must be a whole number of at least 1, got 'two'"),
        ("frame_stack", "x", "frame_stack must be a whole number of at least 1, got 'x'"),
        ("n_timesteps", "many", "n_timesteps must be a number of at least 1, got 'many'"),
        ("n_timesteps", "1e6", "YAML takes 1e6 for a text"),
        ("n_timesteps", 0, "n_timesteps must be a number of at least 1, got 0"),
        ("learning_rate", "lin_abc", "learning_rate must be a number, or 'lin_0.1' for one that falls"),
        ("learning_rate", "1e-3", "YAML takes 1e-3 for a text"),
        ("clip_range", "lin", "clip_range must be a number, or 'lin_0.1'"),
        ("clip_range_vf", None, "clip_range_vf must be a number, or 'lin_0.1'"),
        ("normalize", "{norm_obs: True", "normalize of CartPole-v1 cannot be evaluated (SyntaxError: "),
        ("normalize", "3", "normalize of CartPole-v1 cannot be evaluated (TypeError: "),
        ("env_wrapper", "foo.bar.Baz", "env_wrapper: foo.bar.Baz cannot be imported: No module named 'foo'"),
        ("env_wrapper", "gymnasium.wrappers.Nope", "gymnasium.wrappers.Nope cannot be imported: the module"),
        ("env_wrapper", [{"TimeLimit": {}}], "env_wrapper: TimeLimit must be written with its module"),
        ("env_wrapper", {"a.B": {}, "c.D": {}}, "env_wrapper must be a class, or a dictionary with one class"),
        ("vec_env_wrapper", "stable_baselines3.nope.Baz", "vec_env_wrapper: stable_baselines3.nope.Baz cannot be imported"),
        ("callback", [{"foo.bar.Baz": {"a": 1}}], "callback: foo.bar.Baz cannot be imported: No module named 'foo'"),
        ("policy", "foo.bar.Baz", "policy: foo.bar.Baz cannot be imported: No module named 'foo'"),
    ],
)
def test_a_wrong_value_is_named(
    name: str, value: object, expected: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"policy": "MlpPolicy", "n_timesteps": 64, "gamma": 0.9, name: value}
    (empty_folder / "my.yml").write_text(json.dumps({"CartPole-v1": entry}))  # which is YAML, too
    assert expected in sentence("train --env CartPole-v1 -conf my.yml", empty_folder, capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-params n_envs:0", "n_envs must be a whole number of at least 1, got 0"),
        ("-params n_envs:2.5", "n_envs must be a whole number of at least 1, got 2.5"),
        ("-params \"learning_rate:'lin_abc'\"", "learning_rate must be a number, or 'lin_0.1'"),
        ("-optimize --storage foo://x", "--storage foo://x: Can't load plugin"),
        ("-optimize --storage study", "--storage study: Could not parse"),
        ("-optimize --storage sqlite:///no/such/study.db", "there is no folder no/such"),
    ],
)
def test_a_wrong_option_is_named(options: str, expected: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in sentence(f"train --env CartPole-v1 --study-name a {options}", empty_folder, capsys)


def test_what_a_module_itself_needs_is_still_to_be_installed(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "wrapping.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(str(empty_folder))
    (empty_folder / "my.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, env_wrapper: wrapping.Baz}\n")
    assert "train needs not_there" in sentence("train --env CartPole-v1 -conf my.yml", empty_folder, capsys)


def test_the_steps_of_the_command_line_hold(empty_folder: Path) -> None:
    text = "CartPole-v1: {policy: MlpPolicy, n_timesteps: many, n_envs: 2, n_steps: 32, batch_size: 32, normalize: true}\n"
    (empty_folder / "my.yml").write_text(text)
    command = "train --env CartPole-v1 -conf my.yml -n 64 --eval-freq -1 -params learning_rate:lin_1e-3 frame_stack:2"
    assert main(shlex.split(command)) == 0

"""progress.csv and provenance.json, for trainings that go on, stop short, or are killed in the middle of a line."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sb3_policyopt import PPO
from sb3_policyopt.cli.main import main
from sb3_policyopt.recording import ContinuedCSV, RunRecorder, git_state, installed_versions


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, start: int, steps: list[int], extra: str | None = None) -> None:
    output = ContinuedCSV(str(path), start)
    for step in steps:
        values: dict[str, Any] = {"time/total_timesteps": step, "train/line_search_reason": f"accepted, at {step}"}
        output.write({**values, **({extra: step / 3} if extra else {})}, {})
    output.close()


@given(stop=st.integers(1, 9), cut=st.integers(0, 40))
def test_a_continued_file_has_each_row_once(tmp_path_factory: pytest.TempPathFactory, stop: int, cut: int) -> None:
    """Nine rows, the last of them cut short by a crash at any character; then on from a checkpoint after row ``stop``."""
    path = tmp_path_factory.mktemp("csv") / "progress.csv"
    write_rows(path, 0, [100 * number for number in range(1, 10)])
    text = path.read_text()
    path.write_text(text[: len(text) - cut])
    complete = 9 if cut == 0 else 8 if cut <= len('900,"accepted, at 900"\n') else 7
    whole = [100 * number for number in range(1, complete + 1)]
    kept = [step for step in whole if step <= 100 * stop]
    write_rows(path, 100 * stop, [100 * stop + 100, 100 * stop + 200], extra="train/new")
    continued = rows(path)
    expected = [*kept, 100 * stop + 100, 100 * stop + 200]
    assert [int(row["time/total_timesteps"]) for row in continued] == expected
    assert [row["train/line_search_reason"] for row in continued] == [f"accepted, at {step}" for step in expected]
    assert [row["train/new"] for row in continued[: len(kept)]] == [""] * len(kept)


def test_a_new_training_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    write_rows(path, 0, [100, 200])
    write_rows(path, 0, [50])
    assert [row["time/total_timesteps"] for row in rows(path)] == ["50"]


def test_a_run_in_two_parts(tmp_path: Path) -> None:
    def recorder() -> RunRecorder:
        return RunRecorder(tmp_path, {"learning_rate": "lin_0.001"}, {"env_id": "CartPole-v1"})

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, gamma=0.9, seed=5)
    model.learn(64, callback=recorder())
    first = json.loads((tmp_path / "provenance.json").read_text())
    assert (first["seed"], first["env_id"], first["start_timesteps"], first["total_timesteps"]) == (5, "CartPole-v1", 0, 64)
    expected = {
        "gamma": 0.9,
        "gae_lambda": 0.95,
        "learning_rate": "lin_0.001",
        "clip_range": 0.2,
        "policy": "ActorCriticPolicy",
    }
    assert first["finished"] and expected.items() <= first["hyperparameters"].items()
    assert first["versions"]["torch"] == installed_versions()["torch"]

    model.save(tmp_path / "agent")
    continued = PPO.load(tmp_path / "agent", env=model.get_env())
    continued.learn(64, reset_num_timesteps=False, callback=recorder())
    second = json.loads((tmp_path / "provenance.json").read_text())
    assert (second["start_timesteps"], second["total_timesteps"], second["finished"]) == (64, 128, True)
    assert [row["time/total_timesteps"] for row in rows(tmp_path / "progress.csv")] == ["32", "64", "96", "128"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.zip", "progress.csv", "provenance.json"]


def test_a_stopped_training_is_not_finished(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path)
    recorder.save()  # the training has not started: there is nothing to record
    assert not list(tmp_path.iterdir())

    class Stop(RunRecorder):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps >= 64:
                raise KeyboardInterrupt

    recorder = Stop(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1).learn(320, callback=recorder)
    recorder.save()
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert not provenance["finished"] and (provenance["total_timesteps"], provenance["requested_timesteps"]) == (64, 320)


def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "script.py").write_text("a")
    git("add", "script.py")
    git("commit", "-q", "-m", "a")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "script.py").write_text("b")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": True}


def test_train_without_a_seed_continues_with_the_seed_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """rl-zoo3 draws another one each time; one that is given has to be that of the run."""
    monkeypatch.chdir(tmp_path)
    checkpoints = {"sb3_policyopt.callbacks.ResumableCheckpointCallback": {"path": "checkpoints", "save_freq": 64}}
    entry = {"policy": "MlpPolicy", "n_steps": 32, "batch_size": 32, "n_timesteps": 128, "callback": [checkpoints]}
    Path("entry.yml").write_text(yaml.safe_dump({"CartPole-v1": entry}))
    command = ["train", "--algo", "ppo", "--env", "CartPole-v1", "-conf", "entry.yml", "--eval-freq", "-1", "--device", "cpu"]
    assert main(command) == 0 and main(command) == 0
    runs = [Path("logs/ppo") / f"CartPole-v1_{number}" / "provenance.json" for number in (1, 2)]
    drawn, continued = (json.loads(path.read_text())["seed"] for path in runs)
    assert drawn == continued
    assert main([*command, "--seed", str(drawn)]) == 0
    assert main([*command, "--seed", str(drawn + 1)]) == 2
    assert f"its seed is {drawn}, here it is {drawn + 1}" in capsys.readouterr().err

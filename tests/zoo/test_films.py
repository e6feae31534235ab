"""``record_training`` deletes nothing but videos, and writes its film wherever it is told to."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sb3_policyopt import PPO
from sb3_policyopt.cli.main import main
from sb3_policyopt.zoo import shims

Process = Callable[..., subprocess.CompletedProcess[str]]
FILM = "record_training --algo ppo --env CartPole-v1 -n 5"


@pytest.fixture(autouse=True)
def one_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("logs", "my logs"):
        run = tmp_path / folder / "ppo" / "CartPole-v1_1"
        run.mkdir(parents=True)
        PPO("MlpPolicy", "CartPole-v1", device="cpu").save(run / "CartPole-v1.zip")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-o .", "-o .: record_training deletes all that is in this folder, and it holds more than its videos (file, …)"),
        ("-o logs", "-o logs: record_training deletes all"),
        ("-o logs/ppo/CartPole-v1_1", "it holds more than its videos (CartPole-v1.zip)"),
        ("--output-f holiday", "it holds more than its videos (beach.mp4); name a folder that is new or empty"),
        ("-o file/films", "-o file/films: file is a file"),
        ("-o file", "-o file: file is a file, not a folder; name a folder"),
    ],
)
def test_a_folder_with_more_than_videos_is_refused(
    options: str, expected: str, one_agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rl-zoo3 deletes the folder with all that is in it."""
    assert "shutil.rmtree(video_folder" in shims.script_source("rl_zoo3.record_training"), "films.video_folder can go"
    (one_agent / "holiday").mkdir()
    (one_agent / "holiday" / "beach.mp4").touch()
    (one_agent / "file").touch()
    before = sorted(one_agent.rglob("*"))
    assert main(shlex.split(f"{FILM} -f logs {options}")) == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(one_agent.rglob("*")) == before


def test_the_folder_of_videos_in_a_run_is_guarded_too(one_agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one_agent / "logs" / "ppo" / "CartPole-v1_1" / "videos" / "notes").mkdir(parents=True)
    assert main(shlex.split(FILM)) == 2
    assert "(notes)" in capsys.readouterr().err
    assert list(one_agent.rglob("notes"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("-f logs -o 'my films/new'", id="relative", marks=pytest.mark.slow),
        pytest.param("-f 'my logs'", id="of the run", marks=pytest.mark.slow),
    ],
)
def test_a_folder_can_be_relative_and_have_a_space(options: str, one_agent: Path, process: Process) -> None:
    """The stock command says that it has saved the film, and has not."""
    folder = one_agent / ("my films/new" if "-o" in options else "my logs/ppo/CartPole-v1_1/videos")
    folder.mkdir(parents=True)
    (folder / "final-model-ppo-CartPole-v1-step-0-to-step-9.mp4").touch()
    (folder / "training.mp4").touch()
    result = process(["-m", "sb3_policyopt", *shlex.split(f"{FILM} {options} --gif")], one_agent)
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(path.name for path in folder.iterdir()) == [
        "final-model-ppo-CartPole-v1-step-0-to-step-5.mp4",
        "training.gif",
        "training.mp4",
    ]
    assert all(path.stat().st_size > 1000 for path in folder.iterdir())
    assert f"Saving video to {folder / 'training.mp4'}" in result.stdout


def test_a_film_that_was_not_written_is_a_failure(one_agent: Path, process: Process) -> None:
    (one_agent / "bin").mkdir()
    broken = one_agent / "bin" / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    result = process(
        ["-m", "sb3_policyopt", *shlex.split(f"{FILM} -o film")], one_agent, PATH=f"{broken.parent}:/usr/bin:/bin"
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    sentence = f"sb3-policyopt: {one_agent / 'film' / 'training.mp4'} was not written: ffmpeg failed with exit code 3"
    assert result.stderr.strip().splitlines()[-1] == sentence


@pytest.mark.slow
def test_what_stops_a_video_stops_the_film(one_agent: Path, process: Process) -> None:
    (one_agent / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").write_bytes(b"half a z")
    result = process(["-m", "sb3_policyopt", *shlex.split(FILM)], one_agent)
    assert result.returncode != 0 and "AssertionError" not in result.stderr

"""``all_plots`` and ``plot_train`` say in one sentence why they cannot draw something."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from sb3_policyopt.cli.main import main


def write_run(name: str, *steps: int) -> Path:
    folder = Path("logs/ppo") / name
    folder.mkdir(parents=True)
    (folder / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "None"}\nr,l,t\n1.0,10,0.1\n2.0,10,0.2\n')
    if steps:
        np.savez(folder / "evaluations.npz", timesteps=np.array(steps), results=np.ones((len(steps), 5)), ep_lengths=[0])
    return folder


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("CartPole-v1_1", 1000, 2000, 3000)
    write_run("Pendulum-v1_1")
    write_run("Acrobot-v1_1", 1000)
    (write_run("MountainCar-v0_1") / "evaluations.npz").write_bytes(b"half a file")
    Path("logs/trpo/CartPole-v1_1").mkdir(parents=True)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("all_plots -a ppo -e Pendulum-v1 -f logs", "there is no evaluation of ppo on Pendulum-v1 in logs"),
        ("all_plots -a ppo -e CartPole-v1 Acrobot-v1 -f logs", "there is no evaluation of ppo on Acrobot-v1 in logs"),
        ("all_plots -a ppo -e MountainCar-v0 -f logs", "logs/ppo/MountainCar-v0_1/evaluations.npz cannot be read"),
        (
            "all_plots -a ppo -e CartPole-v1 -f logs -k success",
            "-k success: logs/ppo/CartPole-v1_1/evaluations.npz has no such entry (it has ep_lengths, results, timesteps)",
        ),
        ("all_plots -a ppo -e CartPole-v1 -f logs -max 500", "-max 500: the first evaluation in logs/ppo/CartPole-v1_1"),
        ("all_plots -a ppo -e CartPole-v1 -f logs -o nowhere/results", "-o nowhere/results: there is no folder nowhere"),
        ("plot_train -a ppo -e CartPole-v1 -f logs -w 0", "--episode-window must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("sb3-policyopt: ") and expected in error and error.count("\n") == 0
    assert not list(Path().glob("*.png"))


def test_a_cell_without_evaluations_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    command = "all_plots -a ppo trpo -e CartPole-v1 -f logs -o results -max 1000 --no-display"
    assert main(shlex.split(command)) == 0
    captured = capsys.readouterr()
    assert "1 +/- 0" in captured.out and Path("results.pkl").is_file()
    assert captured.err.splitlines() == [
        "sb3-policyopt: there is no evaluation of trpo on CartPole-v1 in logs that can be drawn; "
        "the table has 0.0 +/- 0.0 there"
    ]

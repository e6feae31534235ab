import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sb3_policyopt.cli import main as command_line


def main(arguments: Any) -> Any:
    return command_line.main(["plot", *arguments])


def command(*arguments: Any, cwd: Any = None) -> Any:
    words = [sys.executable, "-m", "sb3_policyopt", "plot", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd)


def test_command_draws_all_runs_of_a_folder(logs: Path, tmp_path: Path) -> None:
    done = command(logs / "ppo", logs / "trpo", "--out", "page.png", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "page.png"), done.stderr
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_picture_of_one_run_is_written_to_its_folder(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "ppo" / "CartPole-v1_2"
    assert main([str(run), "--group", "none"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "training.png")
    assert (run / "training.png").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "There is no run folder nowhere."),
        (["."], "is not a run folder"),
        (["progress.csv"], "not a log of Stable-Baselines3"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments == ["progress.csv"]:
        (tmp_path / "progress.csv").write_text("a,b\n1,2\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_missing_extra_is_named_with_the_pip_line() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from sb3_policyopt.__main__ import main; sys.exit(main(['plot', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "matplotlib, which is not installed: pip install 'sb3-policyopt[plots]'" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_import_stays_light() -> None:
    code = "import sys, sb3_policyopt.plots, sb3_policyopt.doctor; assert 'matplotlib.figure' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

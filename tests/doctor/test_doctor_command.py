import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sb3_policyopt.cli import main as command_line


def main(arguments: list[str]) -> int:
    return command_line.main(["doctor", *arguments])


def test_command_on_a_healthy_run(trained: Callable[..., Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sb3_policyopt", "doctor", str(trained("ppo healthy"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Healthy: nothing looks wrong." in done.stdout


def test_findings_in_plain_sentences(trained: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained("huge learning rate")), str(trained("ppo healthy"))]) == 1
    out = capsys.readouterr().out
    assert out.index("ERROR: Updates change the policy too much") < out.index("Healthy: nothing looks wrong.")
    assert all(head in out for head in ("  Seen:   train/approx_kl was above", "  Try:    Lower learning_rate", "  Source: "))
    assert max(map(len, out.splitlines())) <= 110 or str(trained("ppo healthy")) in out


@pytest.mark.parametrize(
    "content, words", [(None, "There is no run folder"), ("time/total_timesteps,a\n1,2\n", "holds no update")]
)
def test_mistakes_are_reported_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    folder = tmp_path / "run"
    if content:
        folder.mkdir()
        (folder / "progress.csv").write_text(content)
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_runs_of_a_folder_that_cannot_be_judged_are_left_out(
    trained: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "CartPole-v1_1").mkdir()
    (tmp_path / "CartPole-v1_1" / "progress.csv").write_text("")
    (tmp_path / "CartPole-v1_2").symlink_to(trained("ppo healthy"))
    assert main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "Healthy" in captured.out
    assert captured.err.startswith("sb3-policyopt: left out: ") and "CartPole-v1_1 holds no data yet" in captured.err
    (tmp_path / "CartPole-v1_2").unlink()
    (tmp_path / "CartPole-v1_3").mkdir()
    (tmp_path / "CartPole-v1_3" / "progress.csv").write_text("")
    assert main([str(tmp_path)]) == 2
    assert "No run in" in capsys.readouterr().err


def test_missing_extra_is_named_with_the_pip_line() -> None:
    code = "import sys; sys.modules['pandas'] = None; from sb3_policyopt.__main__ import main; sys.exit(main(['doctor', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "pandas, which is not installed: pip install 'sb3-policyopt[plots]'" in done.stderr and "Traceback" not in done.stderr
    )

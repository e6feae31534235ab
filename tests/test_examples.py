"""The examples run, as a reader would run them, for a few steps."""

import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "examples"
# Enough for an update or two; and what each prints.
EXAMPLES = {
    "train_ppo.py": (512, "Return over 10 episodes"),
    "train_trpo.py": (4096, "of the full step"),
    "custom_policy.py": (2048, "TRPO: NormalisedFeatures"),
    "auxiliary_loss.py": (2048, "smoothness_loss"),
    "distributed.py": (2048, "rank 0 of 1 has trained for 2048 timesteps"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    steps, output = EXAMPLES[name]
    command = [sys.executable, str(FOLDER / name), str(steps)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert output in done.stdout


def test_every_example_is_tested():
    assert {path.name for path in FOLDER.glob("*.py")} == {*EXAMPLES, "demo.py"}  # the demo is `make demo`

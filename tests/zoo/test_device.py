"""``--device auto``, the zoo's default, on a machine that says it has a GPU and fails if somebody uses it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

EMULATED = Path(__file__).parent.parent / "emulated_gpu"
SHORT = "-n 128 --seed 1 --eval-freq -1 -params n_envs:2 n_steps:32 batch_size:32"


@pytest.fixture
def gpu_machine() -> Any:
    path = os.pathsep.join(filter(None, (str(EMULATED), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0"}


def test_the_machine_is_what_it_says(tmp_path: Path, process: Any, gpu_machine: Any) -> None:
    script = "import torch; print(torch.cuda.is_available(), torch.cuda.device_count()); torch.zeros(1, device='cuda')"
    ended = process(["-c", script], tmp_path, **gpu_machine)
    assert ended.stdout.split() == ["True", "1"] and ended.returncode != 0
    hidden = process(["-c", script], tmp_path, **{**gpu_machine, "CUDA_VISIBLE_DEVICES": ""})
    assert hidden.stdout.split() == ["False", "0"]


@pytest.mark.slow
def test_small_networks_train_and_play_on_the_cpu(tmp_path: Path, cli: Any, gpu_machine: Any) -> None:
    trained = cli(tmp_path, f"train --algo trpo --env CartPole-v1 {SHORT}", **gpu_machine)
    assert "Using cpu device" in trained.stdout and "on the GPU" not in trained.stderr
    run = tmp_path / "logs" / "trpo" / "CartPole-v1_1"
    assert json.loads((run / "provenance.json").read_text())["device"] == "cpu"
    cli(tmp_path, "enjoy --algo trpo --env CartPole-v1 -f logs --no-render -n 20", **gpu_machine)

"""Tests without the marker ``gpu`` see no GPU, and neither do the processes that they start."""

import subprocess
import sys

import torch as th
from stable_baselines3.common.utils import get_device

SEEN = th.cuda.is_available(), th.cuda.device_count()  # while the tests are collected


def test_here() -> None:
    assert SEEN == (th.cuda.is_available(), th.cuda.device_count()) == (False, 0)
    assert get_device("auto") == th.device("cpu")


def test_in_a_process_that_a_test_starts() -> None:
    script = "import os, torch; print(repr(os.environ['CUDA_VISIBLE_DEVICES']), torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["''", "False"]

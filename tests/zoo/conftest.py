"""Runs the command line as its users do: as a process of its own, in an empty folder."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_scripts import run_python

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_process(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(arguments, folder, {**os.environ, "OMP_NUM_THREADS": "1", **environment})


@pytest.fixture(scope="session")
def process() -> Run:
    """Runs Python with some arguments in some folder, whatever comes of it."""
    return run_process


@pytest.fixture(scope="session")
def cli() -> Run:
    """Runs ``sb3-policyopt`` and expects success."""

    def run(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        result = run_process(["-m", "sb3_policyopt", *command.split()], folder, **environment)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result

    return run


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, cli: Run) -> Path:
    """A folder whose ``logs`` hold one TRPO run on CartPole-v1 with evaluations and checkpoints."""
    folder = tmp_path_factory.mktemp("workplace")
    cli(folder, "train --algo trpo --env CartPole-v1 -n 2048 --seed 1 --eval-freq 512 --save-freq 1024 --progress")
    return folder

"""The command line as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def cli() -> Any:
    def run(folder: Path, command: str) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "sb3_policyopt", *command.split()],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]

    return run

"""Start a script as several ranks on this machine, without torchrun, and collect what they say."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYTHON = sys.executable


@dataclass
class Ended:
    """How a process ended."""

    code: int
    output: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def surroundings(**variables: object) -> dict[str, str]:
    """This process's environment variables without a launcher's, with others."""
    ours = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    single: dict[str, Any] = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    return {**ours, **single, **{name: str(value) for name, value in variables.items()}}


def start(n: int, script: str, *arguments: object, **variables: object) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [
        subprocess.Popen(
            [PYTHON, str(HERE / script), *map(str, arguments)],
            env=surroundings(RANK=rank, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n)
    ]


def end(processes: list[subprocess.Popen[str]], timeout: float) -> list[Ended]:
    """Wait for all; one that outlives the timeout is killed and fails the test."""
    try:
        return [Ended(process.wait(timeout), process.communicate()[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run(n: int, script: str, *arguments: object, timeout: float = 600, **variables: object) -> list[Ended]:
    return end(start(n, script, *arguments, **variables), timeout)


def torchrun(n: int, *command: object, max_restarts: int = 0, timeout: float = 600, **variables: object) -> Ended:
    """``torchrun`` itself, on this machine."""
    launcher = [PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--max-restarts", str(max_restarts)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    result = subprocess.run(
        [*launcher, *rendezvous, *map(str, command)],
        env=surroundings(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return Ended(result.returncode, result.stdout)

"""Child processes that can connect to no address but the loopback Hub's."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Runs at the start of every child: no address but the loopback one, and on demand no sb3_policyopt.
SITECUSTOMIZE = """
import os, socket, sys

def _allowed(address):
    return not isinstance(address, tuple) or address[0] in ("127.0.0.1", "localhost", "::1")

def _guard(method):
    def connect(self, address):
        if not _allowed(address):
            with open(os.environ["FORBIDDEN_ADDRESSES"], "a") as log:
                log.write(f"{address}\\n")
            raise OSError(f"tests talk to the loopback hub only, not to {address}")
        return method(self, address)
    return connect

socket.socket.connect, socket.socket.connect_ex = _guard(socket.socket.connect), _guard(socket.socket.connect_ex)

if os.environ.get("WITHOUT_POLICYOPT"):
    class _Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "sb3_policyopt":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, _Absent())
"""

# A child that runs many commands, so that PyTorch is imported once: it reads arguments, and prints exit code and output.
WORKER = """
import contextlib, io, json, os, sys
from sb3_policyopt.__main__ import main

answers = sys.stdout
for line in sys.stdin:
    os.environ["HF_TOKEN"], command, *arguments = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([command, *arguments])
        except SystemExit as exit:
            code = exit.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


@dataclass
class Result:
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of the error message."""
        lines = [line for line in self.err.splitlines() if line.startswith("sb3-policyopt: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


class Client:
    """Runs programs that see the loopback hub as the Hub."""

    def __init__(self, hub_url: str, folder: Path, token: str = "hf_me", **environment: Any) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        site = self.folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.forbidden = self.folder / "forbidden.txt"
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DISPLAY", "WAYLAND", "MUJOCO_GL"))
        }
        self.environment = kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])),
            "HF_ENDPOINT": hub_url,
            "HF_TOKEN": token,
            "HF_HOME": str(self.folder / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "FORBIDDEN_ADDRESSES": str(self.forbidden),
            "OMP_NUM_THREADS": "1",
            "SDL_VIDEODRIVER": "dummy",
            **environment,
        }
        self.worker: subprocess.Popen[str] | None = None

    def python(self, *arguments: Any, cwd: Any = None, **environment: Any) -> Result:
        """Run Python in an empty folder."""
        cwd = cwd or self.folder / "empty"
        Path(cwd).mkdir(exist_ok=True)
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Result(run.returncode, run.stdout, run.stderr)

    def command(self, *arguments: Any, token: str = "hf_me") -> Result:
        """Run one of our two commands in the child that is kept."""
        if self.worker is None:
            self.worker = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        print(json.dumps([token, *map(str, arguments)]), file=self.worker.stdin, flush=True)
        assert self.worker.stdout is not None
        return Result(*json.loads(self.worker.stdout.readline()))

    def close(self) -> None:
        if self.worker is not None:
            assert self.worker.stdin is not None and self.worker.stdout is not None
            self.worker.stdin.close()
            self.worker.wait(timeout=60)
            self.worker.stdout.close()
        assert not self.forbidden.exists(), self.forbidden.read_text()

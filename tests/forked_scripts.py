"""Python programs in processes of their own, forked from one that has imported the libraries, which saves seconds for each."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

STREAMS = ("stdout", "stderr")


def run_python(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float = 900
) -> CompletedProcess[str]:
    """
    What ``python *arguments`` does in a folder; that itself for ``-c``, whose programs look at imports, and on systems that
    cannot fork.

    :param arguments: a script, ``-m`` and a module, or ``-c`` and a program, and what follows them
    :param folder: to run it in
    :param environment: all its environment variables
    :param timeout: seconds after which it is ended
    :return: exit code and output
    :raises TimeoutExpired: if it takes longer
    """
    if arguments[0] == "-c" or "forkserver" not in multiprocessing.get_all_start_methods():
        command = [sys.executable, *arguments]
        options = {"capture_output": True, "text": True, "timeout": timeout, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, cwd=folder, env=environment, **options)  # type: ignore[call-overload, no-any-return]
    with TemporaryDirectory() as output:
        target = (list(arguments), str(folder), dict(environment), output)
        process = multiprocessing.get_context("forkserver").Process(target=_run, args=target)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout)
        printed, errors = ((Path(output) / name).read_text() for name in STREAMS)
    return CompletedProcess([*arguments], process.exitcode or 0, printed, errors)


def _run(arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """In the child."""
    for stream, name in enumerate(STREAMS, 1):
        os.dup2(os.open(os.path.join(output, name), os.O_CREAT | os.O_WRONLY), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    as_module = arguments[0] == "-m"
    sys.argv = arguments[1:] if as_module else arguments
    place = folder if as_module else os.path.dirname(os.path.abspath(arguments[0]))
    sys.path[:0] = [place, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if as_module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")

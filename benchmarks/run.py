"""
Runs cases: the contenders side by side, each in a process of its own, taking turns of about a second.

A shared machine changes its speed from one minute to the next. Turns so short meet the same machine, so the ratio of two
neighbouring turns holds where that of two long runs would not.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import Case, Settings

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
PACKAGES = (
    "sb3-policyopt",
    "stable-baselines3",
    "sb3-contrib",
    "sbx-rl",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "jax",
    "envpool",
)
TURN_SECONDS = 0.8
PATIENCE = 1800
"""Seconds to wait for an answer."""


def _one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


class Process:
    """
    A contender's process, see :mod:`benchmarks.measure`.

    :param settings: what it runs
    :raises RuntimeError: with the last lines of what went wrong, as :meth:`ask` does
    """

    def __init__(self, settings: Settings) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
        environment["JAX_PLATFORMS"] = "cpu"
        if not settings.all_cores:
            environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.measure", json.dumps(asdict(settings))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            preexec_fn=None if settings.all_cores else _one_core,
        )
        self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(self.errors.read()[-2000:] or f"ended with code {code}")
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def take_turns(case: Case, seconds: float, all_cores: bool) -> dict[str, dict[str, Any]]:
    """
    Let the contenders of a case train in turn, A B C A B C ...

    :param case: what to measure
    :param seconds: how long each contender trains altogether; 0 for its first iteration alone
    :param all_cores: leave threads and cores as they are
    :return: for each contender what ``benchmarks.measure`` answered: "turns", "microseconds_per_step", and what ``end`` says;
        or ``{"error": ...}``
    """
    results: dict[str, dict[str, Any]] = {contender: {"turns": []} for contender in case.contenders}
    processes: dict[str, Process] = {}

    def ask_all(command: str, note: Callable[[str, dict[str, Any]], None]) -> None:
        for contender in list(processes):
            try:
                note(contender, processes[contender].ask(command))
            except RuntimeError as error:
                results[contender] = {"turns": [], "error": str(error)}
                processes.pop(contender).close()

    for contender, settings in case.contenders.items():
        try:
            processes[contender] = Process(replace(settings, all_cores=settings.all_cores or all_cores))
        except RuntimeError as error:
            results[contender]["error"] = str(error)
    try:
        if seconds:
            ask_all("warm_up", lambda contender, answer: None)
            for _ in range(max(3, round(seconds / TURN_SECONDS))):
                ask_all(f"run {TURN_SECONDS}", lambda contender, answer: results[contender]["turns"].append(answer))
            ask_all(
                f"split {2 * TURN_SECONDS}",
                lambda contender, answer: results[contender].update(microseconds_per_step=answer),
            )
        ask_all("end", lambda contender, answer: results[contender].update(answer))
    finally:
        for process in processes.values():
            process.close()
    return results


def machine() -> dict[str, Any]:
    """Where and with what the measurements were made."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "packages": versions,
    }


def run(cases: Iterable[Case], repeats: int, seconds: float, output: Path, all_cores: bool = False) -> dict[str, Any]:
    """
    Measure, and save after every case.

    :param cases: what to measure
    :param repeats: how often each case starts anew, in fresh processes
    :param seconds: for how long each contender trains each time
    :param output: the JSON file
    :param all_cores: leave threads and cores as they are, in all cases
    :return: ``{"machine": ..., "cases": {name: {"group", "title", "measurements": {contender: [...]}}}}``
    """
    results: dict[str, Any] = {"machine": machine(), "cases": {}}
    for case in cases:
        measurements: dict[str, list[dict[str, Any]]] = {contender: [] for contender in case.contenders}
        once = case.group == "memory"
        for _ in range(1 if once else repeats):
            for contender, measured in take_turns(case, 0 if once else seconds, all_cores).items():
                measurements[contender].append(measured)
                speeds = [turn["steps_per_second"] for turn in measured["turns"]]
                shown = measured.get("error") or (f"{median(speeds):8.0f} steps/s" if speeds else "done")
                print(f"{case.name:24s} {contender:16s} {shown}", file=sys.stderr, flush=True)
        results["cases"][case.name] = {"group": case.group, "title": case.title, "measurements": measurements}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1))
    return results

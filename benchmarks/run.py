"""Runs cases: every measurement in a fresh process, the contenders in turn."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
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
TIMEOUT = 1800


def _one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure_in_fresh_process(settings: Settings, seconds: float) -> dict[str, Any]:
    """
    :param settings: what to run
    :param seconds: for at least how long
    :return: what ``benchmarks.measure`` prints, or ``{"error": ...}`` with the last lines of what went wrong
    """
    environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
    environment["JAX_PLATFORMS"] = "cpu"
    if not settings.all_cores:
        environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.measure", json.dumps(asdict(settings)), str(seconds)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            preexec_fn=None if settings.all_cores else _one_core,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {TIMEOUT} s"}
    if done.returncode != 0:
        return {"error": done.stderr[-2000:] or f"ended with code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


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
    Measure, in the order A B C A B C ..., and save after every case.

    :param cases: what to measure
    :param repeats: number of turns of every contender
    :param seconds: for how long a contender runs in each turn
    :param output: the JSON file
    :param all_cores: leave threads and cores as they are, in all cases
    :return: ``{"machine": ..., "cases": {name: {"group", "title", "measurements": {contender: [...]}}}}``
    """
    results: dict[str, Any] = {"machine": machine(), "cases": {}}
    for case in cases:
        measurements: dict[str, list[dict[str, Any]]] = {contender: [] for contender in case.contenders}
        for turn in range(1 if case.group == "memory" else repeats):
            for contender, settings in case.contenders.items():
                if all_cores:
                    settings = Settings(**{**asdict(settings), "all_cores": True})
                result = measure_in_fresh_process(settings, 0 if case.group == "memory" else seconds)
                result["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
                measurements[contender].append(result)
                shown = result.get("error") or f"{result['steps_per_second']:8.0f} steps/s"
                print(f"{case.name:24s} turn {turn + 1} {contender:16s} {shown}", file=sys.stderr, flush=True)
        results["cases"][case.name] = {"group": case.group, "title": case.title, "measurements": measurements}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1))
    return results

"""Train and evaluate: each run in processes of its own with one thread, resumed where an interrupted one stood."""

import argparse
import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.scores import entries, runs
from benchmarks.scores.runs import OURS, Run

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
N_EPISODES = 100
CURVE_POINTS = 40
CHECKPOINT_EVERY = 100_000
WHAT_TRAINS = ("sb3_policyopt", "hyperparams", "benchmarks", ":!benchmarks/*.csv")
"""The paths of this repository on which the outcome of a run depends."""


def train(run: Run, entry: entries.Entry, folder: Path, lock: int | None = None) -> Path:
    """
    Train through the command line with an entry, ours as a user would, stock's as rl-zoo3 does.

    :param run: the run
    :param entry: its hyperparameters
    :param folder: keeps checkpoints, so that the next call with the same folder goes on from them (ours only)
    :param lock: see :func:`child`
    :return: folder with the trained agent
    """
    folder.mkdir(parents=True, exist_ok=True)
    if run.implementation == OURS:
        module = "sb3_policyopt"
        command = ["train"]
        callback = {
            "sb3_policyopt.callbacks.ResumableCheckpointCallback": {
                "path": str(folder / "checkpoints"),
                "save_freq": CHECKPOINT_EVERY,
            }
        }
    else:
        module, command = "rl_zoo3.train", []
        entries.check_stock(run.algo, entry)
        callback = {"sb3_policyopt.recording.RunRecorder": {"folder": str(folder)}}
        if run.algo == "trpo":
            entry = entries.on_the_scale_of_contrib(entry, action_dimensions(run.env_id))
    configuration = folder / "entry.yml"
    configuration.write_text(yaml.safe_dump({run.env_id: with_callback(entry, callback)}), encoding="utf-8")
    command += ["--algo", run.algo, "--env", run.env_id, "--seed", str(run.seed), "-n", str(run.n_timesteps)]
    command += ["-f", str(folder), "-conf", str(configuration), "--eval-freq", "-1", "--device", "cpu", "--num-threads", "1"]
    child(module, command, folder, lock)
    return latest(folder / run.algo, run.env_id)


def with_callback(entry: entries.Entry, callback: dict[str, Any]) -> entries.Entry:
    """
    An entry with one callback more.

    :param entry: whose own callbacks are, as in rl-zoo3, none, one or a list
    :param callback: called before those
    :return: a new dictionary
    """
    own = entry.get("callback", [])
    return {**entry, "callback": [callback, *(own if isinstance(own, list) else [own])]}


def action_dimensions(env_id: str) -> int:
    """Over how many dimensions sb3-contrib takes the mean of the KL divergence."""
    import gymnasium as gym
    import rl_zoo3.import_envs  # noqa: F401

    space = gym.make(env_id).action_space
    return int(np.prod(space.shape)) if isinstance(space, (gym.spaces.Box, gym.spaces.MultiBinary)) else 1


def child(module: str, arguments: Sequence[str], folder: Path, lock: int | None = None) -> str:
    """
    Run a module in a process with one thread.

    :param module: its name
    :param arguments: its command line
    :param folder: current folder, for what MuJoCo and others write
    :param lock: descriptor of a locked file, which the process keeps locked should this one be killed
    :return: what it printed
    :raises RuntimeError: with the end of what it printed, if it failed
    """
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
        pass_fds=[lock] if lock is not None else [],
    )
    if result.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return result.stdout


def latest(folder: Path, env_id: str) -> Path:
    """The run folder of rl-zoo3 with the highest number: an interrupted training leaves one without a model behind."""
    numbered = [path for path in folder.iterdir() if path.name.startswith(f"{env_id.replace('/', '-')}_")]
    return max(numbered, key=lambda path: int(path.name.rsplit("_", 1)[1]))


def learning_curve(folder: Path, n_timesteps: int) -> list[float]:
    """
    The mean return of the last 100 training episodes along the training.

    :param folder: of a run; an interrupted training has left several files, of which the later ones hold
    :param n_timesteps: the end
    :return: at CURVE_POINTS equal steps; the first known value before it
    """
    points: dict[float, float] = {}
    for path in sorted(folder.rglob("progress.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("rollout/ep_rew_mean"):
                    points[float(row["time/total_timesteps"])] = float(row["rollout/ep_rew_mean"])
    if not points:
        return []
    grid = np.arange(1, CURVE_POINTS + 1) * n_timesteps / CURVE_POINTS
    steps = sorted(points)
    return [float(value) for value in np.interp(grid, steps, [points[step] for step in steps])]


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """
    Hold a file locked.

    :param path: is made, and stays
    :return: its descriptor: who inherits it keeps the lock
    :raises RuntimeError: if another process or thread holds it
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{path.stem} is being trained by another process, which holds {path}") from None
        yield file.fileno()


def commit_of(folder: Path) -> str:
    """
    The commit with which a run began.

    :param folder: of the run; remembers it for a training that is taken up later
    :return: ten digits, with "+" if what trains differs from the commit or has changed since; empty outside a repository
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    modified = git("status", "--porcelain", "--untracked-files=no", "--", *WHAT_TRAINS)
    now = git("rev-parse", "HEAD")[:10] + ("+" if modified else "")
    remembered = folder / "commit"
    if not remembered.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        remembered.write_text(now, encoding="utf-8")
    first = remembered.read_text(encoding="utf-8")
    return first if first == now else first.rstrip("+") + "+"


def execute(run: Run, entry: entries.Entry, work: Path, results: Path) -> None:
    """
    Train, evaluate, and add the row, unless another process has added it meanwhile.

    :param run: the run
    :param entry: its hyperparameters
    :param work: where folders of runs are; the run's own is removed when its row is there
    :param results: the CSV file
    :raises RuntimeError: if another process trains it, or if it failed
    """
    folder = work / run.folder_name
    with locked(work / f"{run.folder_name}.lock") as lock:
        if runs.missing([run], results):
            add_row(run, entry, folder, results, lock)


def add_row(run: Run, entry: entries.Entry, folder: Path, results: Path, lock: int) -> None:
    """Train, evaluate and add the row of a run whose lock is held; see :func:`execute`."""
    commit = commit_of(folder)
    watch = Watch(folder)
    trained = train(run, entry, folder, lock)
    seconds = watch.stop()
    options = [run.algo, run.env_id, str(trained), "--implementation", run.implementation, "--episodes", str(N_EPISODES)]
    evaluation = json.loads(child("benchmarks.scores.evaluate", options, folder).splitlines()[-1])
    returns = evaluation["returns"]
    outcome = {
        "mean": round(float(np.mean(returns)), 3),
        "std": round(float(np.std(returns)), 3),
        "n_episodes": len(returns),
        "wall_seconds": round(seconds, 1),
        "commit": commit,
        "versions": evaluation["versions"],
        "curve": " ".join(f"{value:.5g}" for value in learning_curve(folder, run.n_timesteps)),
    }
    row = runs.append(run, outcome, results)
    shutil.rmtree(folder)
    print(*[row[name] for name in runs.COLUMNS if name not in ("versions", "curve")], flush=True)


class Watch:
    """Wall seconds of a training in all the processes that had a part in it; an interrupted one counts to its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start = time.perf_counter()

    def stop(self) -> float:
        """Seconds of this part and of those before it, whose logs say how long they took."""
        now = time.perf_counter() - self.start
        return max(now, max((elapsed(path) for path in self.folder.rglob("progress.csv")), default=0.0))


def elapsed(path: Path) -> float:
    """The last time that SB3 logged, which a resumed training counts from the first start."""
    with path.open(newline="", encoding="utf-8") as file:
        return max(
            (float(row["time/time_elapsed"]) for row in csv.DictReader(file) if row.get("time/time_elapsed")), default=0.0
        )


def train_all(wanted: Sequence[tuple[Run, entries.Entry]], work: Path, results: Path, jobs: int = 1) -> int:
    """
    Make the runs that have no row yet.

    :param wanted: runs and their hyperparameters, the most wanted first; those that stand there twice are made once
    :param work: a folder for what is being trained
    :param results: the CSV file
    :param jobs: how many at a time
    :return: how many failed; the others are made all the same
    """
    failures = []
    work = work.resolve()
    once = {run.key: (run, entry) for run, entry in reversed(wanted)}
    left = [once[key] for key in dict.fromkeys(run.key for run in runs.missing([run for run, _ in wanted], results))]

    def attempt(pair: tuple[Run, entries.Entry]) -> None:
        try:
            execute(*pair, work, results)
        except Exception as error:  # whatever it is, the other runs are made
            failures.append(pair)
            print(f"{pair[0].folder_name}: {error}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(attempt, left))
    return len(failures)


def wanted_runs(options: argparse.Namespace) -> list[tuple[Run, entries.Entry]]:
    """Every combination that the command line asks for, seed by seed, so that an interruption leaves whole rounds."""
    found: list[tuple[Run, entries.Entry]] = []
    for seed in options.seeds:
        for algo in options.algo:
            for env_id in options.env:
                for name in options.entry:
                    entry: dict[str, Any] = entries.load(algo, env_id, name, options.candidates)
                    steps = int(options.n_timesteps or float(entry["n_timesteps"]))
                    run = Run(options.implementation, algo, env_id, name, entries.identity(entry), steps, seed)
                    found.append((run, entry))
    return found

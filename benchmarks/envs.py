"""
Which VecEnv is fastest: ``python -m benchmarks.envs`` prints the tables of ``docs/envs.md``.

Whole trainings with default threads and the steps of the environments alone, each contender in a process of its own, in turns
of about a second; ratios are medians over neighbouring turns, with their quartiles. How much faster two processes step side by
side than one, each with half of the environments, is what two cores can bring here. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median, quantiles
from typing import Any

from benchmarks.cases import PONG, Settings
from benchmarks.measure import Contender, make_env
from benchmarks.run import THREAD_VARIABLES, machine

TASKS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5 ×8": {"env_id": "HalfCheetah-v5", "n_envs": 8, "n_steps": 256},
    "Hopper-v5 ×8": {"env_id": "Hopper-v5", "n_envs": 8, "n_steps": 256},
    "CartPole-v1 ×8": {"env_id": "CartPole-v1", "n_envs": 8, "n_steps": 256},
    "Pong ×8": PONG,
}
OURS, STOCK = "sb3_policyopt:PPO", "stable_baselines3:PPO"
VEC_ENVS = ("shared, trainer steps", "shared", "dummy", "subproc")
OTHERS = ("dummy", "subproc", "SB3 dummy", "SB3 subproc")
"""With whom all are compared."""


def serve(kind: str, settings: Settings) -> None:
    """
    Be a contender: answer each line of standard input with microseconds for a step of one environment.

    :param kind: "training" or "steps"
    :param settings: what to run
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    measure = trainings(settings) if kind == "training" else steps(settings)
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(json.dumps(measure(float(line))) + "\n")


def trainings(settings: Settings) -> Any:
    """A function of seconds that trains for about that long."""
    contender = Contender(settings)
    contender.warm_up()
    return lambda seconds: 1e6 / contender.run(seconds)["steps_per_second"]


def steps(settings: Settings) -> Any:
    """A function of seconds that steps environments with random actions for about that long."""
    import numpy as np

    env = make_env(settings)
    env.reset()
    env.action_space.seed(0)
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(200)]

    def measure(seconds: float) -> float:
        start, n_steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for some in actions:
                env.step(some)
            n_steps += len(actions) * env.num_envs
        return 1e6 * (time.perf_counter() - start) / n_steps

    measure(0.2)
    return measure


class Opponent:
    """
    A contender in a process.

    :param kind: "training" or "steps"
    :param settings: what it runs
    """

    def __init__(self, kind: str, settings: Settings) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.envs", "--serve", kind, json.dumps(vars(settings))]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.ask, self.answers = self.process.stdin, self.process.stdout
        if not self.answers.readline():
            raise RuntimeError(f"{kind} of {settings} ended with code {self.process.wait()}")

    def begin(self, seconds: float) -> None:
        """Begin a turn."""
        self.ask.write(f"{seconds}\n")
        self.ask.flush()

    def result(self) -> float:
        """Microseconds for a step of one environment in the turn that was begun."""
        return float(json.loads(self.answers.readline()))

    def turn(self, seconds: float) -> float:
        """Microseconds for a step of one environment."""
        self.begin(seconds)
        return self.result()

    def end(self) -> None:
        """Let it end."""
        self.process.communicate()


def compare(kind: str, contenders: dict[str, Settings], rounds: int, seconds: float) -> dict[str, list[float]]:
    """
    Let contenders take turns.

    :param kind: "training" or "steps"
    :param contenders: settings by name
    :param rounds: number of turns of each
    :param seconds: of a turn
    :return: microseconds for a step of one environment in each turn, by name
    """
    opponents = {name: Opponent(kind, settings) for name, settings in contenders.items()}
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, opponent in opponents.items():
            turns[name].append(opponent.turn(seconds))
    for opponent in opponents.values():
        opponent.end()
    return turns


def side_by_side(settings: Settings, rounds: int, seconds: float) -> str:
    """
    How many times as many steps two processes make side by side as one.

    :param settings: of the steps
    :param rounds: number of turns of each
    :param seconds: of a turn
    :return: median and quartiles
    """
    opponents = [Opponent("steps", replace(settings, n_envs=settings.n_envs // 2)) for _ in range(2)]
    alone: list[float] = []
    both: list[float] = []
    for _ in range(rounds):
        alone.append(opponents[0].turn(seconds))
        for opponent in opponents:
            opponent.begin(seconds)
        both.append(1 / sum(1 / opponent.result() for opponent in opponents))
    for opponent in opponents:
        opponent.end()
    return ratio(both, alone)


def ratio(ours: list[float], others: list[float]) -> str:
    """How many times faster the one is than the other, by neighbouring turns."""
    ratios = [b / a for a, b in zip(ours, others, strict=True)]
    first, _, third = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{median(ratios):.2f} ({first:.2f}–{third:.2f})"


def contenders(kind: str, task: dict[str, Any]) -> dict[str, Settings]:
    """
    Who runs a task.

    :param kind: "training" or "steps"
    :param task: arguments of ``Settings``
    :return: settings by name
    """
    settings = Settings(OURS, **task, all_cores=True)
    found = {vec_env: replace(settings, vec_env=vec_env) for vec_env in VEC_ENVS}
    if kind == "training":
        for vec_env in ("dummy", "subproc"):
            found[f"SB3 {vec_env}"] = replace(found[vec_env], model_class=STOCK)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.envs", description=__doc__)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="only tasks whose name contains this")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--one-core", action="store_true", help="on one core")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve[0], Settings(**json.loads(args.serve[1])))
    if args.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(machine())
    for kind in ("training", "steps"):
        others = [name for name in OTHERS if name in contenders(kind, PONG)]
        print(
            f"\n| {kind} | | µs a step | over {' | over '.join(others)} |\n|---|---|" + "---:|" * (1 + len(others)), flush=True
        )
        for title, task in TASKS.items():
            if args.only in title:
                turns = compare(kind, contenders(kind, task), args.rounds, args.seconds)
                for name, times in turns.items():
                    cells = ["" if name == other else ratio(times, turns[other]) for other in others]
                    print(f"| {title} | {name} | {median(times):.0f} | {' | '.join(cells)} |", flush=True)
    print("\n| two processes over one | |\n|---|---:|", flush=True)
    for title, task in TASKS.items():
        if args.only in title:
            print(
                f"| {title} | {side_by_side(Settings(OURS, **task, all_cores=True), args.rounds, args.seconds)} |", flush=True
            )
    return None


if __name__ == "__main__":
    main()

"""
Weak scaling on this machine, and what the exchanges between the ranks cost.

    python -m benchmarks.scaling                        # HalfCheetah-v5, 8 environments a rank, 2 ranks
    python -m benchmarks.scaling --algo trpo --ranks 4
    python -m benchmarks.scaling --network              # as if each rank were on a host of its own
    python -m benchmarks.scaling --collectives          # seconds of one all-reduce by size, and what they predict

Every rank has one core and one thread. Weak scaling asks how many more steps a second n ranks make than one, with as much
work for each rank: n times as many at best. A round is one iteration of a training on rank 0 alone while the others sleep,
one iteration of n trainings that do not talk to each other, and one iteration of the n ranks together. What the trainings
apart lose is the machine's (shared caches, two virtual cores that share a real one), and only the rest is the price of the
exchanges. The ratios are taken within a round, since a shared machine changes its speed from one minute to the next.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

SIZES = [2**k for k in range(8, 25, 2)]
WHOLE = 0.95
"""Trainings apart make at least this share of n times the steps of one if the machine has n cores to give."""


def free_port() -> int:
    """
    :return: a port that nobody listens on
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(n_ranks: int, argv: list[str]) -> list[dict[str, Any]]:
    """
    Start this file as several ranks, each on one core.

    :param n_ranks: how many
    :param argv: its options
    :return: what rank 0 printed, one entry a line
    """
    cores = sorted(os.sched_getaffinity(0))
    launcher = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--worker", *argv],
            env={**os.environ, **threads, **launcher, "RANK": str(rank), "CORE": str(cores[rank % len(cores)])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(n_ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed")
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


@contextmanager
def apart() -> Iterator[None]:
    """Within this context this process is no rank."""
    n_ranks = os.environ.pop("WORLD_SIZE")
    try:
        yield
    finally:
        os.environ["WORLD_SIZE"] = n_ranks


class Ledger:
    """Counts, bytes and seconds of every exchange of this process since the last look."""

    def __init__(self) -> None:
        from sb3_policyopt.parallel.group import Group

        self.entries: dict[str, dict[str, float]] = {}
        original = Group.exchange

        def exchange(group: Group, collective: Any, *arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = original(group, collective, *arguments, **options)
            name = collective.__name__.lstrip("_")
            entry = self.entries.setdefault(name, {"times": 0, "bytes": 0, "seconds": 0.0})
            entry["times"] += 1
            entry["bytes"] += sum(a.numel() * a.element_size() for a in arguments if isinstance(a, th.Tensor))
            entry["seconds"] += time.perf_counter() - start
            return result

        Group.exchange = exchange

    def look(self) -> dict[str, dict[str, float]]:
        """
        :return: name of the exchange: how many, bytes, seconds; counting starts anew
        """
        entries, self.entries = self.entries, {}
        return entries


def work(options: argparse.Namespace) -> None:
    """
    Train on this rank; rank 0 prints what each round took.

    :param options: of the command line
    """
    import gymnasium as gym
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sb3_policyopt import PPO, TRPO
    from sb3_policyopt.parallel import collectives, launcher
    from sb3_policyopt.parallel import mailboxes as shared_memory

    if options.network:
        shared_memory.host = lambda: f"host of rank {launcher.rank()}"
    algorithm: Any = {"ppo": PPO, "trpo": TRPO}[options.algo]
    size = options.n_steps * options.n_envs
    rank, n_ranks = launcher.rank(), launcher.world_size()
    ledger = Ledger()

    def training() -> Any:
        env = DummyVecEnv([lambda: gym.make(options.env)] * options.n_envs)
        model = algorithm("MlpPolicy", env, n_steps=options.n_steps, batch_size=options.batch_size, seed=0, device="cpu")
        model.update_seconds = 0.0
        train = model.train

        def timed_train() -> None:
            start = time.perf_counter()
            train()
            model.update_seconds = time.perf_counter() - start

        model.train = timed_train
        return model

    class Start(BaseCallback):
        """Notes when the rollout starts."""

        def _on_rollout_start(self) -> None:
            self.time = time.perf_counter()

        def _on_step(self) -> bool:
            return True

    with apart():
        alone = training()

    def seconds_alone() -> float:
        start = Start()
        with apart():
            alone.learn(size, callback=start, reset_num_timesteps=False)
        return time.perf_counter() - start.time

    class Rounds(BaseCallback):
        """Before each rollout of the ranks together, looks at the last iteration, and trains alone and apart."""

        start = None

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            seconds, exchanges = time.perf_counter() - (self.start or 0.0), ledger.look()
            solo = seconds_alone() if rank == 0 else 0.0
            collectives.barrier()
            without = collectives.gather(seconds_alone())
            if rank == 0 and self.start is not None:
                result = {
                    "alone": solo,
                    "apart": without,
                    "together": seconds,
                    "update_alone": alone.update_seconds,
                    "update_together": self.model.update_seconds,
                    "exchanges": exchanges,
                }
                print(json.dumps(result), flush=True)
            collectives.barrier()
            ledger.look()
            self.start = time.perf_counter()

    model = training()
    model.learn((1 + options.rounds) * size * n_ranks, callback=Rounds())


def measure_collectives() -> None:
    """Time all-reduces of several sizes, in the memory that the ranks share and through the network; rank 0 prints them."""
    from sb3_policyopt.parallel import collectives, launcher
    from sb3_policyopt.parallel.group import connected, together

    with together():
        group = connected()
        in_memory = group.mailboxes
        for size in SIZES:
            for mailboxes in (in_memory, None):
                group.mailboxes = mailboxes
                tensor, times = th.zeros(size // 4), []
                for _ in range(max(20, min(200, 2**26 // size))):
                    collectives.barrier()
                    start = time.perf_counter()
                    collectives.sum_(tensor)
                    times.append(time.perf_counter() - start)
                if launcher.rank() == 0 and group.mailboxes_for(tensor) is mailboxes:
                    deciles = [round(1e6 * time_, 1) for time_ in statistics.quantiles(times, n=10)]
                    way = "network" if mailboxes is None else "memory"
                    print(json.dumps({"bytes": size, "way": way, "median": deciles[4], "fastest_tenth": deciles[0]}))


def predict(rows: list[dict[str, Any]]) -> None:
    """
    Fit t(B, n) = 2 (n − 1) α + 2 (n − 1)/n · B/β to all-reduces of two ranks through the network, and print what
    other links would take for an update of HalfCheetah-v5 (docs/scale.md says of how many all-reduces that is).

    :param rows: measured between two ranks on this machine
    """
    times = {row["bytes"]: 1e-6 * row["median"] for row in rows if row["way"] == "network"}
    alpha = times[4096] / 2
    beta = 2**22 / (times[2**22] - times[4096])
    print(f"\nα = {1e6 * alpha:.0f} µs, β = {beta / 1e9:.1f} GB/s over loopback")
    links = {
        "2 ranks over loopback": (2, alpha, beta),
        "8 GPUs of one host (α = 5 µs and 100 GB/s assumed)": (8, 5e-6, 100e9),
        "64 hosts, 10 Gb/s (20 µs of network added to α)": (64, alpha + 20e-6, 1.25e9),
        "64 hosts, 100 Gb/s (20 µs of network added to α)": (64, alpha + 20e-6, 12.5e9),
    }
    updates = {"PPO": {44_372: 320}, "TRPO": {21_516: 1280, 22_832: 17 + 25 / 2}}  # a broadcast is half an all-reduce
    for name, (n, step, width) in links.items():
        seconds = {
            algorithm: sum(k * 2 * (n - 1) * (step + size / (n * width)) for size, k in sizes.items())
            for algorithm, sizes in updates.items()
        }
        print(f"| {name} | {seconds['PPO']:.2g} s | {seconds['TRPO']:.2g} s |")


def report(n: int, rounds: list[dict[str, Any]]) -> None:
    """
    Print medians and quartiles.

    :param n: ranks
    :param rounds: what :func:`work` printed
    """

    def line(name: str, numbers: list[float]) -> None:
        low, middle, high = statistics.quantiles(numbers, n=4)
        print(f"{name:<52} {middle:6.2f}  ({low:.2f} to {high:.2f})")

    def lines(rounds: list[dict[str, Any]]) -> None:
        line("trainings apart, times one", [sum(r["alone"] / seconds for seconds in r["apart"]) for r in rounds])
        line("ranks together, times one", [n * r["alone"] / r["together"] for r in rounds])
        line("together / apart", [n / (r["together"] * sum(1 / seconds for seconds in r["apart"])) for r in rounds])

    print(f"all {len(rounds)} rounds: median and quartiles")
    lines(rounds)
    for name in ("alone", "together", "update_alone", "update_together"):
        line(f"seconds an iteration, {name}", [r[name] for r in rounds])
    for name, entry in rounds[-1]["exchanges"].items():
        seconds = [r["exchanges"][name]["seconds"] for r in rounds]
        line(f"seconds in {name} ({entry['times']:g}, {entry['bytes']:g} bytes)", seconds)
    whole = [r for r in rounds if sum(r["alone"] / seconds for seconds in r["apart"]) >= WHOLE * n]
    print(
        f"{len(whole)} rounds in which the machine had {n} cores to give: trainings apart made {WHOLE * n:g} times the steps"
    )
    if len(whole) > 1:
        lines(whole)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=["ppo", "trpo"], default="ppo")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--n-envs", type=int, default=8, help="of each rank")
    parser.add_argument("--n-steps", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=512, help="of each rank: SB3's 64 times the 8 environments")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--network", action="store_true", help="no shared memory between the ranks")
    parser.add_argument("--collectives", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {int(os.environ["CORE"])})
        th.set_num_threads(1)
        measure_collectives() if options.collectives else work(options)
        return
    if options.collectives:
        rows = launch(2, sys.argv[1:])
        for row in rows:
            median, fastest = row["median"], row["fastest_tenth"]
            print(f"{row['bytes']:>10} bytes by {row['way']:<8} {median:>10} µs, the fastest tenth within {fastest:>8} µs")
        predict(rows)
        return
    report(options.ranks, launch(options.ranks, sys.argv[1:]))


if __name__ == "__main__":
    main()

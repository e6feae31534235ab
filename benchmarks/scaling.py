"""
Weak scaling on this machine, and what the exchanges between the ranks cost.

    python -m benchmarks.scaling                        # HalfCheetah-v5, 8 environments a rank, 1 and 2 ranks
    python -m benchmarks.scaling --algo trpo --ranks 1 2 4
    python -m benchmarks.scaling --collectives          # seconds of one all-reduce by size, and what they predict

Every rank has one core and one thread. Weak scaling asks how many more steps a second n ranks make than one, with as much
work for each rank: n times as many at best. Beside the ranks, and in turn with them, run as many trainings that do
not talk to each other: what they lose is the machine's (shared caches, shared cores of a virtual machine), and only the rest
is the price of the exchanges.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

import torch as th

WARM_UP, SIZES = 1, [2**k for k in range(8, 25, 2)]


def free_port() -> int:
    """
    :return: a port that nobody listens on
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(n_ranks: int, argv: list[str], together: bool = True) -> list[dict[str, Any]]:
    """
    Start this file as several ranks, each on one core.

    :param n_ranks: how many
    :param argv: its options
    :param together: False for as many trainings that know nothing of each other
    :return: what rank 0, or every training, printed, one entry a line
    """
    cores = sorted(os.sched_getaffinity(0))
    address = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if together else {}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--worker", *argv],
            env={**os.environ, **threads, **address, "RANK": str(rank), "CORE": str(cores[rank % len(cores)])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(n_ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed")
    return [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith("{")]


class Ledger:
    """Counts, bytes and seconds of every exchange of this process."""

    def __init__(self) -> None:
        from sb3_policyopt import distributed

        self.entries: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
        original = distributed._exchange

        def exchange(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = original(*arguments, **options)
            name = next(a.__name__ for a in arguments if getattr(a, "__module__", "").startswith("torch.distributed"))
            entry = self.entries[name]
            entry[0] += 1
            entry[1] += sum(a.numel() * a.element_size() for a in arguments if isinstance(a, th.Tensor))
            entry[2] += time.perf_counter() - start
            return result

        distributed._exchange = exchange


def work(options: argparse.Namespace) -> None:
    """
    Train on this rank; rank 0 prints what an iteration took.

    :param options: of the command line
    """
    import gymnasium as gym
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sb3_policyopt import PPO, TRPO, distributed

    ledger = Ledger()
    env = DummyVecEnv([lambda: gym.make(options.env)] * options.n_envs)
    algorithm: Any = {"ppo": PPO, "trpo": TRPO}[options.algo]
    model = algorithm("MlpPolicy", env, n_steps=options.n_steps, batch_size=options.batch_size, seed=0, device="cpu")
    marks: list[tuple[float, dict[str, list[float]], float]] = []
    updates = [0.0]
    train = model.train

    def timed_train() -> None:
        start = time.perf_counter()
        train()
        updates[0] += time.perf_counter() - start
        marks.append((time.perf_counter(), {name: list(entry) for name, entry in ledger.entries.items()}, updates[0]))

    model.train = timed_train
    world_size = distributed.world_size()
    model.learn((WARM_UP + options.iterations) * options.n_steps * options.n_envs * world_size)
    (first, before, update_before), (last, after, update_after) = marks[WARM_UP - 1], marks[-1]
    seconds = (last - first) / options.iterations
    exchanges = {
        name: dict(
            zip(
                ("times", "bytes", "seconds"),
                ((b - a) / options.iterations for a, b in zip(before.get(name, [0, 0, 0]), entry, strict=True)),
                strict=True,
            )
        )
        for name, entry in after.items()
    }
    if distributed.rank() == 0:
        result = {
            "ranks": world_size,
            "parameters": sum(parameter.numel() for parameter in model.policy.parameters()),
            "steps_per_second": options.n_steps * options.n_envs * world_size / seconds,
            "seconds_per_iteration": seconds,
            "seconds_per_update": (update_after - update_before) / options.iterations,
            "exchanges_per_iteration": exchanges,
        }
        print(json.dumps(result))


def measure_collectives() -> None:
    """Time all-reduces of several sizes; rank 0 prints them."""
    from sb3_policyopt import distributed

    with distributed.together():
        for size in SIZES:
            tensor, times = th.zeros(size // 4), []
            for _ in range(max(20, min(200, 2**26 // size))):
                distributed.barrier()
                start = time.perf_counter()
                distributed.sum_(tensor)
                times.append(time.perf_counter() - start)
            if distributed.rank() == 0:
                deciles = [round(1e6 * time_, 1) for time_ in statistics.quantiles(times, n=10)]
                print(json.dumps({"bytes": size, "median": deciles[4], "fastest_tenth": deciles[0]}))


def predict(rows: list[dict[str, Any]]) -> None:
    """
    Fit t(B, n) = 2 (n − 1) α + 2 (n − 1)/n · B/β to all-reduces of two ranks, and print what other links would take for
    an update of HalfCheetah-v5 (docs/scale.md says of how many all-reduces that is).

    :param rows: measured between two ranks on this machine
    """
    times = {row["bytes"]: 1e-6 * row["fastest_tenth"] for row in rows}
    alpha = times[4096] / 2
    beta = 2**22 / (times[2**22] - times[4096])
    print(f"\nα = {1e6 * alpha:.0f} µs, β = {beta / 1e9:.1f} GB/s on this machine")
    links = {
        "2 ranks, this machine": (2, alpha, beta),
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


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=["ppo", "trpo"], default="ppo")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--n-envs", type=int, default=8, help="of each rank")
    parser.add_argument("--n-steps", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=512, help="of each rank: SB3's 64 times the 8 environments")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many runs counts, made by turns")
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
            print(f"{row['bytes']:>10} bytes {row['median']:>10} µs, the fastest tenth within {row['fastest_tenth']:>8} µs")
        predict(rows)
        return
    rates, apart = defaultdict(list), defaultdict(list)
    for _ in range(options.repeats):
        for n in options.ranks:
            run = launch(n, sys.argv[1:])[0]
            print(json.dumps(run), file=sys.stderr)
            rates[n].append(run["steps_per_second"])
            apart[n].append(sum(training["steps_per_second"] for training in launch(n, sys.argv[1:], together=False)))
    base = statistics.median(apart[options.ranks[0]]) / options.ranks[0]
    print("ranks  steps/s  times one rank  that many trainings apart, times one  together/apart")
    for n in options.ranks:
        together, without = statistics.median(rates[n]), statistics.median(apart[n])
        print(f"{n:>5} {together:>8.0f} {together / base:>15.2f} {without / base:>37.2f} {together / without:>15.2f}")


if __name__ == "__main__":
    main()

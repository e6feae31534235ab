"""
Weak scaling on this machine, and what the exchanges between the ranks cost.

    python -m benchmarks.scaling                        # HalfCheetah-v5, 8 environments a rank, 1 and 2 ranks
    python -m benchmarks.scaling --algo trpo --ranks 1 2 4
    python -m benchmarks.scaling --collectives          # seconds of one all-reduce by size

Every rank has one core and one thread. Weak scaling asks how many more steps a second n ranks make than one, with as much
work for each rank; efficiency 1 is n times as many.
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


def launch(n_ranks: int, argv: list[str]) -> list[dict[str, Any]]:
    """
    Start this file as several ranks, each on one core.

    :param n_ranks: how many
    :param argv: its options
    :return: what rank 0 printed, one entry a line
    """
    cores = sorted(os.sched_getaffinity(0))
    address = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
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
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


class Ledger:
    """Counts, bytes and seconds of every exchange of this process."""

    def __init__(self) -> None:
        from sb3_policyopt import distributed

        self.entries: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
        original = distributed._exchange

        def exchange(collective: Any, *arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = original(collective, *arguments, **options)
            entry = self.entries[collective.__name__]
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
            for _ in range(max(20, min(500, 2**26 // size))):
                distributed.barrier()
                start = time.perf_counter()
                distributed.sum_(tensor)
                times.append(time.perf_counter() - start)
            if distributed.rank() == 0:
                print(json.dumps({"bytes": size, "microseconds": round(1e6 * statistics.median(times), 1)}))


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
        for row in launch(max(options.ranks), sys.argv[1:]):
            print(f"{row['bytes']:>10} bytes {row['microseconds']:>10} µs")
        return
    runs: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(options.repeats):
        for n in options.ranks:
            runs[n] += launch(n, sys.argv[1:])
            print(json.dumps(runs[n][-1]), file=sys.stderr)
    rates = {n: statistics.median(run["steps_per_second"] for run in runs[n]) for n in options.ranks}
    base = rates[options.ranks[0]] / options.ranks[0]
    print("ranks  steps/s  times one rank  efficiency")
    for n, rate in rates.items():
        print(f"{n:>5} {rate:>8.0f} {rate / base:>15.2f} {rate / base / n:>11.2f}")


if __name__ == "__main__":
    main()

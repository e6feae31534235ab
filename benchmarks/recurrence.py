"""
The time of a recurrent layer's passes in float32 on one thread, against torch's modules: ``python -m benchmarks.recurrence``.

First F v = Jᵀ J v over a rollout of T steps of n sequences with H units and 4 inputs: forward once, then tangent and backward;
torch's is one product by double backward, with the graph of the gradient already made. Then one step of n environments.
"Gradient" is forward and backward, in memory used before. The contenders take turns; a time is the median of the turns, a
ratio the median of the ratios of neighbouring turns. Times are the processor's, so that a busy machine does not count.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch as th  # noqa: E402

from sb3_policyopt.maths.recurrence import CELLS, Packing, Workspace  # noqa: E402

N_IN = 4
SIZES = [(128, 8, 64), (256, 8, 64), (128, 8, 256)]
STEPS = [(1, 64), (8, 64), (16, 64), (1, 256), (8, 256), (16, 256)]
MODULES: dict[str, Any] = {"lstm": th.nn.LSTM, "gru": th.nn.GRU}
LIBRARIES: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray, "torch": th.from_numpy}
Calls = dict[str, Callable[[], Any]]


def random(*shape: int) -> Any:
    """Numbers of the size that weights and inputs have."""
    return (0.1 * np.random.default_rng(sum(shape)).standard_normal(shape)).astype(np.float32)


def passes(kind: str, n_times: int, n_sequences: int, hidden: int) -> Calls:
    """
    What is measured over a rollout.

    :param kind: name of the cell
    :param n_times: T
    :param n_sequences: n
    :param hidden: H
    :return: by name of contender and pass
    """
    cell = CELLS[kind](N_IN, hidden)
    packing = Packing(np.full(n_sequences, n_times))
    calls: Calls = {}
    for name, library in LIBRARIES.items():
        theta, v, gradient = (library(random(cell.size)) for _ in range(3))
        x = library(random(packing.n_rows, N_IN))
        states = [library(random(1, n_sequences, hidden)) for _ in range(cell.n_states)]
        weights, along, into = cell.views(theta), cell.views(v), cell.views(gradient)
        run = cell.forward(weights, x, packing, states)

        def forward(weights: Any = weights, x: Any = x, states: Any = states, memory: Any = Workspace()) -> Any:  # noqa: B008
            return cell.forward(weights, x, packing, states, memory)

        def tangent(run: Any = run, along: Any = along) -> Any:
            return run.tangent(along)

        def backward(run: Any = run, into: Any = into, slopes: Any = run.outputs) -> Any:
            return run.backward(slopes, into)

        def fisher(run: Any = run, along: Any = along, into: Any = into) -> Any:
            return run.backward(run.tangent(along), into)

        def gradients(forward: Any = forward, into: Any = into, slopes: Any = run.outputs) -> Any:
            return forward().backward(slopes, into)

        for label, call in (("forward", forward), ("tangent", tangent), ("backward", backward), ("F v", fisher)):
            calls[f"{name} {label}"] = call
        calls[f"{name} gradient"] = gradients
    return calls | stock_passes(kind, n_times, n_sequences, hidden)


def stock_passes(kind: str, n_times: int, n_sequences: int, hidden: int) -> Calls:
    """The same by torch's module: see :func:`passes`."""
    module = MODULES[kind](N_IN, hidden)
    x = th.from_numpy(random(n_times, n_sequences, N_IN))
    parameters = tuple(module.parameters())
    v = [th.from_numpy(random(*parameter.shape)) for parameter in parameters]
    y = module(x)[0]
    slope = th.autograd.grad(0.5 * ((y - y.detach()) ** 2).sum(), parameters, create_graph=True)
    along = sum((part * of_v).sum() for part, of_v in zip(slope, v, strict=True))
    target = y.detach()

    def gradients() -> Any:
        return th.autograd.grad(module(x)[0], parameters, target)

    def double_backward() -> Any:
        return th.autograd.grad(along, parameters, retain_graph=True)

    return {"stock F v": double_backward, "stock gradient": gradients}


def steps(kind: str, n: int, hidden: int) -> Calls:
    """
    One step of n environments.

    :param kind: name of the cell
    :param n: rows
    :param hidden: H
    :return: by contender
    """
    cell = CELLS[kind](N_IN, hidden)
    calls: Calls = {}
    for name, library in LIBRARIES.items():
        prepared = cell.prepare(cell.views(library(random(cell.size))))
        x = library(random(n, N_IN))
        states = [library(random(1, n, hidden)) for _ in range(cell.n_states)]
        calls[name] = lambda prepared=prepared, x=x, states=states: cell.step(prepared, x, states)
    module = MODULES[kind](N_IN, hidden)
    x, state = th.from_numpy(random(1, n, N_IN)), [th.from_numpy(random(1, n, hidden)) for _ in range(cell.n_states)]
    initial = tuple(state) if len(state) == 2 else state[0]

    def stock() -> Any:
        with th.no_grad():
            return module(x, initial)

    return calls | {"stock": stock}


def measure(calls: Calls, turns: int, seconds: float) -> dict[str, list[float]]:
    """
    The contenders' times, in turn.

    :param calls: by contender
    :param turns: number of turns
    :param seconds: of a contender's turn, which makes as many calls as take about that long
    :return: seconds a call, by contender and turn
    """
    numbers = {}
    for name, call in calls.items():
        call()
        start = time.process_time()
        call()
        numbers[name] = max(1, int(seconds / (time.process_time() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(numbers[name]):
                call()
            times[name].append((time.process_time() - start) / numbers[name])
    return times


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the ratios of neighbouring turns."""
    return statistics.median([a / b for a, b in zip(of, to, strict=True)])


def main() -> None:
    """Print one line a cell and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="turns a size (default: 15)")
    parser.add_argument("--seconds", type=float, default=0.02, help="of a contender's turn (default: 0.02)")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    print(
        "ms        T   n   H  library  forward  tangent  backward   F v   stock's  stock/ours   gradient  stock's  stock/ours"
    )
    for kind in CELLS:
        for size in SIZES:
            times = measure(passes(kind, *size), arguments.turns, arguments.seconds)
            ms = {name: 1e3 * statistics.median(of_name) for name, of_name in times.items()}
            for name in LIBRARIES:
                fisher = ratio(times["stock F v"], times[f"{name} F v"])
                gradient = ratio(times["stock gradient"], times[f"{name} gradient"])
                own = [ms[f"{name} {label}"] for label in ("forward", "tangent", "backward", "F v", "gradient")]
                print(
                    f"{kind:5} {size[0]:5} {size[1]:3} {size[2]:3}  {name:7}"
                    f" {own[0]:8.2f} {own[1]:8.2f} {own[2]:9.2f} {own[3]:5.2f}"
                    f" {ms['stock F v']:9.2f} {fisher:11.1f} {own[4]:10.2f} {ms['stock gradient']:8.2f} {gradient:11.2f}",
                    flush=True,
                )
    print("\none step, µs   n   H    numpy    torch   stock's  stock/numpy")
    for kind in CELLS:
        for n, hidden in STEPS:
            times = measure(steps(kind, n, hidden), arguments.turns, arguments.seconds)
            own = [1e6 * statistics.median(times[name]) for name in ("numpy", "torch", "stock")]
            factor = ratio(times["stock"], times["numpy"])
            print(f"{kind:12} {n:3} {hidden:3} {own[0]:8.1f} {own[1]:8.1f} {own[2]:9.1f} {factor:12.2f}", flush=True)


if __name__ == "__main__":
    main()

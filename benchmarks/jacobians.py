"""
A Fisher-vector product of ``CnnPolicy`` in three ways, in turns: ``python -m benchmarks.jacobians``.

J v by torch's derivative of a derivative, by its forward-mode derivative, and layer by layer as TRPO does; Jᵀ by a backward
pass in all. NatureCNN on frames of 84 × 84 × 4. And TRPO's update with the first and the last of them.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch as th
import torch.autograd.forward_ad as forward_ad
from stable_baselines3.common.logger import Logger

from benchmarks.updates import Cell, make_model
from sb3_policyopt.models import hybrid
from sb3_policyopt.models.extractors import are_known
from sb3_policyopt.objectives.trust_region import fisher_product

TURNS = 7


def ways(rows: int) -> dict[str, Callable[[], Any]]:
    """
    The three ways to F v.

    :param rows: of the rollout
    :return: by name, functions that compute it
    """
    model = make_model("sb3_policyopt", Cell("TRPO", 512, rows, "images"))
    engine = model.start_update()
    (batch,) = engine.data(model.rollout_buffer).whole()
    vector = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    layers, twice = engine.actor_pass(batch), engine.torch.actor_pass(batch)
    policy, names = model.policy, {id(p): name for name, p in model.policy.named_parameters()}
    whole = th.cat((vector, th.zeros(len(engine.flat.vector) - len(vector))))  # the critic does not move
    parts = zip(engine.flat.parameters, engine.flat.places(whole), strict=True)
    moves = {names[id(p)]: (p.detach(), move) for p, move in list(parts)[: engine.actor_count]}

    class Outputs(th.nn.Module):
        """The policy's logits, as a forward method."""

        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self) -> Any:
            return self.policy.get_distribution(batch.observations).distribution.logits

    metric = twice.metric()

    def by_forward_mode() -> th.Tensor:
        with forward_ad.dual_level(), th.no_grad():
            duals = {f"policy.{name}": forward_ad.make_dual(*pair) for name, pair in moves.items()}
            moved = forward_ad.unpack_dual(th.func.functional_call(Outputs(), duals)).tangent
        return twice.pullback(tuple([part / batch.size for part in metric((moved,))]))

    products = {
        "twice": lambda: fisher_product(twice, batch.size)(vector),
        "forward-mode": by_forward_mode,
        "layers": lambda: fisher_product(layers, batch.size)(vector),
    }
    expected = products["twice"]()
    assert all(float((product() - expected).abs().max() / expected.abs().max()) < 1e-3 for product in products.values())
    return products


def updates(thinning: int) -> dict[str, Callable[[], Any]]:
    """
    TRPO's update on 512 frames.

    :param thinning: ``sub_sampling_factor``
    :return: by name, functions that do it
    """
    model = make_model("sb3_policyopt", Cell("TRPO", 512, 512, "images"))
    model.sub_sampling_factor = thinning
    model.set_logger(Logger(None, []))

    def update(known: Callable[[Any], bool]) -> None:
        hybrid.are_known = known  # type: ignore[assignment]
        try:
            model.train()
        finally:
            hybrid.are_known = are_known

    return {"twice": lambda: update(lambda _: False), "layers": lambda: update(are_known)}


def measure(name: str, functions: dict[str, Callable[[], Any]], turns: int) -> None:
    """
    Print one line.

    :param name: of what is measured
    :param functions: the first is what the others are compared with
    :param turns: number of turns
    """
    seconds: dict[str, list[float]] = {way: [] for way in functions}
    for _ in range(turns):
        for way, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[way].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    shares = [statistics.median([a / b for a, b in zip(of_way, first, strict=True)]) for of_way in seconds.values()]
    print(name, *(f"{way} {share:.2f}" for way, share in zip(seconds, shares, strict=True)), sep="   ", flush=True)


def main() -> None:
    """Measure, with the threads that torch takes, or one."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    threads = parser.parse_args().threads
    if threads:
        th.set_num_threads(threads)
    print("time as a share of the first, medians of turns")
    for rows in (128, 512):
        measure(f"F v, {rows} rows", ways(rows), TURNS)
    for thinning in (1, 4):
        measure(f"update, sub_sampling_factor={thinning}", updates(thinning), 3)


if __name__ == "__main__":
    main()

"""T5, T7 by graphs, with the emulation of :mod:`emulated_graph`."""

from typing import Any

import numpy as np
import pytest
import torch as th
from emulated_graph import EmulatedGraph, emulate

from sb3_policyopt import TRPO
from sb3_policyopt.envs.tensors import TensorPendulum
from sb3_policyopt.graphs import Recorder
from sb3_policyopt.maths.conjugate_gradient import conjugate_gradient
from sb3_policyopt.models import choice
from sb3_policyopt.models.replayed_fisher import ReplayedFisherProduct
from sb3_policyopt.objectives.trust_region import fisher_product


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """After a training whose products were replayed: a trust region, the model that computes it, and the algorithm."""
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
    emulate(monkeypatch)
    env = TensorPendulum(4, device="cpu", seed=0)
    model = TRPO("MlpPolicy", env, n_steps=24, batch_size=48, n_critic_updates=2, cg_max_steps=4, seed=0, device="cpu")
    model.learn(4 * 24 * 4)
    engine = model.start_update()
    (batch,) = engine.data(model.rollout_buffer).whole()
    return model.trust_region(engine, batch), engine, model


def test_T5_products_that_are_kept_stay(problem: tuple[Any, Any, Any]) -> None:
    region, engine, _ = problem
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    once, twice = region.fisher(v), region.fisher(2 * v)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4, atol=1e-6 * float(twice.abs().max()))  # F is linear
    assert "F v" in engine.recorder.reason() and float(once.abs().max()) > 0


def test_T7_conjugate_gradient_by_one_replay(problem: tuple[Any, Any, Any]) -> None:
    region, engine, _ = problem
    assert "conjugate gradient" in engine.recorder.reason()
    recordings, replays = EmulatedGraph.recordings, EmulatedGraph.replays
    one, other = region.solve(4, 0.1), region.solve(4, 10.0)  # the damping is not part of the recording
    assert EmulatedGraph.recordings == recordings and EmulatedGraph.replays == replays + 2
    for found, damping in ((one, 0.1), (other, 10.0)):
        expected = conjugate_gradient(region.fisher, region.gradient, 4, damping=damping)
        np.testing.assert_allclose(found.x, expected.x, rtol=0, atol=1e-4 * float(expected.x.abs().max()))
        assert (found.iterations, found.status) == (expected.iterations, expected.status)
        assert found.residual == pytest.approx(expected.residual, rel=1e-2)
    assert float((one.x - other.x).abs().max()) > 0.1 * float(one.x.abs().max())
    own = region.fisher
    region.fisher = lambda v: 2 * own(v)  # type: ignore[method-assign]
    doubled = region.solve(4, 0.2)  # (2F + 0.2) x = g
    np.testing.assert_allclose(2 * doubled.x, one.x, rtol=0, atol=1e-4 * float(one.x.abs().max()))


def test_a_method_that_cannot_be_recorded_goes_on_with_products_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    recorder = Recorder(th.device("cpu"))
    matrix = th.diag(th.tensor([1.0, 2.0, 3.0]))
    product = ReplayedFisherProduct(recorder, lambda kept: lambda v: kept @ v, [matrix], 1)
    recorder.refusals["conjugate gradient"] = "as a GPU could say"
    found = product.solve(th.ones(3), 3, 0.0)
    np.testing.assert_allclose(found.x, [1, 1 / 2, 1 / 3], rtol=1e-5)
    assert "CUDA graphs of F v" in recorder.reason()


def test_the_networks_work_arrays_may_move(problem: tuple[Any, Any, Any]) -> None:
    _, engine, model = problem
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(1.2)  # what was computed before is stale
    engine.networks.keep_work(False)
    for rows in range(1000, 1300):  # more work arrays than are kept
        engine.networks.actor.trunk.work("other", 1, rows, engine.flat.vector)
    (batch,) = engine.data(model.rollout_buffer).whole()
    region = model.trust_region(engine, batch)
    v = th.randn(engine.n_actor, generator=th.Generator().manual_seed(0))
    found = region.fisher(v)
    expected = fisher_product(engine.actor_pass(batch), batch.size)(v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_products_that_read_other_memory_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    recorder, ones = Recorder(th.device("cpu")), th.ones(1)
    for scale in (th.tensor(2.0), th.tensor(5.0)):
        product = ReplayedFisherProduct(recorder, lambda kept, by=scale: lambda v: by * kept * v, [ones], scale.data_ptr())
        assert float(product(th.ones(1))) == float(scale)
        assert float(product.solve(th.ones(1), 2, 0.0).x) == pytest.approx(1 / float(scale))
    assert EmulatedGraph.recordings == 4

"""What graphs cannot record, and what a GPU could do beside: found, and computed without them."""

from typing import Any

import numpy as np
import pytest
import torch as th
from emulated_graph import EmulatedGraph, emulate
from graph_trainings import SCHEDULED, assert_same, trained
from no_waiting import NoWaiting
from toy_environments import IMAGE, toy

from sb3_policyopt import PPO, graphs
from sb3_policyopt.envs.tensors import TensorPendulum
from sb3_policyopt.graphs import Capture, CaptureError, Recorder, Task
from sb3_policyopt.models import choice
from sb3_policyopt.objectives import PPOCoefficients, Slopes, Terms, clipped_slopes, closed_form
from sb3_policyopt.rollout.batch import Batch

# ---------------------------------------------------------------------- what cannot be recorded


@pytest.fixture(autouse=True)
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)


def test_numpy_in_a_function_is_found_by_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few threads tanh of tensors on the CPU is NumPy's, which a replay does not repeat."""
    plain = trained(PPO, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
    monkeypatch.setattr(graphs, "make_graph", lambda _: EmulatedGraph())
    model = trained(PPO, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
    refusals = model.engine_in_use.recorder.refusals
    assert set(refusals) == {"acting", "gradients"}
    assert "no CUDA graph of acting (a replay gave other numbers" in model.engine_in_use.reason
    assert_same(model, plain)


def test_a_loss_that_waits_is_computed_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def slopes(outputs: Any, batch: Any, coefficients: PPOCoefficients) -> tuple[Slopes[Any], Terms]:
        found, terms = clipped_slopes(outputs, batch, coefficients)
        return found, {**terms, "first": batch.returns[0].item()}

    class Waits(PPO):
        @closed_form(slopes, both_libraries=True)
        def loss(self, batch: Batch[th.Tensor], coefficients: PPOCoefficients) -> tuple[th.Tensor, Terms]:
            return super().loss(batch, coefficients)

    plain = trained(Waits, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
    emulate(monkeypatch)
    model = trained(Waits, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
    assert "the slopes are not this package's" in model.engine_in_use.recorder.refusals["gradients"]
    assert model.logger.name_to_value["train/first"] == pytest.approx(plain.logger.name_to_value["train/first"], abs=1e-4)
    assert_same(model, plain)


def test_what_changes_all_the_time_is_not_recorded_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    recorder = Recorder(th.device("cpu"))
    for n in range(20):
        (found,) = recorder.call(Task("sum", n, lambda x, n=n: (x.sum() + n,), [th.ones(3)]))  # type: ignore[misc]
        assert float(found) == 3 + n
    assert EmulatedGraph.recordings == graphs.RECORDINGS
    assert recorder.refusals == {"sum": f"what it depends on changed {graphs.RECORDINGS} times"}


@pytest.mark.fast
def test_a_capture_reads_fixed_memory_and_copies_the_rest() -> None:
    fixed, state = th.tensor([1.0, 2.0]), th.zeros(2)

    def add(x: th.Tensor, y: th.Tensor) -> tuple[th.Tensor, ...]:
        state.add_(x)
        return (x + y, x * state)

    capture = Capture(add, [th.ones(2), fixed], EmulatedGraph(), [state], fixed=[1])
    assert (state == 0).all()
    first = capture(th.tensor([3.0, 4.0]), fixed)
    assert first[0].tolist() == [4.0, 6.0] and first[1].tolist() == [9.0, 16.0] and state.tolist() == [3.0, 4.0]
    fixed += 1
    second = capture(th.zeros(2), fixed)
    assert second[0].data_ptr() == first[0].data_ptr() and first[0].tolist() == [2.0, 3.0]  # overwritten
    with pytest.raises(CaptureError, match="other numbers"):
        Capture(lambda x: (x + float(np.random.rand()),), [th.ones(2)], EmulatedGraph())


@pytest.mark.fast
def test_other_settings_of_torch_need_another_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    recorder = Recorder(th.device("cpu"))

    def call() -> int:
        recorder.call(Task("double", None, lambda x: (2 * x,), [th.ones(1)]))
        return EmulatedGraph.recordings

    assert [call(), call()] == [1, 1]
    before = th.get_float32_matmul_precision()
    try:
        th.set_float32_matmul_precision("high")
        assert call() == 2
    finally:
        th.set_float32_matmul_precision(before)


@pytest.mark.fast
def test_there_are_no_graphs_on_the_cpu() -> None:
    assert graphs.make_graph(th.device("cpu")) is None
    recorder = Recorder(th.device("cpu"))
    with NoWaiting():  # type: ignore[no-untyped-call]
        (found,) = recorder.call(Task("double", None, lambda x: (2 * x,), [th.ones(1)]))
    assert float(found) == 2 and recorder.reason() == ""


# ---------------------------------------------------------------------- what a GPU could do beside


def test_several_minibatches_that_are_kept_have_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks meet over all minibatches of a pass at once."""
    emulate(monkeypatch)
    model = trained(PPO, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
    data = model.engine_in_use.data(model.rollout_buffer)
    np.random.seed(0)
    kept = [batch.kept() for batch in data.minibatches(40, False)]
    np.random.seed(0)
    for batch, recurring in zip(kept, data.minibatches(40, False), strict=True):
        assert recurring.recurring and not batch.recurring and not recurring.with_advantages(batch.advantages).recurring
        assert (batch.observations == recurring.observations).all() and (batch.returns == recurring.returns).all()
    assert not (kept[0].returns == kept[1].returns).all()


@pytest.mark.fast
def test_a_replay_that_does_nothing_is_found() -> None:
    class Empty(EmulatedGraph):
        def replay(self) -> None:
            pass

    with pytest.raises(CaptureError, match="other numbers"):
        Capture(lambda x: (2 * x, x > 0, x.long()), [th.ones(2)], Empty())


@pytest.mark.fast
def test_after_a_recording_that_ended_early_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(EmulatedGraph):
        def record(self, function: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "make_graph", lambda _: Broken())
    recorder = Recorder(th.device("cpu"))
    for _ in range(2):
        (found,) = recorder.call(Task("double", None, lambda x: (2 * x,), [th.ones(1)]))
        assert float(found) == 2
    assert not recorder.is_active and "operation not permitted" in recorder.reason()


@pytest.mark.fast
def test_settings_that_torch_does_not_tell_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)

    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(th, "get_float32_matmul_precision", refuses)
    recorder = Recorder(th.device("cpu"))
    (found,) = recorder.call(Task("double", None, lambda x: (2 * x,), [th.ones(1)]))
    assert float(found) == 2 and recorder.refusals == {}


@pytest.mark.fast
@pytest.mark.parametrize("change", ["hook", "module", "none"])
def test_extractors_with_code_of_a_user_are_not_recorded(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    env = toy(IMAGE, seed=0)
    model: Any = PPO("CnnPolicy", env, n_steps=8, batch_size=4 * env.num_envs, seed=0, device="cpu", n_epochs=1)
    if change == "hook":
        model.policy.features_extractor.cnn.register_forward_hook(lambda *_: None)
    elif change == "module":
        model.policy.features_extractor.cnn.append(th.nn.Dropout(0.5))
    model.learn(16 * env.num_envs)
    assert model.engine_in_use.recorder.is_active == (change == "none") and (EmulatedGraph.replays > 0) == (change == "none")


def test_an_extractor_in_other_memory_is_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen extractor is not part of the flat vector."""

    def run() -> Any:
        env = toy(IMAGE, seed=0)
        model: Any = PPO("CnnPolicy", env, n_steps=8, batch_size=4 * env.num_envs, seed=0, device="cpu", n_epochs=1)
        for parameter in model.policy.features_extractor.parameters():
            parameter.requires_grad_(False)
        model.learn(16 * env.num_envs)
        for parameter in model.policy.features_extractor.parameters():
            parameter.data = 1.5 * parameter.data
        return model.learn(16 * env.num_envs)

    plain = run()
    emulate(monkeypatch)
    model = run()
    assert EmulatedGraph.replays > 0
    assert_same(model, plain)

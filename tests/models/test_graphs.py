"""
Graphs, with an emulation on the CPU that repeats the recorded operations on the same memory and does nothing else: numbers of
Python that went stale, memory that moved and work of NumPy show here as they would on a GPU.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from emulated_graph import EmulatedGraph, emulate
from gymnasium import spaces
from no_waiting import NoWaiting
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import ACTION_SPACES, IMAGE, VECTOR, toy

from sb3_policyopt import PPO, TRPO, graphs
from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum
from sb3_policyopt.graphs import Capture, CaptureError, Recorder, Task
from sb3_policyopt.models import choice
from sb3_policyopt.objectives import PPOCoefficients, Slopes, Terms, clipped_slopes, closed_form
from sb3_policyopt.rollout.batch import Batch

SCHEDULED: dict[str, Any] = {
    "learning_rate": "lin_1e-3",
    "clip_range": lambda left: 0.05 + 0.2 * left,
    "clip_range_vf": lambda left: 0.1 + 0.2 * left,
    "batch_size": 40,  # the last minibatch has 16 rows
    "n_epochs": 2,
    "ent_coef": 0.01,
}
CASES: list[tuple[type[Any], dict[str, Any]]] = [
    (PPO, SCHEDULED),
    (
        TRPO,
        {
            "learning_rate": "lin_1e-3",
            "batch_size": 40,
            "n_critic_updates": 2,
            "cg_max_steps": 4,
            "cg_damping": lambda left: 0.05 + 0.2 * left,
            "target_kl": "lin_0.02",
        },
    ),
]


@pytest.fixture(autouse=True)
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)


def trained(algorithm: type[Any], env: Any, callback: BaseCallback | None = None, n: int = 4, **options: Any) -> Any:
    policy = "CnnPolicy" if env.observation_space.shape == IMAGE.shape else "MlpPolicy"
    with pytest.warns(UserWarning, match="mini-batch size"):
        model = algorithm(policy, env, **{"n_steps": 24, "seed": 0, "device": "cpu", **options})
    return model.learn(n * 24 * env.num_envs, callback)


def assert_same(model: Any, other: Any, atol: float = 1e-5) -> None:
    for name, value in other.policy.state_dict().items():
        np.testing.assert_allclose(model.policy.state_dict()[name], value, rtol=0, atol=atol, err_msg=name)


def difference(model: Any, other: Any) -> float:
    pairs = zip(model.policy.parameters(), other.policy.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("make", [pytest.param(TensorCartPole, marks=pytest.mark.slow), TensorPendulum])
@pytest.mark.parametrize("algorithm, options", CASES)
def test_whole_trainings_with_schedules(algorithm: Any, options: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(algorithm, make(4, device="cpu", seed=0), **options)
    emulate(monkeypatch)
    model = trained(algorithm, make(4, device="cpu", seed=0), **options)
    assert_same(model, plain, 1e-4)
    recorder = model.engine_in_use.recorder
    assert recorder.refusals == {}
    functions = {"acting", "advantages", "minibatches", "gradients", "steps"} | (
        {"F v", "conjugate gradient"} if algorithm is TRPO else set()
    )
    assert all(name in recorder.reason() for name in functions)
    assert "CUDA graphs of" in model.engine_in_use.reason
    # Acting; advantages; minibatches of 40 and of 16 rows, each with its gradient; steps. Schedules need none of theirs.
    assert EmulatedGraph.recordings == 2 + 2 * 2 + 1 + 2 * (algorithm is TRPO)
    without = {**options, "learning_rate": 1e-3}
    assert difference(trained(algorithm, make(4, device="cpu", seed=0), **without), plain) > 1e-3  # a stale rate would show


@pytest.mark.parametrize("algorithm, options", CASES)
def test_images(algorithm: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two updates: a damping larger by a millionth changes four of TRPO's by 3e-3.
    plain = trained(algorithm, toy(IMAGE, seed=0), n=2, **options)
    emulate(monkeypatch)
    model = trained(algorithm, toy(IMAGE, seed=0), n=2, **options)
    assert model.engine_in_use.name == "hybrid" and model.engine_in_use.recorder.refusals == {}
    assert EmulatedGraph.replays > EmulatedGraph.recordings > 4
    assert_same(model, plain, 1e-4)


@pytest.mark.parametrize("policy", ["MultiInputPolicy", "MaskableMlpPolicy"])
def test_dicts_and_masks(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        if policy == "MultiInputPolicy":
            # torch.nn.functional.one_hot looks at numbers on the CPU, not on a GPU: no Discrete here.
            env: Any = toy(spaces.Dict({"vector": VECTOR, "image": IMAGE}), ACTION_SPACES["box_1"], seed=0)
        else:
            pytest.importorskip("sb3_contrib")
            env = toy(VECTOR, ACTION_SPACES["discrete"], seed=0)
            for i, one in enumerate(env.envs):
                one.unwrapped.action_masks = lambda i=i: np.arange(4) != i  # type: ignore[attr-defined,misc]
        return PPO(policy, env, n_steps=16, batch_size=16 * env.num_envs // 2, seed=0, device="cpu").learn(
            3 * 16 * env.num_envs
        )

    plain = run()
    emulate(monkeypatch)
    model = run()
    assert model.engine_in_use.recorder.refusals == {} and EmulatedGraph.replays > 3 * 16
    assert_same(model, plain)


# ---------------------------------------------------------------------- what moves between replays


class Changes(BaseCallback):
    """Changes the model after the second rollout."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        self.change, self.n_rollouts = change, 0

    def _on_rollout_end(self) -> None:
        self.n_rollouts += 1
        if self.n_rollouts == 2:
            self.change(self.model)

    def _on_step(self) -> bool:
        return True


def new_memory(model: Any) -> None:
    for parameter in model.policy.parameters():
        parameter.data = parameter.data.clone() * 1.01


def loaded_state(model: Any) -> None:
    model.policy.load_state_dict({name: 0.9 * value for name, value in model.policy.state_dict().items()})


def loaded_optimizer(model: Any) -> None:
    state = copy.deepcopy(model.policy.optimizer.state_dict())
    for part in state["state"].values():
        part["exp_avg"] *= 2
    model.policy.optimizer.load_state_dict(state)


def other_betas(model: Any) -> None:
    model.policy.optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def frozen_layer(model: Any) -> None:
    model.policy.action_net.weight.requires_grad_(False)


def other_bound(model: Any) -> None:
    model.max_grad_norm = 1e-3


def other_coefficient(model: Any) -> None:
    model.ent_coef, model.vf_coef = 0.3, 0.1


def other_clip_range(model: Any) -> None:
    model.clip_range = lambda _: 1e-3


def other_clip_range_vf(model: Any) -> None:
    model.clip_range_vf = lambda _: 1e-4


CHANGES = [new_memory, loaded_state, loaded_optimizer, other_betas, frozen_layer, other_bound, other_coefficient]


@pytest.mark.parametrize("change", [*CHANGES, other_clip_range, other_clip_range_vf])
def test_what_a_user_changes_between_updates_counts(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(change: Callable[[Any], None]) -> Any:
        return trained(PPO, TensorPendulum(4, device="cpu", seed=0), Changes(change), **SCHEDULED)

    plain, unchanged = run(change), run(lambda _: None)
    emulate(monkeypatch)
    model = run(change)
    assert_same(model, plain)
    assert difference(unchanged, plain) > 1e-4
    assert EmulatedGraph.replays > 0


def test_another_buffer_is_read_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size, while the first one still exists."""

    def run() -> Any:
        model = trained(PPO, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
        first = model.rollout_buffer
        model.rollout_buffer = type(first)(
            24, model.observation_space, model.action_space, gamma=first.gamma, gae_lambda=first.gae_lambda, n_envs=4
        )
        model.learn(2 * 24 * 4)
        assert (first.observations != model.rollout_buffer.observations).any()
        return model

    plain = run()
    emulate(monkeypatch)
    model = run()
    assert_same(model, plain, 1e-4)
    assert model.engine_in_use.recorder.refusals == {}


def test_recording_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    noted: list[Any] = []

    def note(*tensors: th.Tensor) -> list[th.Tensor]:
        return [th.random.get_rng_state(), *(tensor.clone() for tensor in tensors)]

    original = Capture.__init__

    def watched(self: Any, function: Any, inputs: Any, graph: Any, state: Any = (), fixed: Any = ()) -> None:
        before = note(*state, *inputs)
        original(self, function, inputs, graph, state, fixed)
        noted.append((before, note(*state, *inputs)))

    monkeypatch.setattr(Capture, "__init__", watched)
    trained(PPO, TensorPendulum(4, device="cpu", seed=0), **SCHEDULED)
    assert len(noted) == 7
    for before, after in noted:
        assert all((x == y).all() for x, y in zip(before, after, strict=True))


# ---------------------------------------------------------------------- what cannot be recorded


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

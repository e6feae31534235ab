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
from graph_trainings import SCHEDULED, assert_same, trained
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import ACTION_SPACES, IMAGE, VECTOR, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum
from sb3_policyopt.graphs import Capture
from sb3_policyopt.models import choice

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


CHANGES = [new_memory, loaded_optimizer, frozen_layer, other_coefficient]  # memory, state, what trains, a number
FURTHER = [loaded_state, other_betas, other_bound, other_clip_range, other_clip_range_vf]


@pytest.fixture(scope="module")
def unchanged() -> Any:
    """The model that nobody changes: trained once, and only looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "computes_as_on_gpu", lambda _: True)
        return trained(PPO, TensorPendulum(4, device="cpu", seed=0), Changes(lambda _: None), **SCHEDULED)


@pytest.mark.parametrize("change", [*CHANGES, *(pytest.param(change, marks=pytest.mark.slow) for change in FURTHER)])
def test_what_a_user_changes_between_updates_counts(change: Any, unchanged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        return trained(PPO, TensorPendulum(4, device="cpu", seed=0), Changes(change), **SCHEDULED)

    plain = run()
    emulate(monkeypatch)
    model = run()
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

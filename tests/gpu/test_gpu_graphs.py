"""Graphs and tensors on a real GPU: numbers as without graphs, and no step or minibatch that waits."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
from emulated_graph import emulate

from sb3_policyopt import PPO, TRPO, graphs
from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum
from sb3_policyopt.models import choice
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.rollout.tensors.rollout import TensorRollout

OPTIONS: dict[type[Any], dict[str, Any]] = {
    PPO: {"batch_size": 128, "n_epochs": 2, "learning_rate": "lin_1e-3", "clip_range": lambda left: 0.1 + 0.1 * left},
    TRPO: {"batch_size": 128, "n_critic_updates": 2, "cg_max_steps": 5},
}


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """What makes torch raise where it would wait for the GPU."""
    before = th.cuda.get_sync_debug_mode()
    yield lambda: th.cuda.set_sync_debug_mode("error")
    th.cuda.set_sync_debug_mode(before)


def trained(algorithm: type[Any], make: Any, device: str, **options: Any) -> Any:
    env = make(64, device=device, seed=0, max_episode_steps=30)
    model = algorithm("MlpPolicy", env, n_steps=16, seed=0, device=device, **OPTIONS[algorithm], **options)
    return model.learn(3 * 16 * 64)


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        (PPO, TensorCartPole),
        (TRPO, TensorPendulum),
        pytest.param(PPO, TensorPendulum, marks=pytest.mark.slow),
        pytest.param(TRPO, TensorCartPole, marks=pytest.mark.slow),
    ],
)
def test_parameters_are_those_without_graphs(algorithm: Any, make: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
        emulate(monkeypatch)
    model = trained(algorithm, make, device)
    assert model.engine_in_use.recorder.refusals == {} and "gradients" in model.engine_in_use.recorder.reason()
    monkeypatch.setattr(graphs, "make_graph", lambda _: None)
    plain = trained(algorithm, make, device)
    assert plain.engine_in_use.recorder.reason() == ""
    for name, value in plain.policy.state_dict().items():
        assert float((model.policy.state_dict()[name] - value).abs().max()) < 1e-4, name


@pytest.mark.gpu
@pytest.mark.parametrize("make", [TensorCartPole, TensorPendulum])
def test_no_step_waits(make: Any, no_waiting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored(Exception):
        pass

    def stop(self: TensorRollout, *_: object) -> None:
        th.cuda.set_sync_debug_mode("default")
        raise Stored

    model = trained(PPO, make, "cuda")
    monkeypatch.setattr(TensorRollout, "finish", stop)
    _, callback = model._setup_learn(10**6)
    no_waiting()
    with pytest.raises(Stored):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)


@pytest.mark.gpu
def test_no_minibatch_waits(no_waiting: Any) -> None:
    model = trained(PPO, TensorPendulum, "cuda")
    engine = model.start_update()
    data = engine.data(model.rollout_buffer)
    objective = Objective.of(model.loss, model.current_coefficients())
    with engine.updating(128) as optimiser:
        for attempt in range(2):
            for number, minibatch in enumerate(data.minibatches(128, True)):
                if attempt == 1 and number == 0:
                    no_waiting()  # after the permutation was sent
                terms = engine.gradient(objective, minibatch)
                optimiser.step(0.5, terms["loss"])
            th.cuda.set_sync_debug_mode("default")

"""Whole updates of the closed form in NumPy, in torch, and by autograd; and that torch's never waits for its device."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from emulated_graph import EmulatedGraph, emulate
from gymnasium import spaces
from no_waiting import NoWaiting
from pairs import critic_objective, ppo_objective
from policies import ACTIONS, VECTOR
from stable_baselines3.common.policies import ActorCriticPolicy
from toy_environments import IMAGE, collect, copy_rollout, start, toy

from sb3_policyopt import PPO, TRPO, graphs
from sb3_policyopt.distributions import family_of
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.models import choice
from sb3_policyopt.models.closed_form import ClosedFormModel
from sb3_policyopt.models.closed_form_tensors import TensorClosedForm
from sb3_policyopt.models.networks import library
from sb3_policyopt.objectives import PPOCoefficients, Slopes, Terms, clipped_slopes, closed_form
from sb3_policyopt.optimisation.optimiser import Optimiser
from sb3_policyopt.rollout.batch import Batch

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # the last one is smaller

ON_DEVICE = ("tensors", "graphs")
TOLERANCE = 1e-6
WAYS = ("numpy", "torch", "tensors", "graphs", "autograd")
OPTIONS: dict[type[Any], dict[str, Any]] = {
    PPO: {"n_epochs": 2, "batch_size": 48, "ent_coef": 0.01},
    # Few iterations: rounding grows with each.
    TRPO: {"cg_max_steps": 3, "n_critic_updates": 2, "batch_size": 48},
}


def updated(algorithm: type[Any], way: str, source: Any, monkeypatch: pytest.MonkeyPatch, engine: str, **options: Any) -> Any:
    """The model after one update on the rollout of another, from the other's parameters."""
    monkeypatch.setattr(library, "faster_library", lambda *_: "torch" if way == "torch" else "numpy")
    # As on a GPU, here on the CPU.
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: way in ON_DEVICE)
    if way == "graphs":
        emulate(monkeypatch)
    else:
        monkeypatch.setattr(graphs, "make_graph", lambda _: None)
    model = algorithm(
        source.policy.__class__,
        source.env,
        engine="autograd" if way == "autograd" else engine,
        device="cpu",
        seed=0,
        **options,
    )
    start(model)
    model.policy.load_state_dict(copy.deepcopy(source.policy.state_dict()))
    copy_rollout(source.rollout_buffer, model.rollout_buffer)
    if hasattr(source.rollout_buffer, "action_masks"):
        model.rollout_buffer.action_masks[...] = source.rollout_buffer.action_masks
    np.random.seed(1)
    model.train()
    assert (type(model.engine_in_use) is TensorClosedForm) == (way in ON_DEVICE)
    if way == "graphs":
        assert model.engine_in_use.recorder.refusals == {} and EmulatedGraph.replays > 2 * EmulatedGraph.recordings > 0
    return model


def assert_same_updates(
    algorithm: type[Any], env: Any, policy: str, monkeypatch: pytest.MonkeyPatch, engine: str = "closed_form"
) -> None:
    options = {"n_steps": 40, **OPTIONS[algorithm]}
    source = algorithm(policy, env, device="cpu", seed=0, **options)
    collect(source)
    models = {way: updated(algorithm, way, source, monkeypatch, engine, **options) for way in WAYS}
    before, (of_numpy, *others) = source.policy.state_dict(), models.values()
    moved = max(float((value - before[name]).abs().max()) for name, value in of_numpy.policy.state_dict().items())
    assert moved > 100 * TOLERANCE
    for other in others:
        for name, value in of_numpy.policy.state_dict().items():
            np.testing.assert_allclose(other.policy.state_dict()[name], value, rtol=0, atol=TOLERANCE, err_msg=name)
        for name, value in of_numpy.logger.name_to_value.items():
            if isinstance(value, float):
                assert other.logger.name_to_value[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("action", [pytest.param(a, marks=[pytest.mark.slow] * a.startswith("multi")) for a in ACTIONS])
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_parameters_and_log_after_a_whole_update(algorithm: type[Any], action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same_updates(algorithm, toy(VECTOR, ACTIONS[action]), "MlpPolicy", monkeypatch)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_with_masks(algorithm: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sb3_contrib")
    env: Any = toy(VECTOR, spaces.Discrete(4))
    for i, one in enumerate(env.envs):
        one.unwrapped.action_masks = lambda i=i: np.arange(4) != i
    assert_same_updates(algorithm, env, "MaskableMlpPolicy", monkeypatch)


def _always(name: str, *_: object) -> str:
    return name


@pytest.mark.fast
def test_slopes_of_a_user_are_given_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """``closed_form`` promised arrays before there were tensors."""
    given: list[type[Any]] = []

    def slopes(outputs: Any, batch: Any, coefficients: PPOCoefficients) -> tuple[Slopes[Any], Terms]:
        found, terms = clipped_slopes(outputs, batch, coefficients)
        given.append(type(outputs.values))
        return found, {**terms, "largest": np.max(np.exp(batch.old_log_prob))}

    class Own(PPO):
        @closed_form(slopes)
        def loss(self, batch: Batch[th.Tensor], coefficients: PPOCoefficients) -> tuple[th.Tensor, Terms]:
            return super().loss(batch, coefficients)

    parameters = {}
    for way in ("numpy", "torch"):
        monkeypatch.setattr(library, "faster_library", partial(_always, way))
        model = Own("MlpPolicy", toy(), n_steps=16, batch_size=32, seed=0, device="cpu").learn(64)
        parameters[way] = model.policy.state_dict()
    assert set(given) == {np.ndarray}
    for name, value in parameters["numpy"].items():
        np.testing.assert_allclose(parameters["torch"][name], value, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_acting_of_many_environments(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = []
    for way in ("numpy", "torch"):
        monkeypatch.setattr(library, "faster_library", partial(_always, way))
        env = toy(VECTOR if policy == "MlpPolicy" else IMAGE, ACTIONS["box"], seed=0)
        kwargs = {"net_arch": {"pi": [64], "vf": [64, 64]}}  # of unequal depth: not joined to one network
        model = PPO(policy, env, policy_kwargs=kwargs, n_steps=8, batch_size=32, seed=0, device="cpu")
        collect(model)
        engine: Any = model.engine_in_use
        assert engine.acting.in_torch == (way == "torch")
        rollouts.append(model.rollout_buffer)
    for name in ("actions", "values", "log_probs", "advantages"):
        np.testing.assert_allclose(getattr(rollouts[1], name), getattr(rollouts[0], name), rtol=0, atol=2e-5)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_layers_above_an_extractor(algorithm: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same_updates(algorithm, toy(IMAGE, spaces.Discrete(4)), "CnnPolicy", monkeypatch, "hybrid")


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_the_rule_chooses_torch_for_wide_networks_and_several_threads(algorithm: type[Any]) -> None:
    """Nothing is forced here: two threads, two layers of 256, a whole training, against autograd from the same parameters."""
    th.set_num_threads(2)  # the fixture one_thread restores them
    kwargs = {"net_arch": [256, 256]}
    options = {**OPTIONS[algorithm], "n_steps": 512, "batch_size": 512, "seed": 0, "device": "cpu", "policy_kwargs": kwargs}
    source = algorithm("MlpPolicy", toy(VECTOR, ACTIONS["box"]), **options)
    collect(source)
    parameters = []
    for engine in ("auto", "autograd"):
        model = algorithm("MlpPolicy", source.env, engine=engine, **options)
        start(model)
        model.policy.load_state_dict(copy.deepcopy(source.policy.state_dict()))
        copy_rollout(source.rollout_buffer, model.rollout_buffer)
        np.random.seed(1)
        model.train()
        parameters.append(model.policy.state_dict())
        used: Any = model.engine_in_use
        assert engine == "autograd" or (used.name, used.rule.library(512)) == ("closed_form", "torch")
        assert th.get_num_threads() == 2
    for name, value in parameters[0].items():
        np.testing.assert_allclose(parameters[1][name], value, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("clip_range_vf", [None, 0.5])
def test_a_minibatch_in_torch_waits_for_no_device_and_builds_no_graph(action: str, clip_range_vf: float | None) -> None:
    policy = ActorCriticPolicy(VECTOR, ACTIONS[action], lambda _: 1e-3)
    family = family_of(policy)
    assert family is not None
    model = ClosedFormModel(policy, family)
    observations = th.rand(32, 3)
    with th.no_grad():
        actions, values, log_prob = policy(observations)
    batch = Batch(observations, actions.reshape(32, -1), values.flatten(), log_prob, th.randn(32), th.randn(32))
    objective = ppo_objective(policy, PPOCoefficients(0.2, clip_range_vf, "clipped", 0.01, 0.5))
    optimiser = Optimiser(policy, model.flat)  # as on a GPU; that of the CPU may look at numbers
    with optimiser.updating():
        for _ in range(2):  # constants are made in the first
            with NoWaiting():  # type: ignore[no-untyped-call]
                terms = model.gradient(objective, batch.normalized())
                optimiser.step(0.5, value_of(terms["loss"]))
                terms.update(model.gradient(critic_objective(policy), batch))
    assert not any(isinstance(term, th.Tensor) and term.requires_grad for term in terms.values())

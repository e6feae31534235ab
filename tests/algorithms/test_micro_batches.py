"""``micro_batch_size`` bounds memory and changes nothing else: sums over pieces are sums over the whole, to rounding."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from toy_environments import (
    ACTION_SPACES,
    IMAGE,
    OBSERVATION_SPACES,
    VECTOR,
    collect,
    copy_rollout,
    parameter_vector,
    start,
    toy,
)

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.models import choice, torch_policy

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}
ENGINES = {"autograd": "autograd", "auto": "auto", "as on a GPU": "auto"}
POLICIES: dict[str, tuple[spaces.Space[Any], str, dict[str, Any]]] = {
    "MlpPolicy": (VECTOR, "box_6", {}),
    "MlpPolicy, discrete": (VECTOR, "multi_discrete", {}),
    "MlpPolicy, gSDE": (VECTOR, "box_1", {"use_sde": True}),
    "CnnPolicy": (IMAGE, "discrete", {"n_steps": 4, "batch_size": 16}),
    "MultiInputPolicy": (OBSERVATION_SPACES["dict"], "box_1", {}),
}


def twins(cls: type[Any], name: str, micro_batch_size: int, engine: str = "autograd", **options: Any) -> list[Any]:
    observation, action, arguments = POLICIES[name]
    policy = name.partition(",")[0]
    models = [
        cls(
            policy,
            toy(observation, ACTION_SPACES[action]),
            micro_batch_size=size,
            engine=engine,
            **{**SMALL, **arguments, **options},
        )
        for size in (None, micro_batch_size)
    ]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    collect(models[0])
    start(models[1])
    copy_rollout(models[0].rollout_buffer, models[1].rollout_buffer)
    return models


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [5, 1000])
@pytest.mark.parametrize("engine", ENGINES)
def test_ppo(name: str, size: int, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: engine == "as on a GPU")
    models = twins(PPO, name, size, ENGINES[engine], n_epochs=1, ent_coef=0.01)
    for model in models:
        np.random.seed(0)
        model.train()
    whole, pieces = models
    # A step is at most the learning rate, 3e-4: a hundredth of one, as gradients that are mere rounding may differ.
    th.testing.assert_close(parameter_vector(whole.policy), parameter_vector(pieces.policy), rtol=0, atol=3e-6)
    theirs, mine = whole.logger.name_to_value, pieces.logger.name_to_value
    for key in theirs.keys() - {"train/effective_sample_size"}:  # which is no mean
        assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key


class Experts(BaseFeaturesExtractor):
    """One layer for most rows, another for those whose first entry is above a bound."""

    def __init__(self, space: spaces.Box, bound: float) -> None:
        super().__init__(space, 4)
        self.bound = bound
        self.usual, self.rare = (th.nn.Linear(space.shape[0], 4) for _ in range(2))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        rare = observations[:, 0] >= self.bound
        features = observations.new_zeros(len(observations), 4)
        for rows, layer in ((rare, self.rare), (~rare, self.usual)):
            if rows.any():
                features[rows] = th.tanh(layer(observations[rows]))
        return features


@pytest.mark.parametrize("engine", ["autograd", "hybrid"])
def test_a_parameter_that_few_pieces_use_is_stepped(engine: str) -> None:
    """The hybrid took a parameter for unused where the last piece did not use it, and lost the others' gradients."""
    models = []
    for size in (None, 4):
        arguments: dict[str, Any] = {**SMALL, "n_epochs": 4, "learning_rate": 1e-2}
        extractor = {"features_extractor_class": Experts, "features_extractor_kwargs": {"bound": 1.0}}
        env = toy(VECTOR, ACTION_SPACES["discrete"])
        models.append(PPO("MlpPolicy", env, engine=engine, micro_batch_size=size, policy_kwargs=extractor, **arguments))
    whole, pieces = models
    extractors: list[Any] = [model.policy.features_extractor for model in models]
    pieces.policy.load_state_dict(whole.policy.state_dict())
    collect(whole)
    for experts in extractors:  # few rows, and none of most pieces
        experts.bound = float(np.quantile(whole.rollout_buffer.observations[..., 0], 0.9))
    start(pieces)
    copy_rollout(whole.rollout_buffer, pieces.rollout_buffer)
    before = extractors[0].rare.weight.detach().clone()
    for model in models:
        np.random.seed(0)
        model.train()
    rare = [experts.rare.weight.detach() for experts in extractors]
    assert (rare[0] - before).abs().max() > 1e-2
    # A hundredth of a step, as in test_ppo.
    th.testing.assert_close(rare[1], rare[0], rtol=0, atol=1e-4)
    th.testing.assert_close(parameter_vector(whole.policy), parameter_vector(pieces.policy), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("thinning", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_trpo(name: str, thinning: int, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: engine == "as on a GPU")
    models = twins(TRPO, name, 7, ENGINES[engine], cg_max_steps=4, n_critic_updates=1, sub_sampling_factor=thinning)
    regions, v = [], None
    for model in models:
        used = model.start_update()
        (rollout,) = used.data(model.rollout_buffer).whole()
        regions.append(model.trust_region(used, model.normalized(rollout)))
        v = th.randn(used.n_actor, generator=th.Generator().manual_seed(0)) if v is None else v
    whole, pieces = regions
    assert pieces.surrogate == pytest.approx(whole.surrogate, abs=1e-6)
    scale = float(whole.gradient.abs().max())
    th.testing.assert_close(pieces.gradient, whole.gradient, rtol=0, atol=1e-5 * scale)
    product = whole.fisher(v)
    th.testing.assert_close(pieces.fisher(v), product, rtol=0, atol=1e-5 * float(product.abs().max()))
    for model in models:
        np.random.seed(0)
        model.train()
    logs = [model.logger.name_to_value for model in models]
    for key in ("kl_divergence_loss", "surrogate_improvement", "step_fraction", "value_loss", "cg_residual"):
        assert logs[1][f"train/{key}"] == pytest.approx(logs[0][f"train/{key}"], rel=0.02, abs=1e-5), key


def test_one_graph_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the memory of a TRPO update would be that of two pieces."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most: list[int] = []

    class Counted(torch_policy.TorchPass):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    (model,) = twins(TRPO, "MlpPolicy", 7)[1:]
    used = model.start_update()
    (rollout,) = used.data(model.rollout_buffer).whole()
    monkeypatch.setattr(torch_policy, "TorchPass", Counted)
    region = model.trust_region(used, model.normalized(rollout))
    region.fisher(region.gradient)
    assert len(most) > 2 and max(most) == 1

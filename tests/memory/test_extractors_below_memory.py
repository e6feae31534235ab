"""What users do to the features extractor below a recurrent network counts in rollouts and updates, as in sb3-contrib."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import twins, update_both
from gymnasium import spaces
from sb3_contrib import RecurrentPPO as ContribRecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from toy_environments import ACTION_SPACES, VECTOR, collect, toy

from sb3_policyopt import RecurrentPPO, RecurrentTRPO
from sb3_policyopt.models.policy_calls import evaluate_actions, get_distribution
from sb3_policyopt.rollout.sequences import from_padded

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


class Tenfold(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return 10 * x


def hook(extractor: Any) -> None:
    extractor.register_forward_hook(lambda _module, _input, output: 10 * output)


def hook_of_part(extractor: Any) -> None:
    extractor.flatten.register_forward_pre_hook(lambda _module, inputs: (10 * inputs[0],))


def own_forward(extractor: Any) -> None:
    extractor.forward = lambda x: 10 * x.flatten(1)


def other_part(extractor: Any) -> None:
    extractor.flatten = nn.Sequential(nn.Flatten(), Tenfold())


CHANGES = pytest.mark.parametrize("change", [hook, hook_of_part, own_forward, other_part], ids=lambda c: c.__name__)


def recurrent_pair(engine: str, **network: Any) -> Any:
    kwargs = {"lstm_hidden_size": 4, "net_arch": [5], **network}
    options = {**SMALL, "policy_kwargs": kwargs}
    return twins(
        ContribRecurrentPPO, RecurrentPPO, "MlpLstmPolicy", lambda: toy(VECTOR, ACTION_SPACES["box_1"]), options, engine=engine
    )


@CHANGES
def test_a_rollout_has_the_values_of_stock(change: Callable[[Any], None]) -> None:
    pair = recurrent_pair("auto")
    for model in pair:
        change(model.policy.features_extractor)
        model.set_random_seed(3)
        model.learn(SMALL["n_steps"] * model.n_envs)
    stock, ours = (model.rollout_buffer for model in pair)
    np.testing.assert_allclose(ours.values, stock.values, rtol=1e-4, atol=1e-6)


@CHANGES
@pytest.mark.parametrize("cls", [RecurrentPPO, RecurrentTRPO])
def test_an_update_starts_from_the_policy_of_the_rollout(cls: type[Any], change: Callable[[Any], None]) -> None:
    model = cls("MlpLstmPolicy", toy(VECTOR, ACTION_SPACES["box_1"]), policy_kwargs={"lstm_hidden_size": 4}, **SMALL)
    change(model.policy.features_extractor)
    collect(model)
    engine = model.start_update()
    (batch,) = engine.data(model.rollout_buffer).whole()
    _, log_prob, _ = evaluate_actions(model.policy, batch)
    np.testing.assert_allclose(batch.old_log_prob, log_prob.detach(), rtol=0, atol=1e-5)
    mean = engine.actor_pass(batch).parameters[0]
    own = from_padded(get_distribution(model.policy, batch).mode(), batch.sequences)
    np.testing.assert_allclose(mean.detach() if isinstance(mean, th.Tensor) else mean, own.detach(), rtol=0, atol=1e-5)


class Changes(BaseCallback):
    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        self.change = change

    def _on_step(self) -> bool:
        if self.n_calls == 5:
            self.change(self.model.policy.features_extractor)
        return True


@CHANGES
def test_a_change_in_the_middle_of_a_rollout(change: Callable[[Any], None]) -> None:
    pair = recurrent_pair("auto")
    for model in pair:
        model.set_random_seed(3)
        model.learn(SMALL["n_steps"] * model.n_envs, callback=Changes(change))
    stock, ours = (model.rollout_buffer for model in pair)
    np.testing.assert_allclose(ours.values, stock.values, rtol=1e-4, atol=1e-6)


class OwnLayers(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Box, layer: Callable[[], nn.Module]) -> None:
        super().__init__(space, 8)
        self.chain = nn.Sequential(nn.Flatten(), nn.Linear(space.shape[0], 8), layer(), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.chain(observations)
        return features


@pytest.mark.parametrize(
    ("layer", "name"),
    [(lambda: nn.BatchNorm1d(8), "autograd"), (lambda: nn.Dropout(0.3), "autograd"), (nn.Identity, "hybrid")],
    ids=["BatchNorm", "Dropout", "neither"],
)
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_statistics_of_batches_are_those_of_stock(layer: Callable[[], nn.Module], name: str, engine: str) -> None:
    """sb3-contrib pads sequences with zeros, and its extractor sees them."""
    pair = recurrent_pair(engine, features_extractor_class=OwnLayers, features_extractor_kwargs={"layer": layer})
    for seed in range(2):
        update_both(pair, seed)
    assert pair.ours.engine_in_use.name == (name if engine == "auto" else engine), pair.ours.engine_in_use.reason
    assert pair.distance <= 1e-5

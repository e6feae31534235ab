"""A function of SB3's modules that somebody replaced does what it does in SB3, whatever the engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from edited_models import ALGORITHMS, OPTIONS, check, model_of
from gymnasium import spaces
from sb3_contrib.common.maskable import distributions as masked_distributions
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common import distributions, policies, preprocessing
from toy_environments import ACTION_SPACES, collect, toy

from sb3_policyopt import PPO, MaskablePPO

PREPROCESS, SUM = preprocessing.preprocess_obs, distributions.sum_independent_dims


class Wider(th.distributions.Normal):
    def __init__(self, loc: Any, scale: Any) -> None:
        super().__init__(loc, 2 * scale)


def doubled(observations: Any, *args: Any, **kwargs: Any) -> Any:
    found = PREPROCESS(observations, *args, **kwargs)
    return {name: 2 * value for name, value in found.items()} if isinstance(found, dict) else 2 * found


REPLACED: list[tuple[Any, str, Callable[..., Any]]] = [
    (policies, "preprocess_obs", doubled),
    (distributions, "sum_independent_dims", lambda tensor: 0.5 * SUM(tensor)),
    (distributions, "Normal", Wider),
]


@ALGORITHMS
@pytest.mark.parametrize("space", ["box", "dict"])
@pytest.mark.parametrize(("module", "name", "replacement"), REPLACED, ids=[name for _, name, _ in REPLACED])
def test_training_is_that_of_stock_with_the_same_function(
    module: Any, name: str, replacement: Any, space: str, cls: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(cls, space).learn(32)
    usual = model.engine_in_use.name
    assert usual == {"box": "closed_form", "dict": "hybrid"}[space]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacement)
        model.learn(32, reset_num_timesteps=False)
        assert model.engine_in_use.name == "autograd"
        assert f"{module.__name__}.{name} was replaced" in model.engine_in_use.reason
        check(cls, space, "box_6", [[], []], [[], []])
    model.learn(32, reset_num_timesteps=False)
    assert model.engine_in_use.name == usual


@pytest.mark.parametrize("name", ["is_image_space", "is_image_space_channels_first"])
def test_what_counts_as_an_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 divides images by 255, here in an ``MlpPolicy``."""
    env = spaces.Box(0, 255, (3, 36, 36), np.uint8), ACTION_SPACES["discrete"]
    models: list[Any] = [cls("MlpPolicy", toy(*env), **OPTIONS[PPO]) for cls in (StockPPO, PPO)]
    stock, ours = models
    collect(ours)
    assert ours.engine_in_use.name == "closed_form"
    monkeypatch.setattr(preprocessing, name, lambda *_, **__: False)
    collect(ours)
    assert ours.engine_in_use.name == "autograd" and f"preprocessing.{name} was replaced" in ours.engine_in_use.reason
    stock.policy.load_state_dict(ours.policy.state_dict())
    observations = th.as_tensor(ours._last_obs)
    with th.no_grad():
        np.testing.assert_allclose(
            ours.engine_in_use.values(ours._last_obs), stock.policy.predict_values(observations)[:, 0], rtol=1e-4
        )


def test_the_distribution_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flatter(masked_distributions.MaskableCategorical):
        def __init__(self, logits: Any) -> None:
            super().__init__(logits=0.5 * logits)

    env = toy(action=ACTION_SPACES["discrete"])
    env.env_method("__setattr__", "action_masks", lambda: np.array([True, False, True, True]))
    models: list[Any] = [cls("MlpPolicy", env, **OPTIONS[PPO]) for cls in (sb3_contrib.MaskablePPO, MaskablePPO)]
    for model in models:
        model.policy.action_net.weight.data.mul_(100)
    assert models[1].prepare_engine().name == "closed_form"
    monkeypatch.setattr(masked_distributions, "MaskableCategorical", Flatter)
    engine = models[1].prepare_engine()
    assert engine.name == "autograd" and "distributions.MaskableCategorical was replaced" in engine.reason
    for model in models:
        np.random.seed(0)
        model.set_random_seed(0)
        model.learn(32)
    for name, parameter in models[1].policy.state_dict().items():
        np.testing.assert_allclose(parameter, models[0].policy.state_dict()[name], rtol=0, atol=4e-5, err_msg=name)

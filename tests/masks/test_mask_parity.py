"""M1: MaskablePPO takes sb3-contrib's very steps: from the same parameters, rollout and seed to the same parameters."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from contrib_twins import MASKABLE, Twins, assert_equal_updates, masked_toy, twins
from gymnasium import spaces
from sb3_contrib import MaskablePPO as ContribPPO
from toy_environments import IMAGE, OBSERVATION_SPACES, VECTOR

from sb3_policyopt import PPO, MaskablePPO

DISCRETE = MASKABLE["discrete"]
SMALL: dict[str, Any] = {"n_steps": 4, "n_epochs": 2, "batch_size": 8}
# As in test_ppo_parity: Adam may move a parameter whose gradient is mere rounding by a noticeable part of a step.
TOLERANCE = 1e-6


class Case(NamedTuple):
    """One way to configure MaskablePPO."""

    arguments: dict[str, Any] = {}
    action: spaces.Space[Any] = DISCRETE
    observation: spaces.Space[Any] = VECTOR
    policy: str = "MlpPolicy"

    def twins(self, **options: Any) -> Twins:
        return twins(
            ContribPPO, MaskablePPO, self.policy, lambda: masked_toy(self.observation, self.action), self.arguments, **options
        )


CASES = {
    **{name: Case(action=space) for name, space in MASKABLE.items()},
    **{f"{name}, entropy": Case({"ent_coef": 0.02}, space) for name, space in MASKABLE.items()},
    **{f"{name}, no normalisation": Case({"normalize_advantage": False}, space) for name, space in MASKABLE.items()},
    "value clipping": Case({"clip_range_vf": 0.01, "ent_coef": 0.01}),
    "target_kl": Case({"target_kl": 0.0005, "n_epochs": 20, "learning_rate": 3e-3}),
    "truncated minibatch": Case({"n_steps": 25}, MASKABLE["multi_discrete"]),
    "separate networks": Case({"policy_kwargs": {"net_arch": {"pi": [32, 16], "vf": [24]}}}, MASKABLE["multi_binary"]),
    "ReLU, weight decay": Case({"policy_kwargs": {"activation_fn": th.nn.ReLU, "optimizer_kwargs": {"weight_decay": 0.01}}}),
    "gradient clipping": Case({"max_grad_norm": 0.01}),
    "images": Case(SMALL, DISCRETE, IMAGE, "CnnPolicy"),
    "images, separate extractors": Case(
        {**SMALL, "policy_kwargs": {"share_features_extractor": False}}, DISCRETE, IMAGE, "CnnPolicy"
    ),
    "dict": Case({}, MASKABLE["multi_discrete"], OBSERVATION_SPACES["dict"], "MultiInputPolicy"),
    "dict with image": Case(SMALL, DISCRETE, OBSERVATION_SPACES["dict_with_image"], "MultiInputPolicy"),
}
FAST = {*MASKABLE}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.fast) if n in FAST else n for n in CASES])
def test_M1_an_update_is_sb3_contribs(name: str, engine: str) -> None:
    assert_equal_updates(CASES[name].twins(engine=engine), TOLERANCE)


def test_M1_ppo_with_a_maskable_policy_is_maskable_ppo(engine: str) -> None:
    """The policy decides: the same update under the name of PPO."""
    arguments: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu", "engine": engine}
    models = [
        PPO("MaskableMlpPolicy", masked_toy(), **arguments).learn(128),
        MaskablePPO("MlpPolicy", masked_toy(), **arguments).learn(128),
    ]
    for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(one, other)


@pytest.mark.parametrize("space", MASKABLE)
@pytest.mark.parametrize("use_masking", [True, False])
def test_a_training_is_sb3_contribs(space: str, use_masking: bool) -> None:
    """The same environments, draws and minibatches: all that was collected, and the parameters after three updates."""
    pair = Case({"n_steps": 24, "n_epochs": 2}, MASKABLE[space]).twins(engine="autograd")
    for model in pair:
        model.set_random_seed(3)
        model.learn(3 * 24 * 4, use_masking=use_masking)
        assert model.num_timesteps == 288
    assert pair.distance <= TOLERANCE
    stock, ours = (model.rollout_buffer for model in pair)
    np.testing.assert_array_equal(ours.actions, stock.actions)
    np.testing.assert_array_equal(ours.action_masks, stock.action_masks.astype(bool))
    assert ours.action_masks.all() != use_masking
    for name in ("observations", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(ours, name), getattr(stock, name), rtol=1e-5, atol=1e-5, err_msg=name)

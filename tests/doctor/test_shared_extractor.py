"""TRPO's critic trains nothing of a features extractor that it shares with the actor: what the doctor says of such runs."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.doctor.report import settings_of
from sb3_policyopt.doctor.rules.critic import useless_critic
from sb3_policyopt.plots.runs import STEPS, read_run
from sb3_policyopt.recording import RunRecorder
from sb3_policyopt.saving.provenance import shared_extractor_parameters

#: NatureCNN on one channel of 40 x 40: convolutions to 9 x 9, 3 x 3 and 1 x 1 with 32, 64 and 64 filters, then 512 features.
NATURE = 8 * 8 * 32 + 32 + 4 * 4 * 32 * 64 + 64 + 3 * 3 * 64 * 64 + 64 + 64 * 512 + 512


def image() -> FakeImageEnv:
    return FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)


def agent(cls: Any, policy: str, env: Any, **policy_kwargs: object) -> Any:
    return cls(policy, env, n_steps=16, batch_size=16, seed=0, device="cpu", policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("cls", "policy_kwargs", "advised"),
    [
        (TRPO, {}, True),
        (TRPO, {"share_features_extractor": True}, True),
        (TRPO, {"share_features_extractor": False}, False),
        (PPO, {}, False),
    ],
)
def test_the_advice_is_for_critics_that_share_what_they_do_not_train(
    tmp_path: Path, cls: Any, policy_kwargs: dict[str, Any], advised: bool
) -> None:
    model = agent(cls, "CnnPolicy", DummyVecEnv([image]), **policy_kwargs)
    model.learn(32, callback=RunRecorder(tmp_path))
    log = pd.DataFrame({STEPS: range(12), "train/explained_variance": -0.1})
    finding = useless_critic.check(log, settings_of(read_run(tmp_path)))
    assert finding is not None
    assert ("share_features_extractor=False" in finding.advice) == advised
    assert (f"none of the {NATURE} parameters" in finding.advice) == advised
    assert "Normalise observations" in finding.advice
    recorded = json.loads((tmp_path / "provenance.json").read_text())["shared_extractor_parameters"]
    assert recorded == (0 if policy_kwargs.get("share_features_extractor") is False else NATURE)


def test_only_trainable_parameters_of_both_count() -> None:
    bits = agent(TRPO, "MultiInputPolicy", DummyVecEnv([BitFlippingEnv]))
    assert shared_extractor_parameters(bits.policy) == 0  # SB3's extractor flattens a dict of vectors
    assert shared_extractor_parameters(agent(TRPO, "MlpPolicy", "CartPole-v1").policy) == 0
    frozen = agent(TRPO, "CnnPolicy", DummyVecEnv([image])).policy
    frozen.features_extractor.cnn.requires_grad_(False)
    assert shared_extractor_parameters(frozen) == 64 * 512 + 512
    assert shared_extractor_parameters(nn.Linear(2, 2)) == 0

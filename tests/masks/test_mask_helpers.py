"""sb3-contrib's helpers work on our models, and predict takes masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from contrib_twins import MASKABLE, is_allowed, masked_toy
from sb3_contrib import MaskablePPO as ContribPPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy as plain_evaluate_policy
from toy_environments import VECTOR, toy

from sb3_policyopt import PPO, TRPO, MaskablePPO, MaskableTRPO, RecurrentPPO

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "seed": 0, "device": "cpu"}
MODELS = {
    "MaskablePPO": lambda env: MaskablePPO("MlpPolicy", env, **SMALL),
    "MaskableTRPO": lambda env: MaskableTRPO("MlpPolicy", env, **SMALL),
    "PPO": lambda env: PPO("MaskableMlpPolicy", env, **SMALL),
    "with memory": lambda env: TRPO("MaskableMlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 8}, **SMALL),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@models
def test_evaluate_policy_draws_allowed_actions(make: Callable[..., Any]) -> None:
    env: Any = masked_toy(n_envs=2)
    model = make(masked_toy())
    for deterministic in (True, False):
        mean, std = evaluate_policy(model, env, n_eval_episodes=4, deterministic=deterministic, warn=False)
        assert np.isfinite([mean, std]).all()
    taken = [entry for number in range(2) for entry in env.envs[number].get_wrapper_attr("taken")]
    assert len(taken) > 20
    assert all(is_allowed(MASKABLE["discrete"], *entry) for entry in taken)
    mean, _ = plain_evaluate_policy(model, env, n_eval_episodes=4, warn=False)  # SB3's passes no masks
    assert np.isfinite(mean)


@models
def test_eval_callback(make: Callable[..., Any], tmp_path: Path) -> None:
    env = masked_toy(n_envs=1)
    callback = MaskableEvalCallback(env, eval_freq=32, n_eval_episodes=2, best_model_save_path=str(tmp_path), warn=False)
    make(masked_toy()).learn(256, callback=callback)
    assert callback.n_calls >= 64 and np.isfinite(callback.best_mean_reward)
    assert (tmp_path / "best_model.zip").exists()


@models
def test_callbacks_see_masks_as_local_variables(make: Callable[..., Any]) -> None:
    class Look(BaseCallback):
        n_seen = 0

        def _on_step(self) -> bool:
            masks = self.locals["action_masks"]
            assert masks.shape == (4, 4) and masks.dtype == bool
            actions = self.locals["actions"].reshape(4, 1).astype(int)
            assert np.take_along_axis(masks, actions, 1).all()
            self.n_seen += not masks.all()
            return True

    look = Look()
    make(masked_toy()).learn(128, callback=look)
    assert look.n_seen > 20


def test_contribs_functions_on_the_environments_of_a_model() -> None:
    model = MaskablePPO("MlpPolicy", masked_toy(), **SMALL)
    assert model.env is not None
    model.env.reset()
    assert is_masking_supported(model.get_env()) and not is_masking_supported(toy())
    assert get_action_masks(model.get_env()).shape == (4, 4)


@pytest.mark.parametrize("space", MASKABLE)
@pytest.mark.parametrize("deterministic", [True, False])
def test_M1_predict_takes_masks_as_sb3_contribs(space: str, deterministic: bool, engine: str) -> None:
    stock = ContribPPO("MlpPolicy", masked_toy(action=MASKABLE[space]), **SMALL)
    ours = MaskablePPO("MlpPolicy", masked_toy(action=MASKABLE[space]), engine=engine, **SMALL)
    ours.policy.load_state_dict(stock.policy.state_dict())
    env = masked_toy(action=MASKABLE[space])
    observations: Any = env.reset()
    for step in range(20):
        masks = np.stack(env.env_method("action_masks"))
        results = []
        for model in (stock, ours):
            th.manual_seed(step)
            results.append(model.predict(observations, deterministic=deterministic, action_masks=masks)[0])
        np.testing.assert_array_equal(results[0], results[1])
        assert all(is_allowed(MASKABLE[space], *entry) for entry in zip(results[1], masks, strict=True))
        one = ours.predict(observations[0], deterministic=True, action_masks=masks[0])[0]
        assert is_allowed(MASKABLE[space], one, masks[0])
        observations = env.step(results[1])[0]


def test_M1_predict_with_memory_takes_masks() -> None:
    """Each action in turn is the only allowed one; the states are those without masks."""
    model = PPO("MaskableMlpLstmPolicy", masked_toy(), policy_kwargs={"lstm_hidden_size": 8}, **SMALL)
    observations, state, plain_state = np.zeros((2, *VECTOR.shape), np.float32), None, None
    for action in range(4):
        masks = np.eye(4, dtype=bool)[[action, 3 - action]]
        actions, state = model.predict(observations, state, np.zeros(2, bool), action_masks=masks)
        assert actions.tolist() == [action, 3 - action]
        _, plain_state = model.predict(observations, plain_state, np.zeros(2, bool))
        assert state is not None and plain_state is not None
        for a, b in zip(state, plain_state, strict=True):
            assert a.shape == (1, 2, 8)
            np.testing.assert_array_equal(a, b)
        observations = observations + 0.5


@pytest.mark.parametrize(
    "model",
    [
        lambda: PPO("MlpPolicy", toy(), **SMALL),
        lambda: TRPO("MlpPolicy", toy(), **SMALL),
        lambda: RecurrentPPO("MlpLstmPolicy", toy(), policy_kwargs={"lstm_hidden_size": 8}, **SMALL),
    ],
)
def test_M1_predict_with_masks_on_a_policy_without_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="takes no masks"):
        model().predict(np.zeros((1, 4), np.float32), action_masks=np.ones((1, 4), bool))

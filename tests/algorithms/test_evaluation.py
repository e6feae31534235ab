"""sb3_policyopt.evaluation and the callback: the masks are those of each step, and memory is kept."""

from typing import Any, cast

import numpy as np
import pytest
from sb3_contrib.common.maskable import evaluation as of_contrib
from stable_baselines3.common import evaluation as of_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_environments import Counting

import sb3_policyopt.envs  # noqa: F401  registers MaskedRoute-v0
from sb3_policyopt import PPO, MaskablePPO, RecurrentPPO
from sb3_policyopt.callbacks import EvalCallback
from sb3_policyopt.evaluation import evaluate_policy

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "seed": 0, "device": "cpu"}


class OwnMasks(DummyVecEnv):
    """A VecEnv with masks of its own."""

    def action_masks(self) -> np.ndarray:
        return np.stack([cast(Counting, env).masks() for env in self.envs])


def counting(where: str, n_envs: int = 2) -> DummyVecEnv:
    kind = OwnMasks if where == "VecEnv" else DummyVecEnv
    return kind([lambda: Counting(where)] * n_envs)


@pytest.mark.parametrize("where", ["method", "info", "VecEnv"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_masks_are_those_of_each_step_wherever_they_come_from(where: str, policy: str) -> None:
    model = MaskablePPO(policy, counting(where), **SMALL)
    returns, lengths = evaluate_policy(model, counting(where), 5, return_episode_rewards=True, warn=False)
    assert returns == [7.0] * 5 and lengths == [7] * 5
    callback = EvalCallback(counting(where), eval_freq=16, n_eval_episodes=3, warn=False, verbose=0)
    model.learn(64, callback=callback)
    assert callback.last_mean_reward == 7.0 and callback.model is model


def test_a_second_training_starts_with_the_masks_of_the_reset_environments() -> None:
    """The masks of the first training's last observations belong to no environment any more."""
    model = MaskablePPO("MlpPolicy", counting("info"), **SMALL).learn(64)
    model.learn(64)


def test_an_agent_without_masks_or_memory_is_evaluated_as_in_sb3() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    scores = [
        evaluate(model, make_vec_env("CartPole-v1", 2, seed=3), 4) for evaluate in (evaluate_policy, of_sb3.evaluate_policy)
    ]
    assert scores[0] == scores[1]


def test_an_agent_with_masks_is_evaluated_as_in_sb3_contrib() -> None:
    model = MaskablePPO("MlpPolicy", "MaskedRoute-v0", **SMALL)
    scores = [
        evaluate(model, make_vec_env("MaskedRoute-v0", 2, seed=3), 4)
        for evaluate in (evaluate_policy, of_contrib.evaluate_policy)
    ]
    assert scores[0] == scores[1]
    with pytest.raises(ValueError, match="does not support action masking"):
        evaluate_policy(model, make_vec_env("CartPole-v1", 1))


def test_without_masks_where_they_were_not_used() -> None:
    env = make_vec_env("MaskedRoute-v0", 1, seed=0)
    model = MaskablePPO("MlpPolicy", env, **SMALL).learn(32, use_masking=False)
    scores = [
        evaluate(model, make_vec_env("MaskedRoute-v0", 1, seed=3), 2) for evaluate in (evaluate_policy, of_sb3.evaluate_policy)
    ]
    assert scores[0] == scores[1]


def test_memory_is_kept_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """sb3-contrib's evaluation of masks hands no state on."""
    model = PPO("MaskableMlpLstmPolicy", "MaskedRoute-v0", **SMALL)
    states = []
    predict = model.predict

    def spy(observation: Any, state: Any, episode_start: Any, deterministic: bool, action_masks: Any) -> Any:
        states.append(state)
        return predict(observation, state, episode_start, deterministic, action_masks)

    monkeypatch.setattr(model, "predict", spy)
    evaluate_policy(model, make_vec_env("MaskedRoute-v0", 1, seed=3), 1)
    assert states[0] is None and all(np.abs(state[0]).sum() > 0 for state in states[1:])
    assert not np.array_equal(states[1][0], states[2][0])


def test_the_callback_synchronises_statistics() -> None:
    env, other = (VecNormalize(make_vec_env("CartPole-v1", 1, seed=seed)) for seed in (0, 1))
    other.training = False
    callback = EvalCallback(other, eval_freq=64, n_eval_episodes=1, verbose=0)
    RecurrentPPO("MlpLstmPolicy", env, **SMALL).learn(64, callback=callback)
    of_other, of_env = cast(RunningMeanStd, other.obs_rms), cast(RunningMeanStd, env.obs_rms)
    np.testing.assert_array_equal(of_other.mean, of_env.mean)

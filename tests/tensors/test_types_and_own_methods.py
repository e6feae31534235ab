"""Rollouts of tensors: types of observations and actions, and what a policy or a buffer has of its own."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from tensor_models import AutoresetMode, gymnasium_1_1, model_on

from sb3_policyopt import PPO
from sb3_policyopt.envs.tensors import (
    TensorPendulum,
    TensorStep,
    TensorVecEnv,
    TensorVecNormalize,
    from_gymnasium_vector,
)
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}


class Memory(gym.Env[Any, Any]):
    """Observations are bytes, as those of a game's memory."""

    observation_space = spaces.Box(0, 255, (4,), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.n_steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return self.observe(), 1.0, False, self.n_steps == 9, {}

    def observe(self) -> Any:
        return self.np_random.integers(0, 256, 4).astype(np.uint8)


class Sees(BaseCallback):
    """Keeps what the policy saw, and what the environments had given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.given: list[Any] = []

    def _on_step(self) -> bool:
        self.seen.append(self.locals["obs_tensor"].numpy())
        self.given.append(np.array(self.locals["new_obs"]))
        return True


def vector_of_bytes(normalised: bool) -> Any:
    env = gym.vector.SyncVectorEnv([Memory] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    tensors = from_gymnasium_vector(env)
    return TensorVecNormalize(tensors) if normalised else tensors


@gymnasium_1_1
def test_normalised_bytes_reach_the_policy_as_they_are() -> None:
    callback = Sees()
    model = model_on(PPO, vector_of_bytes(normalised=True), **SMALL).learn(2 * 32, callback)
    assert type(model.rollout_buffer) is TensorRolloutBuffer and model.rollout_buffer.observations.dtype == th.float32
    for seen, given in zip(callback.seen[1:], callback.given, strict=False):
        np.testing.assert_array_equal(seen, given)
    fractions = np.concatenate(callback.seen) % 1
    assert (fractions != 0).mean() > 0.9


@gymnasium_1_1
def test_the_buffer_follows_a_normalisation_that_comes_later() -> None:
    model = model_on(PPO, vector_of_bytes(normalised=False), **SMALL).learn(32)
    assert model.rollout_buffer.observations.dtype == th.uint8
    model.set_env(vector_of_bytes(normalised=True))
    assert model.learn(32).rollout_buffer.observations.dtype == th.float32


class Takes(TensorVecEnv):
    """Keeps the types and numbers of actions; the reward is their sum."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(4, spaces.Box(-1, 1, (1,), np.float32), space, "cpu")
        self.taken: list[th.Tensor] = []

    def reset_tensors(self, seed: int | None = None) -> th.Tensor:
        self.n_steps = 0
        return th.zeros(4, 1)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        self.taken.append(actions.clone())
        self.n_steps += 1
        over = th.full((4,), self.n_steps % 5 == 0)
        rewards = actions.float().reshape(4, -1).sum(1)
        return TensorStep(th.zeros(4, 1), rewards, th.zeros(4, dtype=th.bool), over, {"final_obs": th.zeros(4, 1)})


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(0, 3, (1,), np.int32), th.int32),
        (spaces.Box(-1, 1, (2,), np.float64), th.float64),
        (spaces.Box(-1, 1, (2,), np.float32), th.float32),
        (spaces.MultiBinary(3), th.int8),
        (spaces.Discrete(3), th.int64),
        (spaces.MultiDiscrete([2, 3]), th.int64),
    ],
    ids=str,
)
def test_training_and_evaluation_give_actions_of_one_type(space: spaces.Space[Any], dtype: th.dtype) -> None:
    env = Takes(space)
    model = model_on(PPO, env, **SMALL).learn(64)
    in_training, env.taken = env.taken, []
    evaluate_policy(model, env, 4, deterministic=False, warn=False)
    assert len(in_training) == 16 and env.taken
    for taken in (in_training, env.taken):
        assert {actions.dtype for actions in taken} == {dtype}
        assert all(space.contains(action.numpy().astype(space.dtype)) for actions in taken for action in actions)


class OwnScale(ActorCriticPolicy):
    def unscale_action(self, scaled_action: Any) -> Any:
        return 0 * np.asarray(scaled_action) + 1.25


class OwnTensors(ActorCriticPolicy):
    def obs_to_tensor(self, observation: Any) -> Any:
        tensor: Any
        tensor, vectorized = super().obs_to_tensor(observation)
        return 100 * tensor, vectorized


def test_a_policys_own_scale_of_actions_is_used() -> None:
    """As SB3's PPO uses it on the same environments, through arrays; a warning says so."""
    applied = []

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            applied.append(np.asarray(self.locals["clipped_actions"]))
            return True

    options: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}, "seed": 0, "device": "cpu", **SMALL}
    for algorithm in (stable_baselines3.PPO, PPO):
        model: Any = algorithm(OwnScale, TensorPendulum(3, device="cpu"), **options)
        if algorithm is PPO:
            with pytest.warns(UserWarning, match="unscale_action of the policy is not that of BasePolicy"):
                model.learn(24, Looks())
        else:
            model.learn(24, Looks())
    assert (np.concatenate(applied) == 1.25).all() and len(applied) == 16


def test_a_policys_own_tensors_of_final_observations_are_used() -> None:
    with pytest.warns(UserWarning, match="obs_to_tensor of the policy is not that of BaseModel"):
        model = PPO(OwnTensors, TensorPendulum(3, device="cpu", max_episode_steps=4), seed=0, device="cpu", **SMALL).learn(24)
    assert type(model.rollout_buffer) is not TensorRolloutBuffer


def test_a_replaced_add_of_the_buffer_is_refused() -> None:
    class Replaces(BaseCallback):
        def _on_rollout_start(self) -> None:
            buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
            buffer.add = lambda *args: type(buffer).add(buffer, *args)

        def _on_step(self) -> bool:
            return True

    with pytest.raises(ValueError, match=r"rollout_buffer\.add was replaced.*rollout_buffer_class"):
        model_on(PPO, TensorPendulum(3, device="cpu"), **SMALL).learn(24, Replaces())

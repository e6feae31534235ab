"""What a time limit cuts off is bootstrapped with V(final observation), and blamed under that name where it is not finite."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_policyopt import PPO, TRPO, NonFiniteError

N_STEPS, LENGTH, BAD = 12, 5, 1
"""Steps of a rollout, of an episode, and the environment with the fault."""


class CutOff(gym.Env):
    """Zeros for observations. After five steps an episode ends, and some episodes end with what ``faults`` says."""

    action_space = spaces.Discrete(2)

    def __init__(self, ends: str = "truncated", dictionary: bool = False, episode: int = 0, **faults: Any) -> None:
        box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = spaces.Dict({"speed": box, "height": box}) if dictionary else box
        self.ends, self.dictionary, self.episode, self.faults, self.episodes = ends, dictionary, episode, faults, -1

    def observation(self, value: float = 0.0) -> Any:
        faulty = np.array([0, value, 0], np.float32)
        return {"speed": np.zeros(3, np.float32), "height": faulty} if self.dictionary else faulty

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, ...]:
        self.episodes += 1
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        over = self.steps == LENGTH
        faults = self.faults if self.episodes == self.episode else {}
        observation = self.observation(faults.get("final", 0.0) if over else 0.0)
        reward = faults.get("reward", 1.0) if over else faults.get("early_reward", 1.0) if self.steps == 2 else 1.0
        return observation, reward, over and self.ends == "terminated", over and self.ends == "truncated", {}


def make(algorithm: type[Any], engine: str, others: dict[str, float] | None = None, **faults: Any) -> Any:
    shared: dict[str, Any] = {name: faults[name] for name in ("dictionary", "ends") if name in faults}
    everyone: list[dict[str, Any]] = [{**shared, **(others or {})}, faults, shared]
    venv = DummyVecEnv([partial(CutOff, **options) for options in everyone])
    policy = "MultiInputPolicy" if faults.get("dictionary") else "MlpPolicy"
    return algorithm(policy, venv, n_steps=N_STEPS, batch_size=18, engine=engine, seed=0, device="cpu")


both = pytest.mark.parametrize("algorithm", [PPO, TRPO])
engines = pytest.mark.parametrize("engine", ["autograd", "auto"])


def message(model: Any) -> str:
    before = th.nn.utils.parameters_to_vector(model.policy.parameters()).clone()
    with pytest.raises(NonFiniteError) as caught:
        model.learn(N_STEPS * 3 * 2)
    if model._n_updates == 0:
        assert th.equal(before, th.nn.utils.parameters_to_vector(model.policy.parameters()))
    return str(caught.value)


@both
@engines
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("episode", "step"), [(0, 4), (1, 9), (2, 2)]
)  # ends with its 5th, 10th, 15th step; the last is 12 + 2
def test_it_is_named_with_its_environment_and_step(
    algorithm: type[Any], engine: str, value: float, episode: int, step: int
) -> None:
    text = message(make(algorithm, engine, final=value, episode=episode))
    assert text.startswith(f"Non-finite final observation in environment {BAD} at step {step} of the rollout")
    assert "terminal_observation" in text and "reward function" not in text


@both
@engines
def test_a_key_of_a_dict_is_named(algorithm: type[Any], engine: str) -> None:
    text = message(make(algorithm, engine, dictionary=True, final=np.nan))
    assert text.startswith(f"Non-finite final observation (key 'height') in environment {BAD} at step 4 ")


@both
@engines
@pytest.mark.parametrize("faults", [{"reward": np.nan}, {"reward": np.nan, "final": np.nan}])
def test_a_reward_of_the_same_step_is_named_as_the_reward_that_it_is(
    algorithm: type[Any], engine: str, faults: dict[str, Any]
) -> None:
    """Of both it comes first, as in any other step."""
    assert message(make(algorithm, engine, **faults)).startswith(f"Non-finite reward in environment {BAD} at step 4 ")


@both
def test_a_reward_of_another_environment(algorithm: type[Any]) -> None:
    text = message(make(algorithm, "auto", others={"reward": np.inf}, final=np.nan))
    assert text.startswith("Non-finite reward in environment 0 at step 4 ")


@both
@engines
def test_what_went_wrong_before_and_has_not_been_looked_at_yet_comes_first(algorithm: type[Any], engine: str) -> None:
    text = message(make(algorithm, engine, others={"early_reward": np.nan}, final=np.nan))
    assert text.startswith("Non-finite reward in environment 0 at step 1 ")


@both
@engines
def test_a_value_that_overflows_for_a_finite_final_observation(algorithm: type[Any], engine: str) -> None:
    model = make(algorithm, engine, final=1e38)
    with th.no_grad():  # relu-like growth: tanh would bound it
        model.policy.mlp_extractor.value_net[0].weight.fill_(0.0)
        model.policy.value_net.bias.fill_(3e38)
        model.policy.value_net.weight.fill_(3e38)
        model.policy.mlp_extractor.value_net[2].weight.fill_(1.0)
        model.policy.mlp_extractor.value_net[0].weight[:, 1] = 1.0
    text = message(model)
    assert text.startswith(f"Non-finite value of the final observation in environment {BAD} at step 4 ")
    assert "critic" in text


@both
def test_a_sum_that_overflows_of_numbers_that_do_not(algorithm: type[Any]) -> None:
    model = make(algorithm, "auto", reward=3e38)
    with th.no_grad():
        model.policy.value_net.weight.fill_(0.0)
        model.policy.value_net.bias.fill_(3e38)
    text = message(model)
    assert text.startswith(f"Non-finite reward with the value of the final observation in environment {BAD} at step 4 ")
    assert "reward function" not in text


@both
@engines
def test_the_final_observation_of_a_terminated_episode_is_nobodys_business(algorithm: type[Any], engine: str) -> None:
    """Its value is zero by definition; SB3 does not look at it either."""
    assert make(algorithm, engine, ends="terminated", final=np.nan).learn(N_STEPS * 3)._n_updates > 0


def test_final_observations_of_integers() -> None:
    class Counting(CutOff):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Discrete(LENGTH + 1)

        def observation(self, value: float = 0.0) -> int:
            return self.steps

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
            self.steps = 0
            return super().reset()

    assert PPO("MlpPolicy", DummyVecEnv([Counting] * 2), n_steps=N_STEPS, batch_size=24, device="cpu").learn(24)._n_updates

"""Environments that remember what they gave, and what a policy's networks make of whole episodes, computed by hand."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch as th
from contrib_twins import MASKABLE, MaskedToy
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toy_environments import VECTOR

from benchmarks.environments import ToyEnv


@dataclass
class Episode:
    """Observations (one more than rewards), rewards, and whether a time limit cut it off, once it is over."""

    observations: list[np.ndarray]
    rewards: list[float] = field(default_factory=list)
    truncated: bool | None = None


class Recorded(MaskedToy):
    """Keeps its episodes."""

    def __init__(self, action: spaces.Space[Any]) -> None:
        ToyEnv.__init__(self, VECTOR, action)
        self.taken: list[Any] = []
        self.kept: list[Episode] = []

    def _forbid(self) -> np.ndarray:
        return super()._forbid() if not isinstance(self.action_space, spaces.Box) else np.empty(0, bool)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        self.kept.append(Episode([observation]))
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.kept[-1].observations.append(observation)
        self.kept[-1].rewards.append(reward)
        if terminated or truncated:
            self.kept[-1].truncated = truncated
        return observation, reward, terminated, truncated, info


def recorded(action: spaces.Space[Any] = MASKABLE["discrete"], n_envs: int = 3) -> VecEnv:
    return make_vec_env(lambda: Recorded(action), n_envs, seed=0)


def episodes_of(env: VecEnv, number: int) -> list[Episode]:
    """Of one environment."""
    return cast(DummyVecEnv, env).envs[number].get_wrapper_attr("kept")


@dataclass
class ByHand:
    """
    What one environment's steps should have led to, one row a step.

    :param values: V before each step
    :param rewards: with γ V(final observation) added where a time limit ended the episode
    :param hidden: the actor's and the critic's hidden states before each step
    :param last_value: V of the observation after the last step
    """

    values: np.ndarray
    rewards: np.ndarray
    hidden: tuple[np.ndarray, np.ndarray]
    last_value: float


def by_hand(policy: Any, episodes: list[Episode], gamma: float) -> ByHand:
    """
    Run the recurrent networks over each whole episode, from zero states, once a step.

    :param policy: with memory
    :param episodes: of one environment
    :param gamma: γ
    """
    values, rewards = [], []
    hidden: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for episode in episodes:
        features = th.as_tensor(np.array(episode.observations))
        outputs, before = zip(*(run(network, features) for network in networks(policy)), strict=True)
        of_critic = outputs[1] if policy.critic is None else policy.critic(features)
        with th.no_grad():
            v = policy.value_net(policy.mlp_extractor.forward_critic(of_critic))[:, 0].numpy()
        n = len(episode.rewards)
        values += v[:n].tolist()
        with_final = list(episode.rewards)
        if episode.truncated:
            with_final[-1] += gamma * float(v[n])
        rewards += with_final
        for states, part in zip(hidden, before, strict=True):
            states += part[:n]
    last = 0.0 if episodes[-1].truncated is not None else float(v[n])
    return ByHand(np.array(values), np.array(rewards), (np.array(hidden[0]), np.array(hidden[1])), last)


def networks(policy: Any) -> tuple[Any, Any]:
    """The recurrent networks whose states are the actor's and the critic's."""
    return policy.lstm_actor, policy.lstm_critic if policy.lstm_critic is not None else policy.lstm_actor


def run(network: Any, features: th.Tensor) -> tuple[th.Tensor, list[np.ndarray]]:
    """Outputs at each time, and the hidden states before it, shape (n_layers, hidden)."""
    zeros = th.zeros(network.num_layers, 1, network.hidden_size)
    states, outputs, before = (zeros, zeros), [], []
    with th.no_grad():
        for row in features:
            before.append(states[0][:, 0].numpy())
            output, states = network(row[None, None], states)
            outputs.append(output[0, 0])
    return th.stack(outputs), before

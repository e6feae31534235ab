"""Image environments that cost next to nothing, so that the learning is what is measured."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class Ball(gym.Env[np.ndarray, int]):
    """
    Keep a paddle under a ball that falls through a square image; 3 actions, 1 point for each ball caught.

    :param size: pixels on each side
    :param channels: number of equal channels
    """

    def __init__(self, size: int = 36, channels: int = 1):
        self.size = size
        self.observation_space = spaces.Box(0, 255, (channels, size, size), np.uint8)
        self.action_space = spaces.Discrete(3)  # type: ignore[assignment]
        self.image = np.zeros((channels, size, size), np.uint8)

    def _draw(self) -> np.ndarray:
        self.image[:] = 0
        self.image[:, self.row : self.row + 3, self.column : self.column + 3] = 255
        self.image[:, -3:, self.paddle : self.paddle + 6] = 255
        return np.array(self.image)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A ball at the top and the paddle in the middle."""
        super().reset(seed=seed)
        self.row, self.paddle = 0, self.size // 2
        self.column = int(self.np_random.integers(self.size - 3))
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the paddle left, not at all or right; the ball falls by two pixels."""
        self.paddle = min(max(self.paddle + 3 * (int(action) - 1), 0), self.size - 6)
        self.row += 2
        landed = self.row >= self.size - 6
        caught = landed and self.paddle - 3 <= self.column <= self.paddle + 6
        return self._draw(), float(caught), landed, False, {}


class Cells(gym.Env[np.ndarray, int]):
    """Walk to a goal on 7×7 cells of three numbers, an observation of MiniGrid's size; 4 actions, 1 point at the goal."""

    MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (3, 7, 7), np.uint8)
        self.action_space = spaces.Discrete(4)  # type: ignore[assignment]
        self.cells = np.zeros((3, 7, 7), np.uint8)

    def _draw(self) -> np.ndarray:
        self.cells[:] = 1
        self.cells[:, self.goal[0], self.goal[1]] = (8, 1, 0)
        self.cells[:, self.place[0], self.place[1]] = (10, 0, 3)
        return np.array(self.cells)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Walker and goal on two different cells."""
        super().reset(seed=seed)
        first, second = self.np_random.choice(49, 2, replace=False)
        self.place, self.goal, self.steps = np.array(divmod(first, 7)), np.array(divmod(second, 7)), 0
        return self._draw(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move up, down, left or right, as far as the walls allow; 100 steps at most."""
        self.place = np.clip(self.place + self.MOVES[int(action)], 0, 6)
        self.steps += 1
        reached = bool((self.place == self.goal).all())
        return self._draw(), float(reached), reached, self.steps == 100, {}


class SmallCNN(BaseFeaturesExtractor):
    """
    Convolutions of 2×2 and a linear layer, as people write for MiniGrid's 7×7 cells.

    :param observation_space: images
    :param channels: of each convolution
    :param features_dim: number of features
    """

    def __init__(self, observation_space: spaces.Box, channels: Sequence[int] = (16, 32, 64), features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        n_channels, height, width = observation_space.shape
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((n_channels, *channels)):
            layers += [nn.Conv2d(n_in, n_out, 2), nn.ReLU()]
        n_flat = channels[-1] * (height - len(channels)) * (width - len(channels))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_flat, features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features of shape (batch, features_dim)."""
        features: th.Tensor = self.layers(observations)
        return features


class Recall(gym.Env[np.ndarray, int]):
    """
    Say after some steps which of four cues the first observation showed; 1 point if it was that one.

    An observation is four places for the cue, and the time that has passed, from 0 to 1.

    :param steps: from the cue to the question
    """

    def __init__(self, steps: int = 10) -> None:
        self.steps = steps
        self.observation_space = spaces.Box(0, 1, (5,), np.float32)
        self.action_space = spaces.Discrete(4)  # type: ignore[assignment]

    def _observation(self) -> np.ndarray:
        observation = np.zeros(5, np.float32)
        if self.time == 0:
            observation[self.cue] = 1
        observation[4] = self.time / self.steps
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new cue."""
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.integers(4)), 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The last action is the answer; the others do nothing."""
        asked = self.time == self.steps
        reward = float(asked and int(action) == self.cue)
        self.time = min(self.time + 1, self.steps)
        return self._observation(), reward, asked, False, {}


class AllAllowed(gym.Wrapper[Any, Any, Any, Any]):
    """Masks that allow every action: what masks cost, on any environment with Discrete actions."""

    def action_masks(self) -> np.ndarray:
        """Bool, shape (n,)."""
        assert isinstance(self.action_space, spaces.Discrete)
        return np.ones(int(self.action_space.n), bool)


def limited(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Episodes of at most 200 steps: without masks a policy that names forbidden actions would never arrive."""
    return gym.wrappers.TimeLimit(env, 200)


def masked_cartpole(**kwargs: Any) -> gym.Env[Any, Any]:
    """CartPole-v1 with masks."""
    return AllAllowed(gym.make("CartPole-v1", **kwargs))


gym.register("benchmarks/Recall-v0", entry_point="benchmarks.environments:Recall")
gym.register("benchmarks/MaskedCartPole-v1", entry_point=masked_cartpole)
gym.register("benchmarks/Cells-v0", entry_point="benchmarks.environments:Cells")
gym.register("benchmarks/Ball-v0", entry_point="benchmarks.environments:Ball")
gym.register("benchmarks/Frames-v0", entry_point="benchmarks.environments:Ball", kwargs={"size": 84, "channels": 4})


VECTOR, ONE_NUMBER = spaces.Box(-1, 1, (4,), np.float32), spaces.Box(-1, 1, (1,), np.float32)


class ToyEnv(gym.Env[Any, Any]):
    """
    Random observations; the reward is high for actions near a fixed linear function of the observation.

    Episodes last 4 to 11 steps and end by turns with a termination and a truncation.

    :param observation_space: any of SB3's
    :param action_space: any of SB3's
    """

    def __init__(self, observation_space: spaces.Space[Any] = VECTOR, action_space: spaces.Space[Any] = ONE_NUMBER) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        n_inputs = len(spaces.flatten(observation_space, observation_space.sample()))
        n_outputs = len(spaces.flatten(action_space, action_space.sample()))
        self.weights = np.random.default_rng(0).normal(size=(n_outputs, n_inputs)) / np.sqrt(n_inputs)
        self.episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new episode of 4 to 11 steps."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episodes += 1
        self.steps_left = int(self.np_random.integers(4, 12))
        self.observation = self.observation_space.sample()
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The reward is the negative mean squared distance from the wanted action."""
        inputs = spaces.flatten(self.observation_space, self.observation)
        inputs = inputs / max(1.0, float(np.abs(inputs).max()))
        wanted = self.weights @ inputs
        reward = -float(np.mean((spaces.flatten(self.action_space, action) - wanted) ** 2))
        self.steps_left -= 1
        over, truncation = self.steps_left == 0, self.episodes % 2 == 0
        self.observation = self.observation_space.sample()
        return self.observation, reward, over and not truncation, over and truncation, {}

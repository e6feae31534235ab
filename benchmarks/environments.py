"""Image environments that cost next to nothing, so that the learning is what is measured."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


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


gym.register("benchmarks/Ball-v0", entry_point="benchmarks.environments:Ball")
gym.register("benchmarks/Frames-v0", entry_point="benchmarks.environments:Ball", kwargs={"size": 84, "channels": 4})

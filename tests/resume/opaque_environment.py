"""An environment whose state no checkpoint can keep."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Opaque(gym.Env):
    """Its state is in a generator, which cannot be pickled."""

    observation_space = spaces.Box(-1, 1, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.numbers = self._count(0)

    def _count(self, start: int) -> Iterator[int]:
        number = start
        while True:
            yield number
            number += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        return self._observation(), 1.0, self.np_random.random() < 0.1, False, {}

    def _observation(self) -> np.ndarray:
        self.last = next(self.numbers)
        return np.array([np.sin(self.last + action_free_noise(self))])


def action_free_noise(env: gym.Env[Any, Any]) -> float:
    return env.np_random.random()

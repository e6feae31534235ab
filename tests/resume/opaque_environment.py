"""An environment whose state no checkpoint can keep."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Opaque(gym.Env):
    """Its state is in a generator, which cannot be pickled."""

    observation_space = spaces.Box(-1, 1, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.numbers = self._count(0)

    def _count(self, start):
        number = start
        while True:
            yield number
            number += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        return self._observation(), 1.0, self.np_random.random() < 0.1, False, {}

    def _observation(self):
        self.last = next(self.numbers)
        return np.array([np.sin(self.last + action_free_noise(self))])


def action_free_noise(env):
    return env.np_random.random()

"""A training in which one rank meets a misfortune after some steps: ``faulty.py WHAT RANK``."""

import os
import signal
import sys
import time
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.wrappers import TimeLimit

from sb3_policyopt import PPO
from sb3_policyopt.parallel import launcher


class Unlucky(gym.Wrapper):
    def __init__(self, env: Any, what: Any) -> None:
        super().__init__(env)
        self.what, self.steps = what, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 100:
            if self.what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.what == "raises":
                raise ZeroDivisionError("the simulator fell over")
            elif self.what == "hangs":
                time.sleep(1000)
        return super().step(action)


if __name__ == "__main__":
    th.set_num_threads(1)
    what, unlucky = sys.argv[1], int(sys.argv[2])
    if what == "absent" and launcher.rank() == unlucky:
        sys.exit(0)
    env = Unlucky(TimeLimit(gym.make("CartPole-v1").unwrapped, 50), what if launcher.rank() == unlucky else "nothing")
    n_steps = 32 + 8 * (what == "disagrees" and launcher.rank() == unlucky)
    PPO("MlpPolicy", env, n_steps=n_steps, batch_size=n_steps, n_epochs=1, seed=0).learn(100_000)

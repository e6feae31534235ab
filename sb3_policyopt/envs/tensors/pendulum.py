"""Gymnasium's Pendulum-v1 for many environments at once."""

import math
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.envs.classic_control.pendulum import DEFAULT_X, DEFAULT_Y, PendulumEnv

from sb3_policyopt.envs.tensors.classic_control import ClassicControl


class TensorPendulum(ClassicControl):
    """
    Pendulum-v1 in torch: a step of all environments, on any device, without waiting for it.

    Spaces, equations, rewards and time limit are Gymnasium's. Random states come from a generator of its own, so that equal
    seeds begin with other states than in Gymnasium. Pictures lack the arrow of the last torque.

    :param num_envs: number of environments
    :param device: "cpu", "cuda" and so on; "auto" takes the GPU if there is one. As in SB3, "cuda" without a GPU is the CPU
    :param seed: of the first states; None takes one from torch's global generator
    :param max_episode_steps: the time limit
    :param render_mode: "rgb_array" for pictures of environment 0, drawn by Gymnasium, or None
    :raises ValueError: if a number is less than 1 or the render mode is another one
    """

    def __init__(
        self,
        num_envs: int,
        device: th.device | str = "auto",
        seed: int | None = None,
        max_episode_steps: int = 200,
        render_mode: str | None = None,
    ) -> None:
        self.constants = PendulumEnv()
        observations, actions = self.constants.observation_space, self.constants.action_space
        super().__init__(num_envs, observations, actions, 2, device, seed, max_episode_steps, render_mode)
        self.metadata = dict(PendulumEnv.metadata)

    def first_states(self) -> th.Tensor:
        """
        An angle between −π and π, and an angular speed between −1 and 1.

        :return: shape (n_envs, 2)
        """
        angle, speed = self.uniform().unbind(1)
        return th.stack([(2 * angle - 1) * DEFAULT_X, (2 * speed - 1) * DEFAULT_Y], dim=1)

    def observe(self, state: th.Tensor) -> th.Tensor:
        """
        The end of the pendulum and its angular speed.

        :param state: shape (n_envs, 2)
        :return: float32, shape (n_envs, 3)
        """
        angle, speed = state.unbind(1)
        return th.stack([th.cos(angle), th.sin(angle), speed], dim=1).float()

    def advance(self, state: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Euler's step of Gymnasium's equations.

        :param state: shape (n_envs, 2)
        :param actions: torques, float32, shape (n_envs, 1)
        :return: next states, rewards, False everywhere
        """
        rod = self.constants
        angle, speed = state.unbind(1)
        torque = actions[:, 0].clamp(-rod.max_torque, rod.max_torque)
        upright = (angle + math.pi) % (2 * math.pi) - math.pi
        costs = upright**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = speed + (3 * rod.g / (2 * rod.l) * th.sin(angle) + 3.0 / (rod.m * rod.l**2) * torque) * rod.dt
        speed = speed.clamp(-rod.max_speed, rod.max_speed)
        after = th.stack([angle + speed * rod.dt, speed], dim=1)
        return after, -costs.float(), th.zeros(self.num_envs, dtype=th.bool, device=self.device)

    def make_renderer(self) -> gym.Env[Any, Any]:
        """
        Gymnasium's environment, which draws.

        :return: Pendulum
        """
        return PendulumEnv(render_mode="rgb_array")

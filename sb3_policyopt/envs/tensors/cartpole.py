"""Gymnasium's CartPole-v1 for many environments at once."""

from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from sb3_policyopt.envs.tensors.classic_control import ClassicControl


class TensorCartPole(ClassicControl):
    """
    CartPole-v1 in torch: a step of all environments, on any device, without waiting for it.

        model = PPO("MlpPolicy", TensorCartPole(4096, device="cuda"), n_steps=24, batch_size=24_576)

    Spaces, equations, rewards and time limit are Gymnasium's. Random states come from a generator of its own, so that equal
    seeds begin with other states than in Gymnasium.

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
        max_episode_steps: int = 500,
        render_mode: str | None = None,
    ) -> None:
        self.constants = CartPoleEnv()
        observations, actions = self.constants.observation_space, self.constants.action_space
        super().__init__(num_envs, observations, actions, 4, device, seed, max_episode_steps, render_mode)
        self.metadata = dict(CartPoleEnv.metadata)

    def first_states(self) -> th.Tensor:
        """
        Position, speed, angle and angular speed, each between −0.05 and 0.05.

        :return: shape (n_envs, 4)
        """
        return self.uniform() * 0.1 - 0.05

    def observe(self, state: th.Tensor) -> th.Tensor:
        """
        The state itself.

        :param state: shape (n_envs, 4)
        :return: float32, shape (n_envs, 4), not the same memory
        """
        return state.to(th.float32, copy=True)

    def advance(self, state: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Euler's step of Gymnasium's equations.

        :param state: shape (n_envs, 4)
        :param actions: 1 pushes to the right, 0 to the left; int64, shape (n_envs,)
        :return: next states, rewards of 1, whether cart or pole are out of bounds
        """
        cart = self.constants
        _, x_dot, theta, theta_dot = state.unbind(1)
        force = (2 * actions - 1).to(state.dtype) * cart.force_mag
        cos, sin = th.cos(theta), th.sin(theta)
        temp = (force + cart.polemass_length * theta_dot**2 * sin) / cart.total_mass
        theta_acc = (cart.gravity * sin - cos * temp) / (cart.length * (4.0 / 3.0 - cart.masspole * cos**2 / cart.total_mass))
        x_acc = temp - cart.polemass_length * theta_acc * cos / cart.total_mass
        speeds = th.stack([x_dot, x_acc, theta_dot, theta_acc], dim=1)
        after = state + cart.tau * speeds
        terminated = (after[:, 0].abs() > cart.x_threshold) | (after[:, 2].abs() > cart.theta_threshold_radians)
        return after, th.ones(self.num_envs, dtype=th.float32, device=self.device), terminated

    def make_renderer(self) -> gym.Env[Any, Any]:
        """
        Gymnasium's environment, which draws.

        :return: CartPole
        """
        return CartPoleEnv(render_mode="rgb_array")

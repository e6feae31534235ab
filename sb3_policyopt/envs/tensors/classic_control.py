"""What our own environments in torch have in common: time limit, autoreset, random states, pictures."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

from sb3_policyopt.envs.tensors.vec_env import TensorStep, TensorVecEnv
from sb3_policyopt.maths.arrays import NumpyArray


class ClassicControl(TensorVecEnv):
    """
    Equations of motion for many environments at once, with the numbers of one of Gymnasium's.

    Nothing in :meth:`step_tensors` waits for the device. States are float64, as in Gymnasium, and observations float32; on
    Apple's mps, which has no float64, states are float32.

    :param num_envs: number of environments
    :param observation_space: of Gymnasium's environment
    :param action_space: of Gymnasium's environment
    :param state_size: numbers of a state
    :param device: "cpu", "cuda" and so on; "auto" takes the GPU if there is one. As in SB3, "cuda" without a GPU is the CPU
    :param seed: of the first states; None takes one from torch's global generator
    :param max_episode_steps: the time limit
    :param render_mode: "rgb_array" for pictures of environment 0, drawn by Gymnasium, or None
    :raises ValueError: if a number is less than 1 or the render mode is another one
    """

    state: th.Tensor
    """float64, shape (n_envs, state_size). It can be written to, as can ``elapsed``."""

    elapsed: th.Tensor
    """Steps since the episode began; int64, shape (n_envs,)."""

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        state_size: int,
        device: th.device | str,
        seed: int | None,
        max_episode_steps: int,
        render_mode: str | None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        super().__init__(num_envs, observation_space, action_space, get_device(device), render_mode=render_mode)
        self.max_episode_steps = max_episode_steps
        self.generator = th.Generator(self.device)
        self.generator.manual_seed(int(th.randint(2**31, ()).item()) if seed is None else seed)
        dtype = th.float32 if self.device.type == "mps" else th.float64
        self.state = th.zeros((num_envs, state_size), dtype=dtype, device=self.device)
        self.elapsed = th.zeros(num_envs, dtype=th.int64, device=self.device)
        self._renderer: gym.Env[Any, Any] | None = None

    @abstractmethod
    def first_states(self) -> th.Tensor:
        """
        States of episodes that begin, drawn from ``self.generator``.

        :return: shape (n_envs, state_size)
        """

    @abstractmethod
    def observe(self, state: th.Tensor) -> th.Tensor:
        """
        What is observed.

        :param state: shape (n_envs, state_size)
        :return: float32, shape (n_envs, ...)
        """

    @abstractmethod
    def advance(self, state: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        The equations of motion.

        :param state: shape (n_envs, state_size)
        :param actions: shape (n_envs, ...)
        :return: next states, rewards (float32), whether the episode has ended
        """

    @abstractmethod
    def make_renderer(self) -> gym.Env[Any, Any]:
        """
        Gymnasium's environment, which draws.

        :return: with ``render_mode="rgb_array"`` and an attribute ``state``
        """

    def uniform(self) -> th.Tensor:
        """
        Random numbers of ``self.generator``.

        :return: between 0 and 1, shape (n_envs, state_size)
        """
        return th.rand(self.state.shape, dtype=self.state.dtype, device=self.device, generator=self.generator)

    def reset_tensors(self, seed: int | None = None) -> th.Tensor:
        """
        Begin a new episode in all environments.

        :param seed: of all random states from here on; None to go on with the random numbers as they are
        :return: float32, shape (n_envs, ...)
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state.copy_(self.first_states())
        self.elapsed.zero_()
        return self.observe(self.state)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: within the action space, on ``device``, shape (n_envs, ...)
        :return: new tensors; ``final_obs`` is there in each step
        """
        state, rewards, terminated = self.advance(self.state, actions)
        final_obs = self.observe(state)
        self.elapsed += 1
        truncated = self.elapsed >= self.max_episode_steps
        ended = terminated | truncated
        self.elapsed.masked_fill_(ended, 0)
        self.state.copy_(th.where(ended[:, None], self.first_states(), state))
        return TensorStep(self.observe(self.state), rewards, terminated, truncated, {"final_obs": final_obs})

    def get_state(self) -> dict[str, Any]:
        """
        Everything that the next steps depend on, for ``ResumableCheckpointCallback``.

        :return: for :meth:`set_state`; copies on the CPU
        """
        tensors = {name: getattr(self, name).to("cpu", copy=True) for name in ("state", "elapsed")}
        return {**tensors, "generator": self.generator.get_state(), "seeds": list(self._seeds)}

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Go on where :meth:`get_state` was called, perhaps on another device of the same kind.

        :param state: of :meth:`get_state`
        :raises ValueError: if it is that of another number of environments
        """
        if state["state"].shape != self.state.shape:
            raise ValueError(f"state is that of {len(state['state'])} environments, and there are {self.num_envs}")
        self.state.copy_(state["state"])
        self.elapsed.copy_(state["elapsed"])
        self.generator.set_state(state["generator"])
        self._seeds = list(state["seeds"])

    def get_images(self) -> Sequence[NumpyArray | None]:
        """
        A picture of environment 0, drawn by Gymnasium.

        :return: one picture, uint8, shape (height, width, 3); None for each environment without a ``render_mode``
        """
        if self.render_mode is None:
            return super().get_images()
        if self._renderer is None:
            self._renderer = self.make_renderer()
            self._renderer.reset(seed=0)
        setattr(self._renderer, "state", self.state[0].cpu().numpy().astype("float64"))  # noqa: B010 (of its subclass)
        picture: Any = self._renderer.render()
        return [picture]

    def close(self) -> None:
        """Close the window system of the pictures."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

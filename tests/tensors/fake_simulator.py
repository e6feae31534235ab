"""
A simulator whose observations name the environment, the episode and the step, so that any row in a wrong place shows.

:class:`Clock` has its rules in plain Python, as one Gymnasium environment, so that SB3's ``DummyVecEnv`` is the reference.
:class:`Simulator` has them in torch for many environments, with the habits of simulators on a GPU: buffers that the next step
overwrites, one dict of extras for ever, last observations that go stale. The other classes give it the shapes of Isaac Lab,
rsl_rl and ManiSkill.
"""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_policyopt.envs.tensors import TensorStep, TensorVecEnv
from sb3_policyopt.rollout.batch import Observations

LIMIT = 5
"""Steps after which an episode is cut off. Of their own, episodes end after 2 to 8 steps: some at the limit, too."""

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (4,), np.float32)
DICT = spaces.Dict({"clock": OBSERVATIONS, "step": spaces.Box(0, 255, (1,), np.uint8)})
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


class Clock(gym.Env[Any, Any]):
    """
    Environment number ``number``: observes its number, its episode, the steps since the episode began, and the last action.

    :param number: of the environment
    :param as_dict: whether observations are dicts
    """

    def __init__(self, number: int, as_dict: bool = False) -> None:
        self.number, self.as_dict = number, as_dict
        self.observation_space, self.action_space = DICT if as_dict else OBSERVATIONS, ACTIONS
        self.episode, self.steps, self.action = -1, 0, 0.0

    def observation(self) -> Any:
        clock = np.array([self.number, self.episode, self.steps, self.action], np.float32)
        return {"clock": clock, "step": np.array([self.steps], np.uint8)} if self.as_dict else clock

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.steps, self.action = self.episode + 1, 0, 0.0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps, self.action = self.steps + 1, float(action[0])
        reward = 100.0 * self.number + 10.0 * self.episode + self.steps + self.action
        terminated = self.steps == 2 + (3 * self.number + 2 * self.episode) % 7
        return self.observation(), reward, terminated, self.steps == LIMIT, {}


def reference(n_envs: int, as_dict: bool = False) -> DummyVecEnv:
    """The same environments in SB3's own VecEnv."""
    return DummyVecEnv([lambda number=number: Clock(number, as_dict) for number in range(n_envs)])  # type: ignore[misc]


class Simulator:
    """
    The same rules for many environments, in torch, without waiting for the device.

    :param n_envs: number of environments
    """

    def __init__(self, n_envs: int) -> None:
        self.num_envs, self.device = n_envs, th.device("cpu")
        self.number = th.arange(n_envs)
        self.episode, self.steps = th.full((n_envs,), -1), th.zeros(n_envs, dtype=th.int64)
        self.obs, self.final = th.zeros(n_envs, 4), th.full((n_envs, 4), th.nan)
        self.rewards = th.zeros(n_envs)
        self.terminated, self.truncated = th.zeros(n_envs, dtype=th.bool), th.zeros(n_envs, dtype=th.bool)
        self.extras: dict[str, Any] = {}
        self.seeds: list[int | None] = []
        self.actions: th.Tensor | None = None

    def observe(self, action: th.Tensor) -> th.Tensor:
        return th.stack([self.number.float(), self.episode.float(), self.steps.float(), action], dim=1)

    def reset_all(self, seed: int | None = None) -> th.Tensor:
        self.seeds.append(seed)
        self.episode += 1
        self.steps.zero_()
        return self.obs.copy_(self.observe(th.zeros(self.num_envs)))

    def advance(self, actions: th.Tensor) -> None:
        """A step; all buffers are overwritten."""
        self.actions = actions  # kept, as some simulators do
        self.steps += 1
        action = actions[:, 0]
        self.rewards.copy_(100.0 * self.number + 10.0 * self.episode + self.steps + action)
        self.terminated.copy_(self.steps == 2 + (3 * self.number + 2 * self.episode) % 7)
        self.truncated.copy_(self.steps == LIMIT)
        ended = self.terminated | self.truncated
        last = self.observe(action)
        self.final.copy_(th.where(ended[:, None], last, self.final))  # other rows go stale
        self.episode += ended
        self.steps.masked_fill_(ended, 0)
        self.obs.copy_(th.where(ended[:, None], self.observe(th.zeros(self.num_envs)), last))


def as_dict(clock: th.Tensor) -> dict[str, th.Tensor]:
    """Observations of the space DICT."""
    return {"clock": clock, "step": clock[:, 2:3].nan_to_num().to(th.uint8)}


class FakeTensorEnv(TensorVecEnv):
    """
    The simulator as a tensor environment, without an adapter.

    :param n_envs: number of environments
    :param dicts: whether observations are dicts
    :param bootstrap: as for TensorVecEnv
    :param gives_final: whether extras hold the last observations
    """

    def __init__(self, n_envs: int, dicts: bool = False, bootstrap: Any = "final", gives_final: bool = True) -> None:
        self.simulator, self.dicts, self.gives_final = Simulator(n_envs), dicts, gives_final
        super().__init__(n_envs, DICT if dicts else OBSERVATIONS, ACTIONS, "cpu", bootstrap)
        self.closed = False

    def form(self, clock: th.Tensor) -> Observations[th.Tensor]:
        return as_dict(clock) if self.dicts else clock

    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        return self.form(self.simulator.reset_all(seed))

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        simulator = self.simulator
        simulator.advance(actions)
        if self.gives_final:
            simulator.extras["final_obs"] = self.form(simulator.final)
        return TensorStep(
            self.form(simulator.obs), simulator.rewards, simulator.terminated, simulator.truncated, simulator.extras
        )

    def close(self) -> None:
        self.closed = True


class FakeIsaacLab(Simulator):
    """
    With the attributes of Isaac Lab's ManagerBasedRLEnv.

    :param n_envs: number of environments
    :param compute_final_obs: as in its configuration
    :param is_finite_horizon: as in its configuration
    :param dicts: whether the terms of a group are not concatenated
    :param action_space: of one environment
    """

    metadata = {"render_fps": 30.0}
    render_mode = None

    def __init__(
        self,
        n_envs: int,
        compute_final_obs: bool = True,
        is_finite_horizon: bool = False,
        dicts: bool = False,
        action_space: spaces.Box = ACTIONS,
    ) -> None:
        super().__init__(n_envs)
        self.dicts = dicts
        self.cfg = SimpleNamespace(compute_final_obs=compute_final_obs, is_finite_horizon=is_finite_horizon)
        self.single_observation_space = spaces.Dict({"policy": DICT if dicts else OBSERVATIONS, "critic": OBSERVATIONS})
        self.single_action_space = action_space
        self.max_episode_length = LIMIT
        self.episode_length_buf = self.steps

    @property
    def unwrapped(self) -> "FakeIsaacLab":
        return self

    def groups(self, clock: th.Tensor) -> dict[str, Any]:
        return {"policy": as_dict(clock) if self.dicts else clock, "critic": clock}

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.groups(self.reset_all(seed)), self.extras

    def step(self, actions: th.Tensor) -> tuple[dict[str, Any], th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]:
        self.advance(actions)
        self.extras["log"] = {"Episode_Reward/alive": self.rewards.mean()}
        if self.cfg.compute_final_obs:
            self.extras["final_obs"] = self.groups(self.final)
        return self.groups(self.obs), self.rewards, self.terminated, self.truncated, self.extras

    def close(self) -> None:
        self.closed = True


class FakeRslRl(Simulator):
    """
    With the attributes of rsl_rl's VecEnv, its flags as numbers.

    :param n_envs: number of environments
    :param form: how observations come: "groups" (as a TensorDict), "tensor", "tuple" with extras, as in older versions, or
        "legged_gym", whose step gives privileged observations too
    """

    num_actions = 2
    max_episode_length = LIMIT
    cfg: dict[str, Any] = {}

    def __init__(self, n_envs: int, form: str = "groups") -> None:
        super().__init__(n_envs)
        self.form = form
        self.episode_length_buf = self.steps
        self.reset_all()

    def observations(self) -> Any:
        return {"policy": self.obs, "critic": self.obs} if self.form == "groups" else self.obs

    def get_observations(self) -> Any:
        return (self.obs, self.extras) if self.form == "tuple" else self.observations()

    def step(self, actions: th.Tensor) -> tuple[Any, ...]:
        self.advance(actions)
        self.extras["time_outs"] = (self.truncated & ~self.terminated).float()
        privileged = (self.obs + 1,) if self.form == "legged_gym" else ()
        return self.observations(), *privileged, self.rewards, (self.terminated | self.truncated).long(), self.extras


class FakeManiSkill(Simulator):
    """
    With the attributes of ManiSkillVectorEnv: tensors, and last observations only in steps that end an episode.

    :param n_envs: number of environments
    :param auto_reset: as there
    """

    single_observation_space = OBSERVATIONS
    single_action_space = ACTIONS
    metadata: dict[str, Any] = {}

    def __init__(self, n_envs: int, auto_reset: bool = True) -> None:
        super().__init__(n_envs)
        self.auto_reset = auto_reset

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[th.Tensor, dict[str, Any]]:
        return self.reset_all(seed), {}

    def step(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]:
        self.advance(actions)
        ended = self.terminated | self.truncated
        infos = {"elapsed_steps": self.steps}
        if ended.any():
            infos |= {"final_observation": self.final, "_final_observation": ended}
        return self.obs, self.rewards, self.terminated, self.truncated, infos

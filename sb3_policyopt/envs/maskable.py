"""
Two small environments in which most actions are forbidden, to try policies with masks on.

Importing :mod:`sb3_policyopt.envs` or :mod:`sb3_policyopt.zoo` registers them: ``MaskedRoute-v0`` has Discrete actions,
``MaskedWorkshop-v0`` has MultiDiscrete ones. A forbidden action does nothing and costs its step, so that a policy without
masks can be trained on them too. Each map is the same in every process; episodes differ by the seed of ``reset``.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_policyopt.maths.arrays import NumpyArray

PIXELS = 32
"""Side of a cell in a picture."""


class _Masked(gym.Env[NumpyArray, Any]):
    """What both have: pictures without a display."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, not {render_mode!r}")
        self.render_mode = render_mode

    def colours(self) -> NumpyArray:
        """
        The picture, one pixel a cell.

        :return: uint8, shape (rows, columns, 3)
        """
        raise NotImplementedError

    def render(self) -> NumpyArray | None:  # type: ignore[override]  # gymnasium names more kinds of pictures
        """
        Draw the current state.

        :return: uint8, shape (height, width, 3); None without a ``render_mode``
        """
        if self.render_mode is None:
            return None
        return self.colours().repeat(PIXELS, axis=0).repeat(PIXELS, axis=1)


class MaskedRoute(_Masked):
    """
    Find the way to a corner of a square with walls by naming the next cell: of all cells, at most four may be named.

    Observation: which cell one stands on, as a vector of zeros and a one, shape (side²,). Action: the next cell, one of
    side². Allowed are the neighbours without a wall. Reward: 1 at the corner, which ends the episode, and −0.01 in each step.
    An episode begins on a random cell.

    :param side: number of rows and of columns, at least 3
    :param render_mode: "rgb_array" or None
    """

    def __init__(self, side: int = 8, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        if side < 3:
            raise ValueError(f"side must be at least 3, not {side}")
        self.side = side
        self.observation_space = spaces.Box(0.0, 1.0, (side * side,), np.float32)
        self.action_space = spaces.Discrete(side * side)
        self.goal = side * side - 1
        # A wall in every second row, open at one end, the left and the right in turns.
        self.walls = np.zeros((side, side), bool)
        self.walls[1 : side - 1 : 2] = True
        self.walls[1 : side - 1 : 4, -1] = self.walls[3 : side - 1 : 4, 0] = False
        self.walls[1 : side - 1 : 2, side // 2] = False
        self.free = np.flatnonzero(~self.walls)
        self.cell = 0

    def action_masks(self) -> NumpyArray:
        """
        Which cells may be named.

        :return: bool, shape (side²,)
        """
        row, column = divmod(self.cell, self.side)
        allowed = np.zeros((self.side, self.side), bool)
        allowed[max(row - 1, 0) : row + 2, column] = True
        allowed[row, max(column - 1, 0) : column + 2] = True
        allowed[row, column] = False
        return (allowed & ~self.walls).ravel()

    def _observation(self) -> NumpyArray:
        observation: NumpyArray = np.zeros(self.side * self.side, np.float32)
        observation[self.cell] = 1.0
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NumpyArray, dict[str, Any]]:
        """
        Begin an episode on a random cell.

        :param seed: of the random cells
        :param options: not used
        :return: observation, info
        """
        super().reset(seed=seed)
        self.cell = int(self.np_random.choice(self.free[self.free != self.goal]))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[NumpyArray, float, bool, bool, dict[str, Any]]:
        """
        Go to a cell, if that is allowed.

        :param action: number of the cell
        :return: observation, reward, whether the corner is reached, False, info
        """
        if self.action_masks()[int(action)]:
            self.cell = int(action)
        arrived = self.cell == self.goal
        return self._observation(), float(arrived) - 0.01, arrived, False, {}

    def colours(self) -> NumpyArray:
        """Walls are dark, the goal is green, the cell where one stands is blue."""
        picture = np.full((self.side, self.side, 3), 240, np.uint8)
        picture[self.walls] = 60
        cells = picture.reshape(-1, 3)
        cells[self.goal], cells[self.cell] = (60, 160, 80), (50, 90, 200)
        return picture


class MaskedWorkshop(_Masked):
    """
    Give each of some workers a kind of job, or none: each knows three kinds, and a kind without a waiting job is no choice.

    Observation: waiting jobs of each kind as a fraction of ``longest``, shape (n_kinds,). Action: for each worker 0 (none) or
    1 … n_kinds. Reward: the values of the jobs done, divided by the number of workers. Kinds have the values 1/n_kinds,
    2/n_kinds, …, 1. If several workers take the last job of a kind, one of them does it and the others do nothing. In each
    step a job of each kind comes with probability 0.6, unless ``longest`` wait. An episode ends by its time limit.

    :param n_workers: number of workers
    :param n_kinds: number of kinds of jobs, at least 4
    :param render_mode: "rgb_array" or None
    """

    longest = 3
    arrival = 0.6

    def __init__(self, n_workers: int = 4, n_kinds: int = 8, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        if n_kinds < 4 or n_workers < 1:
            raise ValueError(f"n_kinds must be at least 4 and n_workers at least 1, not {n_kinds} and {n_workers}")
        self.observation_space = spaces.Box(0.0, 1.0, (n_kinds,), np.float32)
        self.action_space = spaces.MultiDiscrete([1 + n_kinds] * n_workers)
        self.values = np.arange(1, n_kinds + 1) / n_kinds
        kinds = (np.array([0, 1, 3]) + 2 * np.arange(n_workers)[:, None]) % n_kinds
        self.knows = np.zeros((n_workers, n_kinds), bool)
        np.put_along_axis(self.knows, kinds, True, axis=1)
        self.waiting = np.zeros(n_kinds, int)

    def action_masks(self) -> NumpyArray:
        """
        Which kinds each worker may be given.

        :return: bool, shape (n_workers · (1 + n_kinds),), the choices of the first worker first
        """
        allowed = self.knows & (self.waiting > 0)
        return np.concatenate([np.ones((len(allowed), 1), bool), allowed], axis=1).ravel()

    def _observation(self) -> NumpyArray:
        return (self.waiting / self.longest).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NumpyArray, dict[str, Any]]:
        """
        Begin an episode with a random number of jobs.

        :param seed: of the jobs
        :param options: not used
        :return: observation, info
        """
        super().reset(seed=seed)
        self.waiting = self.np_random.integers(0, self.longest + 1, len(self.values))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[NumpyArray, float, bool, bool, dict[str, Any]]:
        """
        Let the workers do a job each.

        :param action: for each worker 0 or a kind from 1 on
        :return: observation, reward, False, False, info
        """
        done = 0.0
        for worker, choice in enumerate(np.asarray(action)):
            kind = int(choice) - 1
            if kind >= 0 and self.knows[worker, kind] and self.waiting[kind]:
                self.waiting[kind] -= 1
                done += self.values[kind]
        comes = self.np_random.random(len(self.values)) < self.arrival
        self.waiting = np.minimum(self.waiting + comes, self.longest)
        return self._observation(), float(done) / len(self.knows), False, False, {}

    def colours(self) -> NumpyArray:
        """A column for each kind: waiting jobs are blue, darker the more they are worth; below, what each worker knows."""
        rows = self.longest + 1 + len(self.knows)
        picture = np.full((rows, len(self.values), 3), 240, np.uint8)
        picture[self.longest] = 60
        for kind, waiting in enumerate(self.waiting):
            picture[self.longest - waiting : self.longest, kind] = (50, 200 - int(150 * self.values[kind]), 200)
        picture[self.longest + 1 :][self.knows] = (60, 160, 80)
        return picture


def register() -> None:
    """Give the environments their ids in Gymnasium, once."""
    for name, steps in (("MaskedRoute", 100), ("MaskedWorkshop", 50)):
        if f"{name}-v0" not in gym.registry:
            gym.register(f"{name}-v0", entry_point=f"{__name__}:{name}", max_episode_steps=steps)

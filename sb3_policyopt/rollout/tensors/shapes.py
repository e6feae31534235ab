"""Shapes of what environments of tensors give. They are known on the host, so that no check waits for the device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_policyopt.rollout.tensors.env import StepOfTensors

Shape = tuple[int, ...]
_ONES = ("reset_rows", "is_success", "_is_success")
"""Extras with one entry for each environment."""


class Shapes:
    """
    The shapes that an environment has promised. Steps are looked at when they first give something, later ones are not.

    :param env: named in messages
    :param n_envs: number of environments
    :param space: of one observation
    """

    def __init__(self, env: Any, n_envs: int, space: spaces.Space[Any]) -> None:
        self.name = type(getattr(env, "unwrapped", env)).__name__
        self.seen: set[str] | None = None
        """Names of the extras that were looked at; None before the first step."""
        self.one: Shape = (n_envs,)
        self.is_dict = isinstance(space, spaces.Dict)
        parts: Mapping[Any, spaces.Space[Any]] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
        self.rows: dict[Any, tuple[Shape, ...]] = {}
        """By key, None where there is no dict: the shape of the space, and the buffer's, which is (1,) of a Discrete."""
        for key, part in parts.items():
            of_buffer: Any = get_obs_shape(part)
            shapes = [part.shape or (), of_buffer if isinstance(of_buffer, tuple) else ()]
            self.rows[key] = tuple((n_envs, *shape) for shape in dict.fromkeys(shapes))

    def check_step(self, given: StepOfTensors) -> None:
        """
        Compare what a step gave.

        :param given: by ``step_tensors``
        :raises ValueError: naming the first quantity of another shape
        """
        observations, rewards, terminated, truncated, extras = given
        if self.seen is not None and extras.keys() <= self.seen:
            return
        self._check_one("rewards", rewards)
        self._check_one("terminated", terminated)
        self._check_one("truncated", truncated)
        self.check_observations(observations)
        if "final_obs" in extras:
            self.check_observations(extras["final_obs"], "extras['final_obs']")
        for name in _ONES:
            if name in extras:
                self._check_one(f"extras[{name!r}]", extras[name])
        self.seen = (self.seen or set()) | extras.keys()

    def check_observations(self, given: Any, name: str = "observations", method: str = "step_tensors") -> None:
        """
        Compare observations.

        :param given: one tensor or array, or a dict of such
        :param name: what they are
        :param method: which gave them
        :raises ValueError: naming what has another shape
        """
        if isinstance(given, Mapping) != self.is_dict or (self.is_dict and not self.rows.keys() <= given.keys()):
            keys = f"a dict with {sorted(given)}" if isinstance(given, Mapping) else "no dict"
            wanted = f"a dict with {sorted(self.rows)}" if self.is_dict else "one tensor"
            raise ValueError(
                f"{self.name}: {name} of {method} must be {wanted}, as the observation space says, but is {keys}. Give "
                "other observations, or another observation space to TensorVecEnv.__init__"
            )
        for key, shapes in self.rows.items():
            value = given if key is None else given[key]
            if value.shape not in shapes:
                what = name if key is None else f"{name}[{key!r}]"
                raise ValueError(
                    f"{self.name}: {what} of {method} must have shape {shapes[0]}, but has {tuple(value.shape)}. Give a "
                    "row for each environment, in the shape of the observation space; reshape or transpose them in the "
                    "environment"
                )

    def _check_one(self, name: str, value: Any) -> None:
        """
        Compare what has one entry for each environment.

        :param name: of the quantity
        :param value: as it was given
        :raises ValueError: if it has another shape
        """
        if getattr(value, "shape", ()) != self.one:
            shape = tuple(np.shape(value))
            found = f"has {shape}" if shape != self.one else f"is a {type(value).__name__}"
            raise ValueError(
                f"{self.name}: {name} of step_tensors must have shape {self.one}, but {found}. Give one entry for each "
                "environment: squeeze(1) makes one of a column, expand(n_envs) of a number that all share"
            )

"""What the adapters have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_policyopt.envs.tensors.vec_env import Bootstrap, TensorVecEnv
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations


class Adapter(TensorVecEnv):
    """
    A tensor environment around a simulator.

    ``get_attr``, ``set_attr`` and ``env_method`` mean the simulator where this class has no such attribute.

    :param simulator: the attribute ``simulator`` afterwards
    :param num_envs: number of environments
    :param observation_space: of one environment
    :param action_space: of one environment
    :param device: of the simulator's tensors
    :param bootstrap: as for TensorVecEnv
    :raises ValueError: if a space is not one of SB3's
    """

    def __init__(
        self,
        simulator: Any,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str,
        bootstrap: Bootstrap,
    ) -> None:
        self.simulator = simulator
        _check_spaces(observation_space, action_space)
        render_mode = "rgb_array" if getattr(simulator, "render_mode", None) == "rgb_array" else None
        super().__init__(num_envs, observation_space, action_space, device, bootstrap, render_mode)
        self.metadata = {**self.metadata, "render_fps": (getattr(simulator, "metadata", None) or {}).get("render_fps", 30)}

    def attribute_owner(self, name: str) -> object:
        """
        Which object ``get_attr``, ``set_attr`` and ``env_method`` mean.

        :param name: of the attribute
        :return: this object if it has the attribute, else the simulator, or what is within its wrappers
        """
        for owner in (self, self.simulator, getattr(self.simulator, "unwrapped", None)):
            if hasattr(owner, name):
                return owner
        return self.simulator

    def get_images(self) -> Sequence[NumpyArray | None]:
        """
        What the simulator draws.

        :return: its pictures, which may be fewer than environments; None for each without ``render_mode="rgb_array"``
        """
        if self.render_mode is None:
            return super().get_images()
        drawn = self.simulator.render()
        if isinstance(drawn, th.Tensor):
            drawn = drawn.cpu().numpy()
        if isinstance(drawn, np.ndarray) and drawn.ndim == 3:
            return [drawn]
        return super().get_images() if drawn is None else list(drawn)

    def close(self) -> None:
        """Close the simulator, if it can be closed."""
        if hasattr(self.simulator, "close"):
            self.simulator.close()


def _check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Nested dicts and tuples are not for SB3.

    :param observation_space: of one environment
    :param action_space: of one environment
    :raises ValueError: if there are any
    """
    inner = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    if any(isinstance(space, (spaces.Dict, spaces.Tuple)) for space in inner):
        raise ValueError(
            f"the observation space must be one array or a flat dict of arrays, not {observation_space}: flatten observations "
            "in the simulator, or by one of its wrappers"
        )
    if isinstance(action_space, (spaces.Dict, spaces.Tuple)):
        raise ValueError(f"the action space must be Box, Discrete, MultiDiscrete or MultiBinary, not {action_space}")


def bounded(space: spaces.Space[Any], clip_actions: float) -> spaces.Space[Any]:
    """
    An action space with finite bounds, which SB3 needs.

    :param space: of the simulator
    :param clip_actions: the bound of an action that has none
    :return: the same space if it has bounds
    :raises ValueError: if ``clip_actions`` is not positive and finite
    """
    if not (np.isfinite(clip_actions) and clip_actions > 0):
        raise ValueError(f"clip_actions must be positive and finite, got {clip_actions}")
    if not isinstance(space, spaces.Box) or space.is_bounded("both"):
        return space
    low, high = (
        np.where(np.isfinite(bound), bound, limit) for bound, limit in ((space.low, -clip_actions), (space.high, clip_actions))
    )
    dtype: Any = space.dtype
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


class Groups:
    """
    Which of a simulator's groups of observations the policy sees.

    :param group: name of a group; several names give dicts; None for "policy", or the only group
    :param names: of all groups
    :raises ValueError: if there is no such group
    """

    def __init__(self, group: str | Sequence[str] | None, names: Sequence[str]) -> None:
        if group is None:
            group = "policy" if "policy" in names or len(names) != 1 else names[0]
        self.group = group if isinstance(group, str) else tuple(group)
        missing = [name for name in ([group] if isinstance(group, str) else group) if name not in names]
        if missing:
            raise ValueError(f"group: the simulator has no observations {missing}; it has {sorted(names)}")

    def of(self, groups: Mapping[str, Any]) -> Observations[th.Tensor]:
        """
        The observations that the policy sees.

        :param groups: by name
        :return: one tensor, or a dict of them
        """
        if isinstance(self.group, str):
            return groups[self.group]
        return {name: groups[name] for name in self.group}

    def space(self, all_spaces: Mapping[str, spaces.Space[Any]]) -> spaces.Space[Any]:
        """
        The space of what the policy sees.

        :param all_spaces: by name
        :return: one of them, or a Dict
        """
        if isinstance(self.group, str):
            return all_spaces[self.group]
        return spaces.Dict({name: all_spaces[name] for name in self.group})

"""Gymnasium's vector environments, and those that have their methods, such as ManiSkill's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_policyopt.envs.tensors.adapter import Adapter, bounded
from sb3_policyopt.envs.tensors.vec_env import AutoresetMode, TensorStep
from sb3_policyopt.maths.arrays import Array, NumpyArray
from sb3_policyopt.rollout.batch import Observations

FINAL = ("final_obs", "final_observation")
"""Where the last observations are in the infos: in Gymnasium since 1.1, and in ManiSkill."""
_TAKEN = (*FINAL, "reset_rows", "is_success")
"""Infos that extras have in another form, if at all."""


def from_gymnasium_vector(
    env: Any, device: th.device | str | None = None, autoreset_mode: str | None = None, clip_actions: float = 100.0
) -> "GymnasiumVectorAdapter":
    """
    A tensor environment from a ``gymnasium.vector.VectorEnv`` or a ``ManiSkillVectorEnv``.

    Its arrays may be tensors, which stay where they are, or NumPy's, which are copied to ``device`` in each step.

    An environment that resets itself in a step of its own, as Gymnasium's do by default, trains too: such steps are left out.
    One that resets in the step that ends an episode (``AutoresetMode.SAME_STEP``) wastes none.

    :param env: which resets its environments itself
    :param device: of the tensors; by default ``env.device``, or the CPU
    :param autoreset_mode: "same_step" or "next_step" for an environment that resets so without saying it in its metadata
    :param clip_actions: bound of actions that have none
    :return: the tensor environment, with ``env`` as its attribute ``simulator``
    :raises ValueError: if ``env`` does not reset itself, or its spaces are not SB3's
    """
    lacking = [name for name in ("num_envs", "single_observation_space", "single_action_space") if not hasattr(env, name)]
    if lacking:
        raise ValueError(f"env must be a vector environment, but {type(env).__name__} has no {' and no '.join(lacking)}")
    place: th.device | str = device or getattr(env, "device", None) or "cpu"
    return GymnasiumVectorAdapter(env, place, clip_actions, _autoreset_mode(env, autoreset_mode))


def _autoreset_mode(env: Any, said: str | None) -> AutoresetMode:
    """
    When an environment begins its next episode.

    :param env: a vector environment
    :param said: by the caller, about one that does not say it itself
    :return: in which step
    :raises ValueError: if it does not, or nobody knows
    """
    mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    if mode is None and _is_maniskill(env):
        mode = "same_step" if env.auto_reset else "disabled"
    mode = said if mode is None else getattr(mode, "name", mode)
    if mode is None:
        raise ValueError(
            f"autoreset_mode: {type(env).__name__} does not say in metadata['autoreset_mode'] when it resets; pass "
            "autoreset_mode='same_step' if it does so in the step that ends an episode, 'next_step' if in the step after it"
        )
    modes: dict[str, AutoresetMode] = {"samestep": "same_step", "nextstep": "next_step"}
    known = modes.get(str(mode).lower().replace("_", ""))
    if known is None:
        raise ValueError(
            f"env resets by the mode {mode}, which this adapter does not serve; construct it with "
            "gymnasium.make_vec(..., vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.SAME_STEP}), "
            "or ManiSkillVectorEnv(..., auto_reset=True)"
        )
    return known


def _is_maniskill(env: Any) -> bool:
    """
    Whether an environment has the attributes of a ``ManiSkillVectorEnv``.

    :param env: a vector environment
    :return: True if so
    """
    return isinstance(getattr(env, "auto_reset", None), bool)


class GymnasiumVectorAdapter(Adapter):
    """
    See :func:`from_gymnasium_vector`.

    :param env: which resets its environments itself
    :param device: of the tensors
    :param clip_actions: bound of actions that have none
    :param autoreset_mode: when it does
    """

    def __init__(
        self, env: Any, device: th.device | str, clip_actions: float, autoreset_mode: AutoresetMode = "same_step"
    ) -> None:
        action_space = bounded(env.single_action_space, clip_actions)
        super().__init__(env, env.num_envs, env.single_observation_space, action_space, device, "final")
        self.autoreset_mode = autoreset_mode
        self._takes_numpy: bool | None = None
        # ManiSkill calls it success, and its own wrapper for SB3 makes is_success of it.
        self._success_names = ("is_success", "success") if _is_maniskill(env) else ("is_success",)
        self._ended = th.zeros(self.num_envs, dtype=th.bool, device=self.device)

    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        """
        Begin a new episode in all environments.

        :param seed: environment i gets ``seed + i``, if the simulator does as Gymnasium
        :return: shape (n_envs, ...), or a dict of such
        """
        observations, _ = self.simulator.reset(seed=seed)
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        self._takes_numpy = not isinstance(first, th.Tensor)
        self._ended.zero_()
        return self._tensors(observations)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: shape (n_envs, ...)
        :return: with the infos as extras
        """
        given: Array = actions.cpu().numpy().astype(self.action_space.dtype) if self._takes_numpy else actions.clone()
        observations, rewards, terminated, truncated, infos = self.simulator.step(given)
        extras = {name: value for name, value in infos.items() if name.lstrip("_") not in _TAKEN}
        for name in FINAL:
            if name in infos:
                extras["final_obs"] = self._final(infos[name], infos.get(f"_{name}"))
        extras |= self._successes(infos)
        step = TensorStep(
            self._tensors(observations),
            self._tensor(rewards).float(),
            self._tensor(terminated).bool(),
            self._tensor(truncated).bool(),
            extras,
        )
        if self.autoreset_mode == "next_step":
            extras |= {"final_obs": step.observations, "reset_rows": self._ended}
            self._ended = step.terminated | step.truncated
        return step

    def _final(self, final: Any, mask: Any) -> Observations[th.Tensor]:
        """
        Last observations.

        :param final: tensors or arrays with a row for each environment, or an array of objects, None where there is none
        :param mask: where there is one
        :return: shape (n_envs, ...), or a dict of such
        """
        if not (isinstance(final, np.ndarray) and final.dtype == object):
            return self._tensors(final)
        rows = np.flatnonzero([one is not None for one in final] if mask is None else mask)
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {
                name: self._tensor(_rows([final[row][name] for row in rows], rows, self.num_envs, inner))
                for name, inner in space.spaces.items()
            }
        return self._tensor(_rows([final[row] for row in rows], rows, self.num_envs, space))

    def _successes(self, infos: Mapping[str, Any]) -> dict[str, th.Tensor]:
        """
        Whether the episodes that ended were successes.

        :param infos: of the step; of an environment that was reset in it they are those of the reset, and "final_info" has
            those of the end
        :return: ``is_success`` and perhaps ``_is_success``, for extras; nothing if the infos do not tell
        """
        found = infos.get("final_info", infos) if self.autoreset_mode == "same_step" else infos
        for name in self._success_names:
            if isinstance(found, np.ndarray):  # of dicts, None where there is none
                values: Any = np.array([one.get(name) if isinstance(one, dict) else None for one in found], dtype=object)
                told = None
            elif name in found:
                values, told = found[name], found.get(f"_{name}")
            else:
                continue
            if isinstance(values, np.ndarray) and values.dtype == object:
                told = np.array([one is not None for one in values])
                values = np.array([False if one is None else one for one in values])
            success = self._tensor(values).flatten()
            return {"is_success": success} if told is None else {"is_success": success, "_is_success": self._tensor(told)}
        return {}

    def _tensors(self, observations: Any) -> Observations[th.Tensor]:
        if isinstance(observations, dict):
            return {name: self._tensor(array) for name, array in observations.items()}
        return self._tensor(observations)

    def _tensor(self, array: Any) -> th.Tensor:
        return th.as_tensor(array, device=self.device)


def _rows(values: list[Any], rows: NumpyArray, n: int, space: spaces.Space[Any]) -> NumpyArray:
    array: NumpyArray = np.zeros((n, *(space.shape or ())), space.dtype)
    if values:
        array[rows] = values
    return array

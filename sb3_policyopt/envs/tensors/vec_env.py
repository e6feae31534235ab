"""Environments that give and take tensors, and the NumPy side by which they are a ``VecEnv`` for everything in SB3."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.tensors.env import is_tensor_env as steps_tensors
from sb3_policyopt.rollout.tensors.env import type_of_actions
from sb3_policyopt.rollout.tensors.shapes import Shapes

Bootstrap: TypeAlias = Literal["final", "previous", "none"]
"""What the value of a cut-off episode is taken from: see :class:`TensorVecEnv`."""
AutoresetMode: TypeAlias = Literal["same_step", "next_step"]
"""When an environment begins its next episode: see :class:`TensorVecEnv`."""


class TensorStep(NamedTuple):
    """
    What a step of all environments gives. Every tensor may be overwritten by the next step.

    :param observations: shape (n_envs, ...), or a dict of such; where an episode ended, the first of the next episode,
        or with "next_step" its own last
    :param rewards: float32, shape (n_envs,)
    :param terminated: the episode ended of its own; bool, shape (n_envs,)
    :param truncated: the episode was cut off, such as by a time limit; bool, shape (n_envs,). Both may be true
    :param extras: by name, whatever else there is. ``final_obs`` holds the last observations of the episodes that this step
        ended, in the same shape as ``observations``; its other rows mean nothing. ``reset_rows`` tells with "next_step" which
        environments only reset themselves in this step; bool, shape (n_envs,). ``is_success`` tells of the episodes that this
        step ended whether they were successes, for ``rollout/success_rate``; bool or numbers, shape (n_envs,). Its other rows
        mean nothing, and with ``_is_success`` (bool, shape (n_envs,)) only those count where that is true
    """

    observations: Observations[th.Tensor]
    rewards: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor
    extras: dict[str, Any]


class TensorVecEnv(VecEnv, ABC):
    """
    Many environments whose observations, rewards and flags are tensors on one device.

    A subclass writes :meth:`reset_tensors` and :meth:`step_tensors`. The NumPy side of a ``VecEnv`` (``reset``, ``step``,
    infos) follows from them, so that wrappers, monitors, ``evaluate_policy``, callbacks and every algorithm of SB3 can use it.

    - **Autoreset** in the same step: where an episode ends, the observation returned is the first of the next episode. With
      ``autoreset_mode`` "next_step" it is the last of the old one; the next step takes no action, gives the first observation
      of the new episode, and is named in ``extras["reset_rows"]``. Nothing is learned from it. Arrays have no place for this:
      on the NumPy side it looks like a step, so that episodes seem one step longer there, and training would learn from it.
    - **Time limits**: an episode counts as cut off where ``truncated & ~terminated``. ``bootstrap`` says what its value is
      taken from: "final" for ``extras["final_obs"]``, which must then be there unless no episode was cut off; "previous" for
      the observation before the step, where the simulator does not give the last one; "none" for no value at all. It is never
      the observation after the reset.
    - **Ownership**: each tensor that is returned may be overwritten by the next step, so that who wants to keep it copies it
      at once. ``extras`` may be the same dict in each step. The environment does not keep the actions.

    :param num_envs: number of environments
    :param observation_space: of one environment
    :param action_space: of one environment
    :param device: where tensors are; it must exist
    :param bootstrap: see above
    :param render_mode: "rgb_array" if :meth:`get_images` gives pictures, else None
    :raises ValueError: if ``num_envs`` is less than 1 or ``bootstrap`` is none of the three
    """

    device: th.device
    bootstrap: Bootstrap
    autoreset_mode: AutoresetMode = "same_step"
    _shapes: Shapes | None = None

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "cpu",
        bootstrap: Bootstrap = "final",
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if bootstrap not in ("final", "previous", "none"):
            raise ValueError(f"bootstrap must be 'final', 'previous' or 'none', got {bootstrap!r}")
        self.device = th.empty(0, device=device).device  # with its index: "cuda" is not equal to "cuda:0"
        self.bootstrap = bootstrap
        self.render_mode = render_mode  # VecEnv asks for it
        super().__init__(num_envs, observation_space, action_space)

    @abstractmethod
    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        """
        Begin a new episode in all environments.

        :param seed: of everything random from here on; None to go on with the random numbers as they are
        :return: shape (n_envs, ...), or a dict of such
        """

    @abstractmethod
    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: within the action space, on ``device``, shape (n_envs, ...); of Discrete int64, shape (n_envs,)
        :return: observations, rewards, terminated, truncated, extras
        """

    # The NumPy side

    def reset(self) -> Observations[NumpyArray]:
        """
        Begin a new episode in all environments, with the seed of :meth:`seed` if one was given since the last reset.

        :return: copies of the observations as arrays
        :raises ValueError: if they have another shape than the observation space
        """
        with th.no_grad():
            observations = self.reset_tensors(take_seed(self))
        self._shapes = Shapes(self, self.num_envs, self.observation_space)
        self._shapes.check_observations(observations, method="reset_tensors")
        return in_numpy(observations, self.returned_space())

    def step_async(self, actions: NumpyArray) -> None:
        """
        Keep the actions for :meth:`step_wait`.

        :param actions: shape (n_envs, ...)
        :raises ValueError: if the shape is another one
        """
        self._pending_actions = actions_to_tensor(np.asarray(actions), self.action_space, self.num_envs, self.device)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Do a step in all environments.

        :return: copies of observations, float32 rewards, dones, and for each environment an info with
            ``TimeLimit.truncated`` and, at the end of an episode, ``terminal_observation`` and ``is_success`` if the
            simulator gives them
        :raises ValueError: if an episode was cut off and its last observation is missing, resets are told that
            ``autoreset_mode`` does not announce, or something has another shape than it must have
        """
        with th.no_grad():
            step = self.step_tensors(self._pending_actions)
        if self._shapes is not None:
            self._shapes.check_step(step)
        if "reset_rows" in step.extras and self.autoreset_mode == "same_step":
            raise ValueError(
                f"{type(self).__name__}: extras['reset_rows'] tells resets in a step of their own; set "
                "self.autoreset_mode = 'next_step', so that nobody who uses arrays takes them for steps unknowingly"
            )
        terminated, truncated = (flags.to("cpu", th.bool, copy=True).numpy() for flags in (step.terminated, step.truncated))
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": cut_off} for cut_off in (truncated & ~terminated).tolist()]
        ended = np.flatnonzero(dones)
        if len(ended) and self.bootstrap == "final":
            self._add_terminal_observations(infos, ended, step.extras)
        if len(ended) and "is_success" in step.extras:
            success = step.extras["is_success"].tolist()
            told = step.extras["_is_success"].tolist() if "_is_success" in step.extras else [True] * self.num_envs
            for number in ended:
                if told[number]:
                    infos[number]["is_success"] = success[number]
        rewards = step.rewards.detach().to("cpu", th.float32, copy=True).numpy()
        return in_numpy(step.observations, self.returned_space()), rewards, dones, infos

    def _add_terminal_observations(self, infos: list[dict[str, Any]], ended: NumpyArray, extras: dict[str, Any]) -> None:
        """
        Give the infos of ended episodes their last observations.

        :param infos: of all environments
        :param ended: numbers of those whose episode ended
        :param extras: of the step
        :raises ValueError: if an episode was cut off and its last observation is missing
        """
        if "final_obs" not in extras:
            if any(infos[number]["TimeLimit.truncated"] for number in ended):
                raise ValueError(
                    f"{type(self).__name__}: an episode was cut off, but step_tensors gave no extras['final_obs']; give it, "
                    "or set bootstrap to 'previous' or 'none'"
                )
            return
        rows = th.from_numpy(ended).to(self.device)
        final: Observations[th.Tensor] = extras["final_obs"]
        if isinstance(final, dict):
            final = {name: tensor[rows] for name, tensor in final.items()}
        else:
            final = final[rows]
        arrays = in_numpy(final, self.returned_space())
        for place, number in enumerate(ended):
            infos[number]["terminal_observation"] = (
                {name: array[place] for name, array in arrays.items()} if isinstance(arrays, dict) else arrays[place]
            )

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        Tensor environments take no options at reset.

        :param options: must be empty
        :raises ValueError: if there are any
        """
        if options and (isinstance(options, dict) or any(options)):
            raise ValueError(f"{type(self).__name__} takes no options at reset; set attributes of the simulator instead")

    def returned_space(self) -> spaces.Space[Any]:
        """
        The space whose types the arrays of :meth:`reset` and :meth:`step` have.

        :return: the observation space, unless a wrapper gives other numbers than its space says
        """
        return self.observation_space

    def attribute_owner(self, name: str) -> object:
        """
        Which object :meth:`get_attr`, :meth:`set_attr` and :meth:`env_method` mean.

        :param name: of the attribute
        :return: this environment; an adapter gives its simulator where that has the attribute
        """
        return self

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        An attribute of the whole simulator.

        :param attr_name: its name
        :param indices: of environments
        :return: the same value for each of them
        """
        value = getattr(self.attribute_owner(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of the whole simulator.

        :param attr_name: its name
        :param value: for all environments
        :param indices: None, or all environments
        :raises ValueError: if only some environments are meant
        """
        self._check_all(indices)
        setattr(self.attribute_owner(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the whole simulator, once.

        :param method_name: its name
        :param method_args: passed on
        :param indices: None, or all environments
        :param method_kwargs: passed on
        :return: the same result for each environment
        :raises ValueError: if only some environments are meant
        """
        self._check_all(indices)
        result = getattr(self.attribute_owner(method_name), method_name)(*method_args, **method_kwargs)
        return [result] * self.num_envs

    def _check_all(self, indices: VecEnvIndices) -> None:
        if sorted(set(self._get_indices(indices))) != list(range(self.num_envs)):
            raise ValueError("indices must be None: the environments are one simulator, which cannot be changed in part")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        Gymnasium's wrappers cannot wrap one of many environments in a tensor.

        :param wrapper_class: of Gymnasium
        :param indices: of environments
        :return: False for each of them
        """
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NumpyArray | None]:
        """
        Pictures of environments.

        :return: one for each environment that can be drawn, which need not be all of them; here None for each
        """
        return [None] * self.num_envs

    def close(self) -> None:
        """Free what the simulator holds."""


def is_tensor_env(env: VecEnv) -> TypeGuard[TensorVecEnv]:
    """
    Whether a rollout of this environment can stay on the device.

    Its class is asked: a wrapper of SB3 around a tensor environment forwards attributes, but works with arrays.

    :param env: any
    :return: True if the class defines ``step_tensors`` and ``reset_tensors``
    """
    return steps_tensors(env)


def take_seed(env: VecEnv) -> int | None:
    """
    The seed that ``env.seed`` was given since the last reset, for ``env.reset_tensors``; it counts once.

    :param env: a tensor environment or wrappers around one
    :return: of the first environment; None if no seed was given
    """
    inner = env.unwrapped
    seed = inner._seeds[0]
    inner._reset_seeds()
    return seed


def in_numpy(observations: Observations[th.Tensor], space: spaces.Space[Any]) -> Observations[NumpyArray]:
    """
    Copies of observations as arrays.

    :param observations: shape (n, ...), or a dict of such, on any device
    :param space: of one observation
    :return: arrays of the space's type
    """
    if isinstance(observations, dict):
        names = cast("spaces.Dict", space).spaces
        return {name: _array(observations[name], names[name]) for name in names}
    return _array(observations, space)


def _array(tensor: th.Tensor, space: spaces.Space[Any]) -> NumpyArray:
    tensor = tensor.detach()
    if tensor.dtype == th.bfloat16:  # which NumPy lacks
        tensor = tensor.float()
    return tensor.to("cpu", copy=True).numpy().astype(space.dtype, copy=False)


def actions_to_tensor(actions: NumpyArray, space: spaces.Space[Any], n_envs: int, device: th.device) -> th.Tensor:
    """
    A copy of actions as :meth:`TensorVecEnv.step_tensors` takes them.

    :param actions: shape (n_envs, ...)
    :param space: of one action
    :param n_envs: number of environments
    :param device: of the tensor
    :return: int64 for Discrete and MultiDiscrete, else the type of the space
    :raises ValueError: if the shape is another one
    """
    shape = (n_envs, *(space.shape or ()))
    if actions.shape != shape:
        raise ValueError(f"actions must have shape {shape}, got {actions.shape}")
    return th.tensor(actions, dtype=type_of_actions(space), device=device)

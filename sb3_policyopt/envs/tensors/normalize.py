"""SB3's ``VecNormalize`` on a device."""

import copyreg
import pickle
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import check_shape_equal
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_policyopt.envs.tensors.running_mean_std import TensorMeanStd
from sb3_policyopt.envs.tensors.vec_env import TensorStep, TensorVecEnv, in_numpy, is_tensor_env
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.tensors.env import resets_of
from sb3_policyopt.rollout.tensors.shapes import Shapes


class TensorVecNormalize(TensorVecEnv, VecNormalize):
    """
    ``VecNormalize`` for tensor environments: SB3's formulas in float64 on the device, where no step waits for the host.

        env = TensorVecNormalize(TensorPendulum(4096, device="cuda"))

    It is a ``VecNormalize``: ``obs_rms`` and ``ret_rms`` can be read and assigned as SB3's, ``sync_envs_normalization`` and
    ``unwrap_vec_normalize`` work. :meth:`save`, and any other pickle of it, gives a ``VecNormalize`` of SB3, which opens
    without this package; :meth:`load` reads SB3's files.

    The methods of a ``VecEnv`` return arrays, and so do ``get_original_obs``, ``get_original_reward``, ``normalize_obs`` and
    their inverses. What :meth:`VecNormalize._normalize_obs` and similar methods of a subclass do is not used.

    :param venv: a tensor environment, which may be wrapped by tensor environments only
    :param training: whether statistics are updated
    :param norm_obs: whether observations are normalised
    :param norm_reward: whether rewards are divided by the standard deviation of discounted returns
    :param clip_obs: largest absolute value of a normalised observation
    :param clip_reward: largest absolute value of a normalised reward
    :param gamma: discount factor
    :param epsilon: added to variances
    :param norm_obs_keys: which keys of dicts are normalised; all by default
    :raises ValueError: if ``venv`` is no tensor environment, its device has no float64, or its observations are no Box
    """

    obs_rms: Any  # to SB3's types, only a dict
    old_obs: Any  # tensors here, as are the next two; SB3's methods return arrays
    old_reward: Any
    returns: Any
    _inner_shapes: Shapes | None = None

    def __init__(
        self,
        venv: VecEnv,
        training: bool = True,
        norm_obs: bool = True,
        norm_reward: bool = True,
        clip_obs: float = 10.0,
        clip_reward: float = 10.0,
        gamma: float = 0.99,
        epsilon: float = 1e-8,
        norm_obs_keys: list[str] | None = None,
    ) -> None:
        if not is_tensor_env(venv):
            raise ValueError(f"venv must be a tensor environment, not {type(venv).__name__}; use SB3's VecNormalize for it")
        if venv.device.type == "mps":
            raise ValueError("venv is on mps, which has no float64; make it on the CPU, or use SB3's VecNormalize")
        self.device = venv.device
        self.bootstrap = venv.bootstrap
        self.autoreset_mode = getattr(venv, "autoreset_mode", "same_step")
        VecNormalize.__init__(
            self, venv, training, norm_obs, norm_reward, clip_obs, clip_reward, gamma, epsilon, norm_obs_keys
        )
        self.returns = th.zeros(self.num_envs, dtype=th.float64, device=self.device)
        self._return_moments()
        if norm_obs:
            self._moments()

    def _moments(self) -> dict[str | None, TensorMeanStd]:
        """
        The statistics of observations on the device, also where somebody has assigned SB3's.

        :return: by key; that of an observation that is no dict is None
        """
        found = cast("RunningMeanStd | dict[str, RunningMeanStd]", self.obs_rms)
        if isinstance(found, dict):
            for key in found:
                found[key] = TensorMeanStd.on(self.device, found[key])
            return cast("dict[str | None, TensorMeanStd]", found)
        moments = TensorMeanStd.on(self.device, found)
        self.obs_rms = moments
        return {None: moments}

    def _return_moments(self) -> TensorMeanStd:
        """The statistics of returns on the device."""
        self.ret_rms = moments = TensorMeanStd.on(self.device, self.ret_rms)
        return moments

    def normalize_tensors(self, observations: Observations[th.Tensor]) -> Observations[th.Tensor]:
        """
        Normalise observations with the statistics as they are.

        :param observations: shape (n, ...), or a dict of such
        :return: float32, new tensors; those that are not to be normalised are returned themselves
        """
        if not self.norm_obs:
            return observations
        moments = self._moments()
        if isinstance(observations, dict):
            assert self.norm_obs_keys is not None
            return observations | {key: self._normalized(observations[key], moments[key]) for key in self.norm_obs_keys}
        return self._normalized(observations, moments[None])

    def _normalized(self, tensor: th.Tensor, moments: TensorMeanStd) -> th.Tensor:
        deviation = (moments.tensors.var + self.epsilon).sqrt()
        return ((tensor - moments.tensors.mean) / deviation).clamp(-self.clip_obs, self.clip_obs).float()

    def _note_observations(self, observations: Observations[th.Tensor]) -> None:
        """
        Keep them for :meth:`get_original_obs`, and update the statistics in training.

        :param observations: which the next step may overwrite
        """
        if isinstance(observations, dict):
            self.old_obs = {key: tensor.clone() for key, tensor in observations.items()}
        else:
            self.old_obs = observations.clone()
        if self.training and self.norm_obs:
            for key, moments in self._moments().items():
                moments.update(observations if key is None else observations[key])  # type: ignore[index,arg-type]

    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        """
        Begin a new episode in all environments.

        :param seed: passed on
        :return: normalised observations
        """
        observations = cast("TensorVecEnv", self.venv).reset_tensors(seed)
        self._inner_shapes = Shapes(self.venv, self.num_envs, self.observation_space)
        self._inner_shapes.check_observations(observations, method="reset_tensors")
        self.returns = th.zeros(self.num_envs, dtype=th.float64, device=self.device)
        self._note_observations(observations)
        return self.normalize_tensors(observations)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: passed on
        :return: normalised observations, rewards and last observations
        """
        step = cast("TensorVecEnv", self.venv).step_tensors(actions)
        if self._inner_shapes is not None:
            self._inner_shapes.check_step(step)
        observations, rewards, terminated, truncated, extras = step
        self._note_observations(observations)
        self.old_reward = rewards.clone()
        resets = resets_of(self.venv, extras)
        returns = th.as_tensor(self.returns, dtype=th.float64, device=self.device)
        if self.training:
            returns = returns * self.gamma + rewards
            self._return_moments().update(returns, resets)
        if self.norm_reward:
            deviation = (self._return_moments().tensors.var + self.epsilon).sqrt()
            rewards = (rewards / deviation).clamp(-self.clip_reward, self.clip_reward)
        ended = terminated | truncated
        self.returns = returns.masked_fill(ended if resets is None else ended | resets, 0)
        if "final_obs" in extras:
            extras = extras | {"final_obs": self.normalize_tensors(extras["final_obs"])}
        return TensorStep(self.normalize_tensors(observations), rewards.float(), terminated, truncated, extras)

    def returned_space(self) -> spaces.Space[Any]:
        """
        Normalised observations are float32, whatever the space says.

        :return: a space with the types of what is returned
        """
        if not self.norm_obs:
            return self.observation_space
        if isinstance(self.observation_space, spaces.Dict):
            names = {key: _float32(self.observation_space.spaces[key]) for key in self.norm_obs_keys or ()}
            return spaces.Dict({**self.observation_space.spaces, **names})
        return _float32(self.observation_space)

    def get_original_obs(self) -> NumpyArray | dict[str, NumpyArray]:
        """
        The observations of the last step or reset before they were normalised.

        :return: copies as arrays
        """
        return in_numpy(self.old_obs, self.observation_space)

    def get_original_reward(self) -> NumpyArray:
        """
        The rewards of the last step before they were normalised.

        :return: a copy, float32, shape (n_envs,); empty before the first step
        """
        return th.as_tensor(self.old_reward).to("cpu", th.float32, copy=True).numpy()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A pickle of it is one of SB3's ``VecNormalize``, without the environments."""
        state = {key: value for key, value in VecNormalize.__getstate__(self).items() if key not in _OURS}
        if "old_obs" in state:
            state["old_obs"] = self.get_original_obs()
        state["old_reward"] = self.get_original_reward()
        return copyreg._reconstructor, (VecNormalize, object, None), state  # type: ignore[attr-defined]

    @staticmethod
    def load(load_path: str, venv: VecEnv) -> "TensorVecNormalize":
        """
        Read what this class or SB3's ``VecNormalize`` has saved. It is a pickle: read files only of people that you trust.

        :param load_path: path of the file
        :param venv: a tensor environment
        :return: with the statistics and settings of the file
        :raises ValueError: if there is something else in the file, or ``venv`` is no tensor environment
        """
        with open(load_path, "rb") as file:
            saved = pickle.load(file)
        if not isinstance(saved, VecNormalize):
            raise ValueError(f"load_path: {load_path} holds a {type(saved).__name__}, not a VecNormalize")
        check_shape_equal(saved.observation_space, venv.observation_space)
        settings = {name: getattr(saved, name) for name in _SETTINGS}
        loaded = TensorVecNormalize(venv, **settings)
        for name in ("obs_rms", "ret_rms"):
            if name in vars(saved):
                setattr(loaded, name, getattr(saved, name))
        return loaded

    # Attributes are those of the environments, as for every wrapper of SB3.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:  # noqa: D102
        return VecNormalize.get_attr(self, attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:  # noqa: D102
        VecNormalize.set_attr(self, attr_name, value, indices)

    def env_method(  # noqa: D102
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return VecNormalize.env_method(self, method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(  # noqa: D102
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return VecNormalize.env_is_wrapped(self, wrapper_class, indices)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:  # noqa: D102
        VecNormalize.set_options(self, options)

    def get_images(self) -> Sequence[NumpyArray | None]:  # noqa: D102
        return VecNormalize.get_images(self)

    def close(self) -> None:  # noqa: D102
        VecNormalize.close(self)


_SETTINGS = (
    *("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward"),
    *("gamma", "epsilon", "norm_obs_keys"),
)
_OURS = ("device", "bootstrap", "autoreset_mode", "_pending_actions", "_shapes", "_inner_shapes")


def _float32(space: spaces.Space[Any]) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)

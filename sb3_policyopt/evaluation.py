"""
Evaluation of agents with masks, with memory, or with both; and of all others, as in Stable-Baselines3.

Its functions take the masks where training takes them: from the VecEnv's own ``action_masks()``, from
the environments' method, or from ``info["action_mask"]`` (:mod:`sb3_policyopt.rollout.masks`). sb3-contrib's evaluation of
masks knows the method alone, and forgets what a policy with memory remembers.
"""

from typing import Any, TypeVar

from stable_baselines3.common import evaluation
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.masks import Masks

EnvT = TypeVar("EnvT", bound=VecEnv)


def uses_masks(model: Any) -> bool:
    """
    Test whether an agent has to be told which actions are allowed.

    :param model: the agent
    :return: False for a policy without masks, and for one that was trained with ``use_masking=False``
    """
    return kind_of(getattr(model, "policy", None)).masks and bool(getattr(model, "use_masking", True))


class CurrentMasks:
    """
    The masks for the current observations of a VecEnv.

    :param env: the environments, whose masks are first asked for between a reset and the first step
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.masks: Masks | None = None
        self.step = 0

    def forget(self) -> None:
        """Take notice of a reset of all environments."""
        self.masks, self.step = None, 0

    def note(self, infos: list[Info], dones: NumpyArray) -> None:
        """
        Take notice of a step. It may be told several times of the same step.

        :param infos: of all environments
        :param dones: whose episode ended, shape (n_envs,)
        """
        if self.masks is not None:
            self.masks.note(infos, dones)

    def __call__(self) -> NumpyArray:
        """
        Ask for them.

        :return: bool, shape (n_envs, n_choices)
        :raises ValueError: if the environments give no masks, or what they give is none
        """
        if self.masks is None:
            self.masks = Masks(self.env, self.env.action_space)
        self.step += 1
        return self.masks.current(self.step - 1)


class WithMasks:
    """
    An agent whose ``predict`` needs no ``action_masks``: it asks the environments for them. All else is the agent's.

    :param model: the agent
    :param masks: () ↦ masks for the observations that ``predict`` is called with
    """

    def __init__(self, model: Any, masks: Any) -> None:
        self.model, self.masks = model, masks

    def __getattr__(self, name: str) -> Any:
        """What is not here is the agent's."""
        return getattr(self.__dict__["model"], name)

    def predict(
        self,
        observation: NumpyArray | dict[str, NumpyArray],
        state: tuple[NumpyArray, ...] | None = None,
        episode_start: NumpyArray | None = None,
        deterministic: bool = False,
    ) -> tuple[NumpyArray, tuple[NumpyArray, ...] | None]:
        """
        Actions for the current observations of the environments.

        :param observation: of all environments, n_envs as first axis
        :param state: of a policy with memory, from the call before; None at first
        :param episode_start: of a policy with memory: whose episode starts, shape (n_envs,)
        :param deterministic: whether to take the most likely actions
        :return: actions, and the state for the next call
        """
        actions: tuple[NumpyArray, tuple[NumpyArray, ...] | None] = self.model.predict(
            observation, state, episode_start, deterministic, action_masks=self.masks()
        )
        return actions


class MaskingVecEnv(VecEnvWrapper):
    """
    A VecEnv with the method ``action_masks()``, wherever its masks come from.

    :param venv: the environments
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.action_masks = CurrentMasks(venv)

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        self.action_masks.forget()
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step of all environments."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.action_masks.note(infos, dones)
        return observations, rewards, dones, infos


def able_to_act(model: Any, env: VecEnv) -> tuple[Any, VecEnv]:
    """
    An agent and its environments in a form in which ``predict`` of the one needs nothing but what SB3's scripts pass.

    :param model: the agent
    :param env: the environments
    :return: both as they are if the agent has no masks
    """
    if not uses_masks(model):
        return model, env
    masking = MaskingVecEnv(env)
    return WithMasks(model, masking.action_masks), masking


def evaluate_policy(model: Any, env: GymEnv, *arguments: Any, **named: Any) -> Any:
    """
    Run an agent and return the mean and the standard deviation of its returns.

    :param model: any agent of SB3, sb3-contrib or this package
    :param env: the environment
    :param arguments: further ones of ``stable_baselines3.common.evaluation.evaluate_policy``
    :param named: the same
    :return: as there
    :raises ValueError: if the agent has masks and the environment gives none
    """
    venv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    agent, venv = able_to_act(model, venv)
    return evaluation.evaluate_policy(agent, venv, *arguments, **named)

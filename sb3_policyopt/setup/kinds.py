"""Policies with masks and with memory: what an algorithm has for them, and what a model is made of beside what SB3 makes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.distributions.masking import choices
from sb3_policyopt.errors import did_you_mean
from sb3_policyopt.identity.kinds import PLAIN, PolicyKind, kind_of, states_shape
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.buffers import is_of_library
from sb3_policyopt.rollout.context import Memory
from sb3_policyopt.rollout.masks import Masks
from sb3_policyopt.setup.buffers import new_buffer, suit_buffer
from sb3_policyopt.setup.policies import NAMED, name_of_policy, named_policy, with_choice_of_rnn

if TYPE_CHECKING:
    from collections.abc import Callable


class WithMasksAndMemory(OnPolicyAlgorithm):
    """An algorithm that trains policies with masks and with memory, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.use_masking = True
        self._last_lstm_states: Memory | None = None
        self._last_action_masks: NumpyArray | None = None
        super().__init__(*args, **kwargs)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        """
        The class of a policy; those with masks or memory are sb3-contrib's, which is imported when one is asked for.

        :param policy_name: such as "MlpPolicy" or "MlpLstmPolicy"
        :return: its class
        :raises ValueError: if there is none of that name
        """
        if (own := self.policy_aliases.get(policy_name) or named_policy(policy_name)) is not None:
            return own
        known = [*self.policy_aliases, *NAMED]
        meant = next((name for name in known if name.lower() in (policy_name.lower(), f"{policy_name}policy".lower())), "")
        hint = f", did you mean {meant}?" if meant else did_you_mean(policy_name, known, ".")
        raise ValueError(f"Policy {policy_name} unknown{hint} A policy is a class or one of {', '.join(known)}")

    def name_of_policy(self, policy_class: type[BasePolicy]) -> str | None:
        """
        The name by which the constructor takes a policy with masks or memory.

        :param policy_class: the class of a policy
        :return: such as "MlpLstmPolicy"; None for all others
        """
        return name_of_policy(policy_class)

    def masks_of(self, env: VecEnv) -> Masks | None:
        """
        Where the masks of allowed actions come from.

        :param env: the training environments
        :return: None for a policy without masks
        :raises ValueError: if masks are used and the environments give none
        """
        if not kind_of(self.policy).masks:
            return None
        return Masks(env, self.action_space, self._last_action_masks, self.use_masking)

    def predict(
        self,
        observation: NumpyArray | dict[str, NumpyArray],
        state: tuple[NumpyArray, ...] | None = None,
        episode_start: NumpyArray | None = None,
        deterministic: bool = False,
        action_masks: NumpyArray | None = None,
    ) -> tuple[NumpyArray, tuple[NumpyArray, ...] | None]:
        """
        Actions for observations, as in SB3 and sb3-contrib.

        :param observation: of one environment, or of several with n_envs as first axis
        :param state: of a policy with memory, from the call before; None at first
        :param episode_start: of a policy with memory: whose episode starts, shape (n_envs,); None for none
        :param deterministic: whether to take the most likely actions
        :param action_masks: of a policy with masks: which actions are allowed, shape (n_envs, n_choices); None for all
        :return: actions, and the state for the next call
        :raises ValueError: if there are masks and the policy takes none
        """
        if action_masks is None:
            return self.policy.predict(observation, state, episode_start, deterministic)
        if not kind_of(self.policy).masks:
            raise ValueError(
                f"action_masks: {type(self.policy).__name__} takes no masks; take a policy such as MaskableMlpPolicy"
            )
        masks: Any = {"action_masks": action_masks}
        return self.policy.predict(observation, state, episode_start, deterministic, **masks)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """
        SB3's preparations, with a buffer that suits the environments. Where they are reset, the masks of the last
        observations are forgotten.

        :param total_timesteps: environment steps to train for
        :param callback: the user's
        :param reset_num_timesteps: False continues the count of an earlier call
        :param tb_log_name: name of the run in TensorBoard
        :param progress_bar: whether to show one
        :return: the number of steps to stop at, and one callback
        """
        suit_buffer(self)
        resets = reset_num_timesteps or self._last_obs is None  # SB3's condition; VecFrameStack resets into the same array
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if resets:
            self._last_action_masks = None
        return result


@contextmanager
def suited_to_policy(model: OnPolicyAlgorithm, sequence_length: int | None) -> Iterator[None]:
    """
    A context around SB3's ``_setup_model``, which knows plain policies alone.

    :param model: whose policy and buffer are made in it
    :param sequence_length: as the user gave it
    :return: the context
    :raises ValueError: if an argument does not go with the kind of the policy
    """
    model.policy_class = with_choice_of_rnn(model.policy_class, model.policy_kwargs)
    kind = kind_of(model.policy_class)
    if sequence_length is not None and not kind.memory:
        raise ValueError("sequence_length is for policies with memory, such as MlpLstmPolicy; leave it out")
    if kind == PLAIN:
        yield
        return
    policy_class, buffer_class = model.policy_class, model.rollout_buffer_class
    if kind.masks:
        choices(model.action_space)
        if model.use_sde:
            raise ValueError("use_sde is for actions of a Box, and a policy with masks has none; leave it out")
        model.policy_class = cast("type[BasePolicy]", _without_sde(policy_class))
    model.rollout_buffer_class = None
    try:
        yield
    finally:
        model.policy_class, model.rollout_buffer_class = policy_class, buffer_class
    _make_buffer(model, kind)


def _without_sde(policy_class: "Callable[..., BasePolicy]") -> "Callable[..., BasePolicy]":
    """
    SB3 passes ``use_sde`` to every policy, and policies with masks do not take it.

    :param policy_class: makes a policy
    :return: makes it too
    """

    def build(*args: Any, use_sde: bool, **kwargs: Any) -> BasePolicy:
        return policy_class(*args, **kwargs)

    build.__name__ = getattr(policy_class, "__name__", "build")  # which SB3 looks at
    return build


def _make_buffer(model: OnPolicyAlgorithm, kind: PolicyKind) -> None:
    """
    Give a model the buffer for its policy, and the states before its first step.

    :param model: whose policy has been made
    :param kind: of the policy
    """
    from sb3_policyopt.rollout import contrib_buffers  # which needs sb3-contrib, as does a policy of such a kind

    if kind.memory:
        layers, hidden_size = states_shape(model.policy)
        shape = (layers, model.n_envs, hidden_size)
        zeros = (th.zeros(shape, device=model.device), th.zeros(shape, device=model.device))
        model._last_lstm_states = Memory(zeros, (zeros[0].clone(), zeros[1].clone()))  # type: ignore[attr-defined]
    given = model.rollout_buffer_class
    if given is None or given in (RolloutBuffer, DictRolloutBuffer) or is_of_library(given):
        make = contrib_buffers.own_class(model.observation_space, kind.masks, kind.memory)
        model.rollout_buffer_class = contrib_buffers.stored_class(model.observation_space, kind.masks)
    else:
        make = given
    model.rollout_buffer = new_buffer(model, make)

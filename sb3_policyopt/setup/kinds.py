"""What a model with masks or memory is made of, beside what SB3 makes: its buffer and its first states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_policyopt.distributions.masking import choices
from sb3_policyopt.identity.kinds import PLAIN, PolicyKind, kind_of, states_shape
from sb3_policyopt.rollout.buffers import is_of_library
from sb3_policyopt.rollout.context import Memory

if TYPE_CHECKING:
    from collections.abc import Callable


@contextmanager
def suited_to_policy(model: OnPolicyAlgorithm) -> Iterator[None]:
    """
    A context around SB3's ``_setup_model``, which knows plain policies alone.

    :param model: whose policy and buffer are made in it
    :return: the context
    :raises ValueError: if an argument does not go with the kind of the policy
    """
    kind = kind_of(model.policy_class)
    if kind == PLAIN:
        yield
        return
    policy_class, buffer_class = model.policy_class, model.rollout_buffer_class
    if kind.masks:
        choices(model.action_space)
    if kind.masks:
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

    further: dict[str, Any] = dict(model.rollout_buffer_kwargs)
    if kind.memory:
        layers, hidden_size = states_shape(model.policy)
        shape = (layers, model.n_envs, hidden_size)
        further["hidden_state_shape"] = (model.n_steps, *shape)
        zeros = (th.zeros(shape, device=model.device), th.zeros(shape, device=model.device))
        model._last_lstm_states = Memory(zeros, (zeros[0].clone(), zeros[1].clone()))  # type: ignore[attr-defined]
    given = model.rollout_buffer_class
    if given is None or given in (RolloutBuffer, DictRolloutBuffer) or is_of_library(given):
        make = contrib_buffers.own_class(model.observation_space, kind.masks, kind.memory)
        model.rollout_buffer_class = contrib_buffers.stored_class(model.observation_space, kind.masks)
    else:
        make = given
    model.rollout_buffer = make(
        model.n_steps,
        model.observation_space,
        model.action_space,
        device=model.device,
        gamma=model.gamma,
        gae_lambda=model.gae_lambda,
        n_envs=model.n_envs,
        **further,
    )

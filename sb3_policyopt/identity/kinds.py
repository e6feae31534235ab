"""Whether a policy takes masks, and whether it has memory. sb3-contrib's classes are known once it is imported."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import isclass
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy


@dataclass(frozen=True)
class PolicyKind:
    """
    What the methods of a policy take beside observations.

    :param owner: the class whose methods compute what this kind computes
    :param masks: whether they take ``action_masks``
    :param memory: whether they take ``lstm_states`` and ``episode_starts``
    """

    owner: type
    masks: bool = False
    memory: bool = False


PLAIN = PolicyKind(ActorCriticPolicy)

_CLASSES = (
    ("sb3_policyopt.policies", "MaskableRecurrentPolicy", True, True),
    ("sb3_policyopt.policies", "RecurrentPolicy", False, True),
    ("sb3_contrib.common.recurrent.policies", "RecurrentActorCriticPolicy", False, True),
    ("sb3_contrib.common.maskable.policies", "MaskableActorCriticPolicy", True, False),
)
"""Module, class, masks, memory: the more special ones first. A policy of a class that was not imported cannot exist."""


def kind_of(policy: object) -> PolicyKind:
    """
    The kind of a policy, by the class that it inherits from.

    :param policy: a policy, one that ``torch.compile`` wrapped, or its class
    :return: :data:`PLAIN` for all that is of no other kind
    """
    compiled: Any = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    if isinstance(policy, compiled):
        policy = policy._orig_mod
    for module, name, masks, memory in _CLASSES:
        owner: Any = getattr(sys.modules.get(module), name, None)
        if isclass(owner) and (issubclass(policy, owner) if isclass(policy) else isinstance(policy, owner)):
            return PolicyKind(owner, masks, memory)
    return PLAIN


def states_shape(policy: object) -> tuple[int, int]:
    """
    The shape of the states of a policy with memory.

    :param policy: one of sb3-contrib's recurrent policies
    :return: n_layers, hidden
    """
    shape: tuple[int, int, int] = policy.lstm_hidden_state_shape  # type: ignore[attr-defined]
    return shape[0], shape[2]


def states_dtype(policy: object) -> th.dtype:
    """
    The type of the states of a policy with memory: that of the weights that multiply them.

    :param policy: one of sb3-contrib's recurrent policies
    :return: the type of its recurrent network
    """
    kinds: Iterator[th.dtype] = (parameter.dtype for parameter in policy.lstm_actor.parameters())  # type: ignore[attr-defined]
    return next(kinds, th.get_default_dtype())


def is_own_gru(module: object) -> bool:
    """
    Whether a module is this package's GRU.

    :param module: any
    :return: True if it is of that very class
    """
    return type(module) is getattr(sys.modules.get("sb3_policyopt.policies"), "GRU", None)

"""Which policies PPO and TRPO can train: their names, and what they need, which is checked at construction."""

import importlib
import inspect
from typing import Any, cast

from stable_baselines3.common.policies import BasePolicy

from sb3_policyopt.identity.kinds import kind_of

CALLS: dict[str, int] = {"forward": 1, "predict_values": 1, "evaluate_actions": 2}
"""Number of arguments with which SB3's loop and update call each method of a policy."""

_MASKABLE, _RECURRENT, _OURS = "sb3_contrib.ppo_mask.policies", "sb3_contrib.ppo_recurrent.policies", "sb3_policyopt.policies"

NAMED: dict[str, tuple[str, str]] = {
    "MaskableMlpPolicy": (_MASKABLE, "MlpPolicy"),
    "MaskableCnnPolicy": (_MASKABLE, "CnnPolicy"),
    "MaskableMultiInputPolicy": (_MASKABLE, "MultiInputPolicy"),
    "MlpLstmPolicy": (_RECURRENT, "MlpLstmPolicy"),
    "CnnLstmPolicy": (_RECURRENT, "CnnLstmPolicy"),
    "MultiInputLstmPolicy": (_RECURRENT, "MultiInputLstmPolicy"),
    "MaskableMlpLstmPolicy": (_OURS, "MaskableRecurrentPolicy"),
    "MaskableCnnLstmPolicy": (_OURS, "MaskableRecurrentCnnPolicy"),
    "MaskableMultiInputLstmPolicy": (_OURS, "MaskableRecurrentMultiInputPolicy"),
}
"""Names of policies with masks or memory: the module, which needs sb3-contrib, and the class."""

WITH_RNN = {
    "RecurrentActorCriticPolicy": "RecurrentPolicy",
    "RecurrentActorCriticCnnPolicy": "RecurrentCnnPolicy",
    "RecurrentMultiInputActorCriticPolicy": "RecurrentMultiInputPolicy",
}
"""By sb3-contrib's class, which has an LSTM, the class that takes ``rnn``."""


def named_policy(name: str) -> type[BasePolicy] | None:
    """
    A policy with masks or memory by its name.

    :param name: such as "MlpLstmPolicy"
    :return: its class; None for other names
    :raises ValueError: if sb3-contrib is not installed
    """
    if name not in NAMED:
        return None
    module, attribute = NAMED[name]
    try:
        return cast("type[BasePolicy]", getattr(importlib.import_module(module), attribute))
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("sb3_contrib"):
            raise
        raise ValueError(
            f"policy: {name} needs sb3-contrib, whose policies and zips it shares: pip install 'sb3-policyopt[contrib]'"
        ) from error


def name_of_policy(policy_class: type[BasePolicy]) -> str | None:
    """
    The name by which a constructor takes a policy with masks or memory.

    :param policy_class: the class of a policy
    :return: such as "MlpLstmPolicy", also for the class that takes ``rnn``; None for all others
    """
    stock = next((name for name, ours in WITH_RNN.items() if ours == policy_class.__name__), policy_class.__name__)
    kind = kind_of(policy_class)
    if not policy_class.__module__.startswith(("sb3_contrib.", "sb3_policyopt.")) or not (kind.masks or kind.memory):
        return None
    return next((name for name in NAMED if cast(Any, named_policy(name)).__name__ == stock), None)


def with_choice_of_rnn(policy_class: type[BasePolicy], policy_kwargs: dict[str, Any]) -> type[BasePolicy]:
    """
    The class that takes ``policy_kwargs``: sb3-contrib's own does not know ``rnn``.

    :param policy_class: of a policy
    :param policy_kwargs: its arguments
    :return: the class; another one for sb3-contrib's recurrent policies if there is an ``rnn``
    :raises ValueError: if there is one and the policy has no memory
    """
    if "rnn" not in policy_kwargs:
        return policy_class
    if not kind_of(policy_class).memory:
        raise ValueError(f"policy_kwargs: rnn is for policies with memory such as MlpLstmPolicy, not {policy_class.__name__}")
    ours = WITH_RNN.get(policy_class.__name__) if policy_class.__module__.startswith("sb3_contrib.") else None
    return policy_class if ours is None else getattr(importlib.import_module(_OURS), ours)


def check_policy(policy: object, algorithm: str) -> None:
    """
    Raise an error for a policy whose methods take arguments that the algorithm does not have.

    :param policy: what the user passed; a name is left to SB3
    :param algorithm: name of the algorithm, for the message
    :raises ValueError: if the policy cannot be served; the message says why
    """
    kind = kind_of(policy)
    if isinstance(policy, str) or kind.masks or kind.memory:
        return
    name = getattr(policy, "__name__", repr(policy))
    why = _refused(policy, 3, use_sde=False) if callable(policy) else "which is neither a name nor a class"
    for method, arguments in CALLS.items() if inspect.isclass(policy) else ():
        function = getattr(policy, method, None)
        why = why or (f"it has no method {method}" if function is None else _refused(function, 1 + arguments))
    if why is not None:
        raise ValueError(
            f"policy: {algorithm} does not serve {name} ({why}), use a subclass of stable_baselines3's ActorCriticPolicy, or "
            "of sb3_contrib's MaskableActorCriticPolicy (masks) or RecurrentActorCriticPolicy (memory)"
        )


def _refused(function: object, n_arguments: int, **named: object) -> str | None:
    """Why a function cannot be called with so many arguments, None if it can or if nothing is known."""
    if not callable(function):
        return None
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*[None] * n_arguments, **named)
    except TypeError as error:
        return f"{getattr(function, '__qualname__', 'it')}: {error}"
    return None

"""Which policies PPO and TRPO can train: what they need is checked at construction."""

import inspect

CALLS: dict[str, int] = {"forward": 1, "predict_values": 1, "evaluate_actions": 2}
"""Number of arguments with which SB3's loop and update call each method of a policy."""

ALGORITHMS = {"lstm_states": "sb3_contrib.RecurrentPPO", "action_masks": "sb3_contrib.MaskablePPO"}
"""The algorithm that passes an argument to its policy that PPO and TRPO do not have."""


def check_policy(policy: object, algorithm: str) -> None:
    """
    Raise an error for a policy whose methods take arguments that the algorithm does not have (sb3-contrib's recurrent ones).

    :param policy: what the user passed; a name is left to SB3, except one of a recurrent policy
    :param algorithm: name of the algorithm, for the message
    :raises ValueError: if the policy cannot be served; the message says why and what to use
    """
    if isinstance(policy, str):
        if policy.endswith("LstmPolicy"):
            raise ValueError(f"policy: {algorithm} does not serve recurrent policies such as {policy}, {_use('lstm_states')}")
        return
    name = getattr(policy, "__name__", repr(policy))
    why = _refused(policy, 3, use_sde=False)
    for method, arguments in CALLS.items() if inspect.isclass(policy) else ():
        function = getattr(policy, method, None)
        why = why or (f"it has no method {method}" if function is None else _refused(function, 1 + arguments))
    if why is not None:
        wanted = {parameter for method in CALLS for parameter in _parameters(getattr(policy, method, None))}
        hints = [_use(argument) for argument in ALGORITHMS if argument in wanted]
        hint = hints[0] if hints else "use a subclass of stable_baselines3's ActorCriticPolicy"
        raise ValueError(f"policy: {algorithm} does not serve {name} ({why}), {hint}")


def _use(argument: str) -> str:
    return f"use {ALGORITHMS[argument]}"


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


def _parameters(function: object) -> list[str]:
    if not callable(function):
        return []
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []

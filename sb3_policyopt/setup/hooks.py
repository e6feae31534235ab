"""The methods by which each algorithm says what it optimises, and the refusal of those of another algorithm."""

from inspect import getattr_static, isfunction

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

HOOKS: dict[str, tuple[str, ...]] = {"PPO": ("loss",), "TRPO": ("surrogate", "value_loss")}
"""By the class that calls them."""


def refuse_hooks_of_others(algorithm: type[OnPolicyAlgorithm], known: type[OnPolicyAlgorithm]) -> None:
    """
    A subclass may define a hook of another algorithm, which would never be called: the stock objective would be trained.

    :param algorithm: a subclass, or the algorithm itself
    :param known: PPO or TRPO, whose constructor makes it
    :raises ValueError: if it has such a method. One that it names in its ``hooks``, attributes that are no functions, and
        helpers of a class with a ``train`` or hooks of its own are left alone
    """
    methods = ("train", *HOOKS[known.__name__])
    if any(getattr_static(algorithm, name) is not getattr_static(known, name) for name in methods):
        return
    own = {name for base in algorithm.__mro__ for name in getattr(base, "hooks", ())}
    for owner, names in HOOKS.items():
        for name in names:
            if name in own or not isfunction(getattr_static(algorithm, name, None)):
                continue
            raise ValueError(
                f"{algorithm.__name__}.{name}() is a hook of {owner} and is not called here: {known.__name__} has no {name}; "
                f"override {' or '.join(HOOKS[known.__name__])}. A method that has another purpose needs another name"
            )

"""What a script configures a training with, as texts by which a run that is continued is compared with the one before."""

import json

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_policyopt.saving.provenance import described, effective_hyperparameters

OPTIMIZER = "optimizer options"


def optimizer_options(model: BaseAlgorithm) -> dict[str, object]:
    """
    The options of the optimizer's first group of parameters.

    :param model: the algorithm
    :return: such as ``weight_decay``, by name; without the learning rate, which every update sets
    """
    (first, *_) = model.policy.optimizer.param_groups
    return {name: value for name, value in first.items() if name not in ("params", "lr", "initial_lr")}


def configuration_of(model: BaseAlgorithm) -> dict[str, str]:
    """
    Constructor arguments and options of the optimizer.

    :param model: the algorithm, before its training begins
    :return: texts that are equal in every run of the same script, by name; without values that have no such text, as functions
    """
    window = {"stats_window_size": model._stats_window_size}
    values = {**effective_hyperparameters(model, {}), **window, OPTIMIZER: optimizer_options(model)}
    texts = {name: _text(value) for name, value in values.items()}
    return {name: text for name, text in texts.items() if text is not None and " at 0x" not in text}


def _text(value: object) -> str | None:
    """A value as JSON; None for what has no such form, as a dictionary whose keys are tuples."""
    try:
        return json.dumps(value, default=described)
    except (TypeError, ValueError, RecursionError):
        return None


def differences(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """
    What differs between two configurations.

    :param before: of :func:`configuration_of`; names that only one of them has are not compared
    :param now: the same
    :return: "A here, B before", by name
    """
    return {name: f"{now[name]} here, {text} before" for name, text in before.items() if name in now and now[name] != text}

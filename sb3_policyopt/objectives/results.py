"""Calls of hooks for autograd, and the check of what they return: an override may return anything."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_policyopt.maths.terms import Terms, value_of
from sb3_policyopt.rollout.batch import Batch


def loss_and_terms(
    hook: Callable[..., Any], name: str, batch: Batch[th.Tensor], arguments: tuple[object, ...]
) -> tuple[th.Tensor, Terms]:
    """
    Ask a hook for a loss.

    :param hook: (batch, …) ↦ (loss, terms)
    :param name: of the hook
    :param batch: transitions
    :param arguments: the hook's further arguments
    :return: the scalar to minimise, and what to log
    :raises TypeError: if it returned something else; the message names the hook
    """
    returned = hook(batch, *arguments)
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise TypeError(f"{_loss_rule(hook, name)} it returned {_described(returned)}")
    loss, terms = returned
    if not _is_scalar_tensor(loss):
        raise TypeError(f"{_loss_rule(hook, name)} its loss is {_described(loss)}")
    if not isinstance(terms, Mapping):
        raise TypeError(f"{_loss_rule(hook, name)} its terms are {_described(terms)}")
    for key, term in terms.items():
        if not isinstance(key, str):
            raise TypeError(f"{_loss_rule(hook, name)} a name among its terms is {_described(key)}")
        if not _is_number(value := value_of(term)):
            raise TypeError(f"{_loss_rule(hook, name)} its term {key!r} is {_described(value)}")
    return loss.reshape(()), dict(terms)


def surrogate(hook: Callable[..., Any], batch: Batch[th.Tensor], log_prob: th.Tensor) -> th.Tensor:
    """
    Ask a hook for the surrogate.

    :param hook: (batch, ln π) ↦ J
    :param batch: transitions
    :param log_prob: ln π_θ(a|s), shape (batch,)
    :return: the scalar to maximise
    :raises TypeError: if it returned something else; the message names the hook
    """
    returned = hook(batch, log_prob)
    if not _is_scalar_tensor(returned):
        raise TypeError(
            f"{_called(hook, 'surrogate')} must return the surrogate, a tensor with one number; it returned "
            f"{_described(returned)}"
        )
    scalar: th.Tensor = returned.reshape(())
    return scalar


def _loss_rule(hook: Callable[..., Any], name: str) -> str:
    """What a loss must return."""
    return (
        f"{_called(hook, name)} must return (loss, terms): a tensor with one number, and a dictionary of numbers to log, by "
        "name;"
    )


def _called(hook: Callable[..., Any], name: str) -> str:
    """The hook as its author calls it."""
    owner = getattr(hook, "__self__", None)
    return name if owner is None else f"{type(owner).__name__}.{name}"


def _is_scalar_tensor(value: object) -> bool:
    return isinstance(value, th.Tensor) and value.numel() == 1


def _is_number(value: object) -> bool:
    """Whether a term is one number of Python, NumPy or torch."""
    if isinstance(value, th.Tensor):
        return value.numel() == 1
    if isinstance(value, (np.ndarray, np.generic)):
        return value.size == 1 and value.dtype.kind in "biuf"
    return isinstance(value, numbers.Real)


def _described(value: object) -> str:
    """A value, for a message."""
    if isinstance(value, (th.Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of length {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"

"""
An objective: a loss in torch for any policy, and where it is known its slopes with respect to the networks' outputs.

An algorithm says what it optimises in a method, a *hook*, such as :meth:`sb3_policyopt.PPO.loss`. The decorator
:func:`closed_form` names the function that computes the slopes of that very method. An override, in a subclass of any package
or on an object, is another function: it has no slopes, and autograd computes its gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch as th

from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.objectives.outputs import Outputs, Slopes
from sb3_policyopt.objectives.results import loss_and_terms
from sb3_policyopt.rollout.batch import Batch, as_arrays

Hook = TypeVar("Hook", bound=Callable[..., Any])
SlopesFunction: TypeAlias = Callable[..., tuple[Slopes[Any], Terms]]
"""(outputs, batch, …) ↦ slopes and terms; the further arguments are those of the hook."""

_CLOSED_FORMS: dict[object, SlopesFunction] = {}
_TAKE_TENSORS: set[SlopesFunction] = set()


@dataclass(frozen=True)
class Objective:
    """
    What one series of steps minimises.

    :param loss: a batch of tensors ↦ the scalar to minimise, with its graph, and what to log
    :param slopes: outputs and a batch of arrays ↦ the slopes of the same scalar, and what to log; None if they are not known
    :param critic_only: whether the actor takes no part
    :param name: under which the loss itself is logged
    :param arguments: what the hook was given beside the batch
    :param general_slopes: as ``slopes``, with the arguments after the batch
    """

    loss: Callable[[Batch[th.Tensor]], tuple[th.Tensor, Terms]]
    slopes: Callable[[Outputs[Any], Batch[Any]], tuple[Slopes[Any], Terms]] | None = None
    critic_only: bool = False
    name: str = "loss"
    arguments: tuple[object, ...] = ()
    general_slopes: SlopesFunction | None = None

    @classmethod
    def of(
        cls,
        hook: Callable[..., tuple[th.Tensor, Terms]],
        *arguments: object,
        critic_only: bool = False,
        name: str = "loss",
    ) -> "Objective":
        """
        The objective that a hook defines.

        :param hook: a bound method of an algorithm, or a function put in its place: (batch, …) ↦ (loss, terms)
        :param arguments: the hook's further arguments
        :param critic_only: whether the actor takes no part
        :param name: under which the loss itself is logged
        :return: the objective, with slopes if the hook has a closed form
        """
        slopes = slopes_of(hook)
        return cls(
            lambda batch: loss_and_terms(hook, name, batch, arguments),
            None if slopes is None else lambda outputs, batch: slopes(outputs, batch, *arguments),
            critic_only,
            name,
            arguments,
            slopes,
        )

    def known_slopes(self) -> Callable[[Outputs[Any], Batch[Any]], tuple[Slopes[Any], Terms]]:
        """
        The slopes, for a model that computes no graph.

        :return: outputs and a batch of arrays ↦ slopes and terms
        :raises ValueError: if the objective has none
        """
        if self.slopes is None:
            raise ValueError(
                "The closed form cannot compute an objective without slopes. Name its method in the algorithm's `hooks`, and "
                "autograd serves it; or name its slopes with the decorator sb3_policyopt.objectives.closed_form"
            )
        return self.slopes


def closed_form(slopes: SlopesFunction, both_libraries: bool = False) -> Callable[[Hook], Hook]:
    """
    Name the function that computes the slopes of a hook.

    :param slopes: (outputs, batch, …) ↦ slopes and terms
    :param both_libraries: whether it computes with tensors as well as with NumPy arrays; else it is given arrays
    :return: a decorator of the method, which stays as it is
    """
    function = slopes if both_libraries else _given_arrays(slopes)
    if both_libraries:
        _TAKE_TENSORS.add(function)

    def mark(hook: Hook) -> Hook:
        _CLOSED_FORMS[hook] = function
        return hook

    return mark


def _given_arrays(slopes: SlopesFunction) -> SlopesFunction:
    """
    A function that is given tensors on the CPU, made of one that computes with NumPy arrays.

    :param slopes: with arrays
    :return: with arrays or tensors
    """

    @wraps(slopes)
    def compute(outputs: Outputs[Any], batch: Batch[Any], *arguments: object) -> tuple[Slopes[Any], Terms]:
        if isinstance(batch.returns, np.ndarray):
            return slopes(outputs, batch, *arguments)
        parameters = tuple(parameter.numpy() for parameter in outputs.parameters)
        arrays = Outputs(outputs.family, parameters, outputs.values.numpy())
        found, terms = slopes(arrays, as_arrays(batch), *arguments)
        values = None if found.values is None else th.as_tensor(found.values)
        return Slopes(tuple(th.as_tensor(part) for part in found.parameters), values), terms

    return compute


def slopes_of(hook: object) -> SlopesFunction | None:
    """
    The slopes of a hook, by identity of its function.

    :param hook: a bound method, or what was assigned in its place
    :return: None for an override
    """
    return _CLOSED_FORMS.get(getattr(hook, "__func__", None))


def has_slopes(hook: object, device: th.device) -> bool:
    """
    Whether the closed form can compute a hook.

    :param hook: a bound method, or what was assigned in its place
    :param device: where it would be computed
    :return: False for an override, and on a GPU for slopes that take NumPy arrays only
    """
    slopes = slopes_of(hook)
    return slopes is not None and (device.type == "cpu" or slopes in _TAKE_TENSORS)

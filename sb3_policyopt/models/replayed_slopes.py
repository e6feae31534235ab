"""The gradient of a minibatch by a graph: what the graph is given as tensors, and what is read off it."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch as th

from sb3_policyopt.graphs import Recorder, Task
from sb3_policyopt.maths.terms import Count, Maximum, Term, Terms, value_of
from sb3_policyopt.objectives.clipped import PPOCoefficients, clipped_slopes
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.objectives.value import critic_slopes
from sb3_policyopt.rollout.batch import Batch, columns_of, with_columns

Compute = Callable[[Objective, Batch[th.Tensor]], Terms]
"""(objective, batch) ↦ terms; the gradient is left in its place."""

SCHEDULED = ("clip_range", "clip_range_vf", "ent_coef", "vf_coef")
"""Numbers of PPO that may follow a schedule. A graph gets them as tensors; else each would need a graph of its own."""


OWN_SLOPES = (clipped_slopes, critic_slopes)


class ReplayedSlopes:
    """
    Gradients of objectives, each by a graph.

    :param recorder: of graphs
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._layouts: dict[Hashable, list[tuple[str, type[Any] | None]]] = {}
        self._numbers: dict[tuple[float, ...], th.Tensor] = {}

    def terms(
        self,
        compute: Compute,
        objective: Objective,
        batch: Batch[th.Tensor],
        gradient: th.Tensor,
        addresses: tuple[int, ...] = (),
    ) -> Terms:
        """
        Compute a gradient, and what to log.

        :param compute: does it without a graph
        :param objective: what is minimised
        :param batch: transitions
        :param gradient: where ``compute`` leaves the gradient
        :param addresses: of further memory that it reads
        :return: what to log, each a tensor of its own
        """
        if objective.general_slopes not in OWN_SLOPES:
            self.recorder.refusals["gradients"] = "the slopes are not this package's, and may depend on more than tensors"
            return compute(objective, batch)
        kinds, numbers = self._split(objective.arguments)
        key = (objective.general_slopes, objective.critic_only, objective.name, kinds, addresses)
        layout: list[tuple[str, type[Any] | None]] = []

        def in_tensors(*given: th.Tensor) -> tuple[th.Tensor, ...]:
            *columns, values = given
            arguments = _joined(objective.arguments, values)
            terms = compute(_with_arguments(objective, arguments), with_columns(batch, columns))
            layout[:] = [(name, _kind(term)) for name, term in terms.items()]
            return (th.stack([_tensor(name, term) for name, term in terms.items()]),)

        columns = columns_of(batch)
        fixed: Sequence[int] = range(len(columns)) if batch.recurring else ()
        capture = self.recorder.capture(Task("gradients", key, in_tensors, [*columns, numbers], [gradient], fixed))
        if capture is None:
            return compute(objective, batch)
        if layout:
            self._layouts[key] = layout
        values = capture(*columns, numbers)[0].clone().unbind()
        return {
            name: value if kind is None else kind(value)
            for (name, kind), value in zip(self._layouts[key], values, strict=True)
        }

    def _split(self, arguments: Sequence[object]) -> tuple[Hashable, th.Tensor]:
        """
        What a graph depends on, and the numbers that it is given.

        :param arguments: of the objective
        :return: a key, and the numbers, shape (n,); sent to the device when they have changed
        """
        kinds: list[Any] = []
        numbers: list[float] = []
        for argument in arguments:
            if type(argument) is PPOCoefficients:
                names = _scheduled(argument)
                numbers += [float(getattr(argument, name)) for name in names]
                kinds.append((PPOCoefficients, tuple(names), argument.value_clipping))
            else:
                kinds.append(argument)
        values = tuple(numbers)
        if values not in self._numbers:
            self._numbers = {values: th.tensor(values, dtype=th.float32, device=self.recorder.device)}
        return tuple(kinds), self._numbers[values]


def _scheduled(coefficients: PPOCoefficients) -> list[str]:
    """The numbers that are given as tensors. One of 0 or None decides what is computed, and stays as it is."""
    return [name for name in SCHEDULED if getattr(coefficients, name)]


def _joined(arguments: Sequence[object], values: th.Tensor) -> list[object]:
    """
    Arguments with tensors in place of their numbers.

    :param arguments: of the objective
    :param values: of :meth:`ReplayedSlopes._split`
    :return: as many arguments
    """
    given = iter(values.unbind())
    joined: list[object] = []
    for argument in arguments:
        if type(argument) is PPOCoefficients:
            tensors: dict[str, Any] = {name: next(given) for name in _scheduled(argument)}
            joined.append(replace(argument, **tensors))
        else:
            joined.append(argument)
    return joined


def _with_arguments(objective: Objective, arguments: Sequence[object]) -> Objective:
    """The same objective with other arguments of its hook."""
    slopes = objective.general_slopes
    assert slopes is not None
    return replace(objective, slopes=lambda outputs, batch: slopes(outputs, batch, *arguments))


def _kind(term: Term) -> type[Any] | None:
    return type(term) if isinstance(term, (Maximum, Count)) else None


def _tensor(name: str, term: Term) -> th.Tensor:
    """
    The number of a term.

    :param name: of the term
    :param term: of a minibatch
    :return: float32, shape ()
    :raises RuntimeError: if it is a number of Python, which a graph would repeat for ever
    """
    value = value_of(term)
    if not isinstance(value, th.Tensor):
        raise RuntimeError(f"{name} is a number of Python")
    return value.detach().float().reshape(())

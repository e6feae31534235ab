"""
A graph on the CPU that does what a CUDA graph does, and no more.

Recording notes each of torch's operations with its arguments, replaying repeats them on the same memory. What Python computed
is baked in, what NumPy did is not repeated, and a tensor that moved is read where it was.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch as th
from no_waiting import NoWaiting
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class EmulatedGraph:
    """See :class:`sb3_policyopt.graphs.Graph`."""

    recordings = 0
    replays = 0

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[th.Tensor | None]]] = []

    def on_stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def checking(self) -> AbstractContextManager[object]:
        return NoWaiting()  # type: ignore[no-untyped-call]

    def record(self, function: Callable[[], tuple[th.Tensor, ...]]) -> tuple[th.Tensor, ...]:
        EmulatedGraph.recordings += 1
        with _Notes(self.operations):  # type: ignore[no-untyped-call]
            return function()

    def replay(self) -> None:
        EmulatedGraph.replays += 1
        with th.no_grad():
            for operation, args, kwargs, places in self.operations:
                result = operation(*args, **kwargs)
                results = [result] if isinstance(result, th.Tensor) else tree_flatten(result)[0]
                for place, tensor in zip(places, results, strict=True):
                    if place is not None:
                        place.copy_(tensor)


class _Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, operations: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What is a view, or was changed in place, has the memory of an argument: repeating the operation suffices.
        fresh = [returned.alias_info is None for returned in func._schema.returns]
        tensors = tree_flatten(result)[0]
        if len(fresh) != len(tensors):
            fresh = [bool(fresh) and fresh[0]] * len(tensors)  # nothing, or a list of tensors as of unbind
        places = [x.detach() if new and isinstance(x, th.Tensor) else None for new, x in zip(fresh, tensors, strict=True)]
        detached = [x.detach() if isinstance(x, th.Tensor) else x for x in args]
        self.operations.append((func, detached, kwargs or {}, places))
        return result


def emulate(monkeypatch: Any) -> None:
    """Let models on the CPU use graphs. tanh is torch's then, as NumPy's would not be repeated."""
    from sb3_policyopt import graphs
    from sb3_policyopt.maths import arrays

    EmulatedGraph.recordings = EmulatedGraph.replays = 0
    monkeypatch.setattr(graphs, "make_graph", lambda _: EmulatedGraph())
    monkeypatch.setattr(arrays, "FEW_THREADS", 0)

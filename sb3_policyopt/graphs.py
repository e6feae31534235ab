"""
Functions on fixed memory, recorded once as a CUDA graph and replayed: the one place that knows graphs.

A replay repeats the kernels of the recording on the same addresses. Python does not run: numbers of Python are as they were,
and what the CPU would do is not done. So a recorded function reads tensors only, those that it is given or that never move.
"""

import gc
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch as th

Function = Callable[..., tuple[th.Tensor, ...]]

WARM_UP = 3
"""Calls before the recording, in which libraries allocate their memory and choose their algorithms."""

RECORDINGS = 8
"""Graphs of one kind that are recorded. More would mean that something changes all the time."""

TOLERANCES = {"rtol": 1e-3, "atol": 1e-5}
"""By how much a replay may differ from the function itself: a product may choose another order of its sums."""


class CaptureError(RuntimeError):
    """A function cannot be recorded, or a replay does something else."""


class Graph(Protocol):
    """What records and replays."""

    def record(self, function: Callable[[], tuple[th.Tensor, ...]]) -> tuple[th.Tensor, ...]:
        """
        Record a function.

        :param function: () ↦ tensors, which each replay overwrites
        :return: those tensors
        """

    def replay(self) -> None:
        """Do it again."""


class CudaGraph:
    """
    :class:`torch.cuda.CUDAGraph`.

    :param device: of all tensors
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        self.graph = th.cuda.CUDAGraph()

    def record(self, function: Callable[[], tuple[th.Tensor, ...]]) -> tuple[th.Tensor, ...]:
        """Record what the function launches, on a stream of its own."""
        # Other threads may use the GPU meanwhile, such as a simulator's.
        with th.cuda.device(self.device), th.cuda.graph(self.graph, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        """Launch it again."""
        self.graph.replay()


def make_graph(device: th.device) -> Graph | None:
    """
    A graph for a device.

    :param device: of all tensors
    :return: None where there are none
    """
    return CudaGraph(device) if device.type == "cuda" and th.version.hip is None else None


class Capture:
    """
    A function of tensors that is recorded once and replayed.

    :param function: tensors ↦ tensors; it waits for nothing and draws no random numbers
    :param inputs: of the first call. Those in ``fixed`` are the recording's own memory, of the others it makes copies
    :param graph: records
    :param state: what the function changes beside what it returns; as before afterwards
    :param fixed: which inputs never move, by number
    :raises CaptureError: if the function cannot be recorded, or a replay gives other numbers than the function
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[th.Tensor],
        graph: Graph,
        state: Sequence[th.Tensor] = (),
        fixed: Sequence[int] = (),
    ) -> None:
        self.graph = graph
        self.inputs = [value if i in fixed else value.clone() for i, value in enumerate(inputs)]
        before = [tensor.clone() for tensor in state]

        def restore() -> None:
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(old)

        try:
            expected = self._warm_up(function, state, restore)
            self.outputs = graph.record(lambda: function(*self.inputs))
            restore()
            graph.replay()
            found = [tensor.clone() for tensor in (*self.outputs, *state)]
        except (RuntimeError, AssertionError) as error:
            raise CaptureError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
        finally:
            restore()
        for one, other in zip(found, expected, strict=True):
            if not th.allclose(one.double(), other.double(), equal_nan=True, **TOLERANCES):
                raise CaptureError("a replay gave other numbers than the function itself")

    def _warm_up(self, function: Function, state: Sequence[th.Tensor], restore: Callable[[], None]) -> list[th.Tensor]:
        """
        Call the function as the recording will, on another stream.

        :param function: to be recorded
        :param state: what it changes
        :param restore: undoes the changes
        :return: copies of what it returned, and of the state after it
        """
        gc.collect()  # a graph that is freed during a recording ends it
        found: list[th.Tensor] = []
        device = self.inputs[0].device
        stream = th.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if stream is not None:
            stream.wait_stream(th.cuda.current_stream(device))
        with th.cuda.stream(stream):
            for _ in range(WARM_UP):
                restore()
                outputs = function(*self.inputs)
                found = [tensor.clone() for tensor in (*outputs, *state)]
            restore()
        if stream is not None:
            th.cuda.current_stream(device).wait_stream(stream)
        return found

    def __call__(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Replay.

        :param inputs: of the shapes and types of the first
        :return: tensors, which the next call overwrites
        """
        for place, value in zip(self.inputs, inputs, strict=True):
            if value.data_ptr() != place.data_ptr():
                place.copy_(value)
        self.graph.replay()
        return self.outputs


class Recorder:
    """
    The captures of one model: each function is recorded when it is first called with inputs of a kind.

    :param device: of all tensors
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        self.is_active = make_graph(device) is not None
        self.refusals: dict[str, str] = {}
        """By the name of a function, why it is not replayed."""
        self._captures: dict[str, dict[Hashable, Capture]] = {}

    def call(
        self,
        name: str,
        key: Hashable,
        function: Function,
        inputs: Sequence[th.Tensor],
        state: Sequence[th.Tensor] = (),
        fixed: Sequence[int] = (),
    ) -> tuple[th.Tensor, ...]:
        """
        Call a function, by a replay where that is possible.

        :param name: of the function
        :param key: what the function depends on beside the inputs' numbers; it is recorded anew for another one
        :param function: see :class:`Capture`
        :param inputs: for it
        :param state: see :class:`Capture`
        :param fixed: see :class:`Capture`
        :return: its tensors, which the next call may overwrite
        """
        capture = self.capture(name, key, function, inputs, state, fixed)
        return function(*inputs) if capture is None else capture(*inputs)

    def capture(
        self,
        name: str,
        key: Hashable,
        function: Function,
        inputs: Sequence[th.Tensor],
        state: Sequence[th.Tensor] = (),
        fixed: Sequence[int] = (),
    ) -> Capture | None:
        """
        What replays a function; the arguments are those of :meth:`call`.

        :return: None where it has to be called itself
        """
        if not self.is_active or name in self.refusals:
            return None
        shapes = tuple((value.shape, value.dtype) for value in inputs)
        addresses = tuple(inputs[i].data_ptr() for i in fixed), tuple(tensor.data_ptr() for tensor in state)
        whole_key = (key, shapes, addresses, *_settings())
        captures = self._captures.setdefault(name, {})
        if whole_key not in captures:
            graph = make_graph(self.device)
            try:
                if len(captures) >= RECORDINGS or graph is None:
                    raise CaptureError(f"what it depends on changed {RECORDINGS} times")
                captures[whole_key] = Capture(function, inputs, graph, state, fixed)
            except CaptureError as error:
                self.refusals[name] = str(error)
                captures.clear()
                return None
        return captures[whole_key]

    def reason(self) -> str:
        """What is replayed and what is not, for the user; empty where nothing was tried."""
        replayed = [name for name, captures in self._captures.items() if captures]
        parts = [f"CUDA graphs of {', '.join(replayed)}"] if replayed else []
        parts += [f"no CUDA graph of {name} ({why})" for name, why in self.refusals.items()]
        return "; ".join(parts)


def in_place(kept: Sequence[th.Tensor], tensors: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    Tensors in memory that stays the same from call to call.

    :param kept: what the last call returned; empty at first
    :param tensors: of this call
    :return: ``kept`` with the new numbers; copies if shapes or types are others
    """
    same = [(tensor.shape, tensor.dtype) for tensor in tensors] == [(place.shape, place.dtype) for place in kept]
    if not same:
        return [tensor.clone() for tensor in tensors]
    for place, tensor in zip(kept, tensors, strict=True):
        place.copy_(tensor)
    return list(kept)


def _settings() -> tuple[Hashable, ...]:
    """Settings of torch that decide what is launched."""
    cudnn = th.backends.cudnn
    return (
        th.get_float32_matmul_precision(),
        th.backends.cuda.matmul.allow_tf32,
        (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
        th.are_deterministic_algorithms_enabled(),
    )

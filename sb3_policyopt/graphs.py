"""
Functions on fixed memory, recorded once as a CUDA graph and replayed: the one place that knows graphs.

A replay repeats the kernels of the recording on the same addresses. Python does not run: numbers of Python are as they were,
and what the CPU would do is not done. So a recorded function reads tensors only, those that it is given or that never move.
"""

import gc
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

import torch as th

Function = Callable[..., tuple[th.Tensor, ...]]

WARM_UP = 3
"""Calls before the recording, in which libraries allocate their memory and choose their algorithms."""

RECORDINGS = 8
"""Graphs of one kind that are recorded. More would mean that something changes all the time."""

RTOL, ATOL = 1e-3, 1e-5
"""By how much of its largest entry a replay may differ from the function: a product may choose another order of its sums."""


class CaptureError(RuntimeError):
    """A function cannot be recorded, or a replay does something else."""


class RecordingError(CaptureError):
    """A recording ended early. torch does not promise that another one can be made in this process."""


class Graph(Protocol):
    """What records and replays."""

    def on_stream(self) -> AbstractContextManager[object]:
        """A context for calls before the recording, ordered with what was done before and comes after."""

    def checking(self) -> AbstractContextManager[object]:
        """A context in which whatever would wait for the device raises an error."""

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

    streams: ClassVar[dict[th.device, th.cuda.Stream]] = {}
    """One of each device, for all recordings: libraries keep memory for each stream."""
    failed: ClassVar[bool] = False
    """Whether a recording ended early in this process."""

    def __init__(self, device: th.device) -> None:
        self.device = device
        self.graph = th.cuda.CUDAGraph()
        if device not in self.streams:
            self.streams[device] = th.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream = self.streams[device]

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Of the recording."""
        current = th.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with th.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """
        torch's own check. It holds for the whole process, so that it is left out where other threads run, which may wait; a
        function that waits then ends its recording.
        """
        if threading.active_count() > 1:
            yield
            return
        before = th.cuda.get_sync_debug_mode()
        th.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            th.cuda.set_sync_debug_mode(before)

    def record(self, function: Callable[[], tuple[th.Tensor, ...]]) -> tuple[th.Tensor, ...]:
        """Record what the function launches."""
        current = th.cuda.current_stream(self.device)
        try:
            # Other threads may use the GPU meanwhile, such as a simulator's.
            graph = th.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local")
            with th.cuda.device(self.device), graph:
                return function()
        except BaseException:
            CudaGraph.failed = True
            th.cuda.set_stream(current)  # which torch does not do then
            raise

    def replay(self) -> None:
        """Launch it again."""
        self.graph.replay()


def make_graph(device: th.device) -> Graph | None:
    """
    A graph for a device.

    :param device: of all tensors
    :return: None where there are none, and after a recording ended early
    """
    return CudaGraph(device) if device.type == "cuda" and th.version.hip is None and not CudaGraph.failed else None


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
            self.outputs = self._record(function)
            restore()
            self._spoil_outputs()
            graph.replay()
            found = [tensor.clone() for tensor in (*self.outputs, *state)]
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, CaptureError):
                raise
            raise CaptureError(_one_line(error)) from error
        finally:
            restore()
        if not all(map(_are_close, found, expected)):
            raise CaptureError("a replay gave other numbers than the function itself")

    def _warm_up(self, function: Function, state: Sequence[th.Tensor], restore: Callable[[], None]) -> list[th.Tensor]:
        """
        Call the function as the recording will; the last time with a check that it waits for nothing.

        :param function: to be recorded
        :param state: what it changes
        :param restore: undoes the changes
        :return: copies of what it returned, and of the state after it
        """
        found: list[th.Tensor] = []
        with self.graph.on_stream():
            for call in range(WARM_UP):
                restore()
                with self.graph.checking() if call == WARM_UP - 1 else nullcontext():
                    outputs = function(*self.inputs)
                found = [tensor.clone() for tensor in (*outputs, *state)]
            restore()
        return found

    def _record(self, function: Function) -> tuple[th.Tensor, ...]:
        """
        Record the function.

        :param function: to be recorded
        :return: what each replay overwrites
        :raises RecordingError: if the recording ended early
        """
        gc.collect()
        collects = gc.isenabled()
        gc.disable()  # a graph that is freed during a recording ends it
        try:
            return self.graph.record(lambda: function(*self.inputs))
        except (RuntimeError, AssertionError) as error:
            raise RecordingError(_one_line(error)) from error
        finally:
            if collects:
                gc.enable()

    def _spoil_outputs(self) -> None:
        """Overwrite what the recording returned, so that a replay that does nothing is found."""
        given = {value.data_ptr() for value in self.inputs}
        for tensor in self.outputs:
            if tensor.data_ptr() not in given:
                tensor.fill_(float("nan") if tensor.is_floating_point() else True if tensor.dtype == th.bool else -1)

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


class Task(NamedTuple):
    """
    A function that a :class:`Recorder` may replay.

    :param name: of the function, for the user
    :param key: what it depends on beside the inputs' numbers; it is recorded anew for another one
    :param function: see :class:`Capture`
    :param inputs: see :class:`Capture`
    :param state: see :class:`Capture`
    :param fixed: see :class:`Capture`
    """

    name: str
    key: Hashable
    function: Function
    inputs: Sequence[th.Tensor]
    state: Sequence[th.Tensor] = ()
    fixed: Sequence[int] = ()


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

    def call(self, task: Task) -> tuple[th.Tensor, ...]:
        """
        Call a function, by a replay where that is possible.

        :param task: the function and its inputs
        :return: its tensors, which the next call may overwrite
        """
        capture = self.capture(task)
        return task.function(*task.inputs) if capture is None else capture(*task.inputs)

    def capture(self, task: Task) -> Capture | None:
        """
        What replays a function.

        :param task: the function and the inputs of this call
        :return: None where it has to be called itself
        """
        if not self.is_active or task.name in self.refusals:
            return None
        shapes = tuple((value.shape, value.dtype) for value in task.inputs)
        addresses = tuple(task.inputs[i].data_ptr() for i in task.fixed), tuple(tensor.data_ptr() for tensor in task.state)
        key = (task.key, shapes, addresses, *_settings())
        captures = self._captures.setdefault(task.name, {})
        if key not in captures:
            graph = make_graph(self.device)
            try:
                if graph is None:
                    raise RecordingError("an earlier recording in this process ended early")
                if len(captures) >= RECORDINGS:
                    raise CaptureError(f"what it depends on changed {RECORDINGS} times")
                captures[key] = Capture(task.function, task.inputs, graph, task.state, task.fixed)
            except CaptureError as error:
                self.is_active &= not isinstance(error, RecordingError)
                self.refusals[task.name] = str(error)
                captures.clear()
                return None
        return captures[key]

    def refuse(self, names: Sequence[str], why: str, now: bool) -> None:
        """
        Leave functions to themselves for a reason that may come and go.

        :param names: of the functions
        :param why: the reason
        :param now: whether it holds
        """
        for name in names:
            if now:
                self.refusals.setdefault(name, why)
            elif self.refusals.get(name) == why:
                del self.refusals[name]

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


def _are_close(one: th.Tensor, other: th.Tensor) -> bool:
    """Whether two tensors agree, by the scale of the second; NaN agrees with NaN."""
    if one.numel() == 0:
        return True
    a, b = one.double(), other.double()
    if not bool((a.isnan() == b.isnan()).all() and (a.isinf() == b.isinf()).all()):
        return False
    a, b = (x.nan_to_num(0.0, 0.0, 0.0) for x in (a, b))
    return bool((a - b).abs().max() <= ATOL + RTOL * b.abs().max())


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _settings() -> tuple[Hashable, ...]:
    """Settings of torch that decide what is launched."""
    cuda, cudnn = th.backends.cuda.matmul, th.backends.cudnn
    names = ("enabled", "deterministic", "benchmark", "allow_tf32", "fp32_precision")
    readings: list[Callable[[], Hashable]] = [
        th.get_float32_matmul_precision,
        th.are_deterministic_algorithms_enabled,
        *(partial(getattr, cuda, name, None) for name in ("allow_tf32", "fp32_precision")),
        *(partial(getattr, cudnn, name, None) for name in names),
    ]
    return tuple(map(_reading, readings))


def _reading(read: Callable[[], Hashable]) -> Hashable:
    """A setting; None where torch refuses to read it, because its newer name was used."""
    try:
        return read()
    except RuntimeError:
        return None

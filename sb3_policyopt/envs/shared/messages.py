"""Messages between trainer and workers, besides the arrays in the shared memory."""

import io
import pickle
import traceback
from collections.abc import Iterator
from copyreg import dispatch_table
from types import MemberDescriptorType
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from sb3_policyopt.errors import WorkerTracebackError as WorkerTracebackError

_NUMBERS = (
    *(np.bool_, np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64),
    *(np.uint8, np.uint16, np.uint32, np.uint64),
)


NO_ARGUMENTS = pickle.dumps(())

Info: TypeAlias = dict[str, object]

StepInfos: TypeAlias = dict[int, tuple[Info, Info | None]]
"""By number of the environment, its info, and that of the reset if its episode has ended."""


Parts: TypeAlias = tuple[type[BaseException], tuple[Any, ...], Any, dict[str, object]]
"""Of an exception: see :func:`packed`."""


class Order(NamedTuple):
    """
    A message to a worker.

    :param number: higher than that of every order before
    :param name: of a method of :class:`.worker.Worker`
    :param arguments: of the method, a pickled tuple
    """

    number: int
    name: str
    arguments: bytes = NO_ARGUMENTS


class Failure(NamedTuple):
    """
    An exception that is sent to the trainer.

    :param error: what :func:`packed` returns as a pickle, or in the trainer's own process the exception; None if there is none
    :param text: its traceback
    """

    error: bytes | BaseException | None
    text: str


def failure(error: BaseException, where: str) -> Failure:
    """
    Pack an exception.

    :param error: the exception
    :param where: the environment that raised it
    :return: what :func:`unpack` takes
    """
    try:
        pickled = pickle.dumps(packed(error))
    except Exception:  # a class may raise anything
        pickled = None
    return Failure(pickled, told(error, where))


def told(error: BaseException, where: str) -> str:
    """
    The traceback of an exception.

    :param error: the exception
    :param where: the environment that raised it
    :return: for :class:`Failure`
    """
    return f"In {where}:\n" + "".join(traceback.format_exception(error))


def packed(error: BaseException) -> object:
    """
    An exception in parts, as its pickle would call its constructor with ``args``, which need not be what that was called with.

    :param error: the exception
    :return: class, arguments of the built-in base, attributes and contents of slots; the exception itself if its class says
        how it is pickled
    """
    cls = type(error)
    reduced = error.__reduce__()
    if any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in own_classes(cls)) or not (
        isinstance(reduced, tuple) and reduced[0] is cls
    ):
        return error
    slots = {name: getattr(error, name) for name in slots_of(cls) if hasattr(error, name)}
    return cls, reduced[1], reduced[2] if len(reduced) > 2 else None, slots


def rebuilt(parts: object) -> BaseException:
    """
    The exception of :func:`packed`, without a call of its class's constructor.

    :param parts: what :func:`packed` returned
    :return: of the same class, with the same message and attributes
    """
    if isinstance(parts, BaseException):
        return parts
    cls, arguments, attributes, slots = cast(Parts, parts)
    built_in: Any = next(base for base in solid_bases(cls) if base not in own_classes(cls))
    error: BaseException = built_in.__new__(cls, *arguments)
    built_in.__init__(error, *arguments)
    if attributes:
        error.__setstate__(attributes)
    for name, value in slots.items():
        setattr(error, name, value)
    return error


def own_classes(cls: type[BaseException]) -> list[type]:
    """Those classes from which an exception derives, itself included, that are not part of Python."""
    return [base for base in cls.__mro__ if base.__module__ != "builtins"]


def solid_bases(cls: type) -> Iterator[type[BaseException]]:
    """The class and the bases that determine its memory, down to ``BaseException``."""
    while issubclass(cls, BaseException):
        yield cls
        cls = cls.__base__ or object


def slots_of(cls: type) -> set[str]:
    """Names of the attributes in ``__slots__`` of a class."""
    return {name for base in own_classes(cls) for name, held in vars(base).items() if isinstance(held, MemberDescriptorType)}


def unpack(failure: Failure) -> BaseException:
    """
    The exception, with the worker's traceback as its cause.

    :param failure: of a worker
    :return: the exception itself; a RuntimeError if it cannot be sent between processes
    """
    if isinstance(failure.error, BaseException):
        error = failure.error
    else:
        try:
            error = rebuilt(pickle.loads(failure.error or b""))
        except Exception:  # as above
            error = RuntimeError(failure.text)
    error.__cause__ = WorkerTracebackError(failure.text)
    return error


_CONSTANTS = frozenset((*_NUMBERS, bool, int, float, complex, str, bytes, type(None)))


def is_constant(info: Info) -> bool:
    """
    Whether a dict holds only what nobody can change: numbers, texts and None.

    :param info: of an environment
    :return: whether a shallow copy shares nothing that can change
    """
    return type(info) is dict and _CONSTANTS.issuperset(map(type, info.values()))


def _plain(scalar: np.generic) -> tuple[type[np.generic], tuple[object]]:
    """The pickle of a number of NumPy by its value as one of Python, which takes half the time of NumPy's own."""
    return type(scalar), (scalar.item(),)


class _Pickler(pickle.Pickler):
    """Pickles infos, most of which hold numbers of NumPy."""

    dispatch_table = dispatch_table | dict.fromkeys(_NUMBERS, _plain)


def dumps(thing: object) -> bytes:
    """
    A pickle.

    :param thing: anything
    :return: for ``pickle.loads``
    """
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(thing)
    return file.getvalue()

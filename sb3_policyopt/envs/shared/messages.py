"""Messages between trainer and workers, besides the arrays in the shared memory."""

import io
import pickle
import traceback
from copyreg import dispatch_table
from typing import NamedTuple, TypeAlias

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

    :param error: its pickle; None if there is none
    :param text: its traceback
    """

    error: bytes | None
    text: str


def failure(error: BaseException, where: str) -> Failure:
    """
    Pack an exception.

    :param error: the exception
    :param where: the environment that raised it
    :return: what :func:`unpack` takes
    """
    try:
        pickled = pickle.dumps(error)
    except Exception:  # a class may raise anything
        pickled = None
    return Failure(pickled, f"In {where}:\n" + "".join(traceback.format_exception(error)))


def unpack(failure: Failure) -> BaseException:
    """
    The exception, with the worker's traceback as its cause.

    :param failure: of a worker
    :return: the exception itself; a RuntimeError if it cannot be sent between processes
    """
    try:
        error = pickle.loads(failure.error or b"")
        assert isinstance(error, BaseException)
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

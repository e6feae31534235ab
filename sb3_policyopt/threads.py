"""
One thread for small matrix products.

OpenBLAS, which NumPy's wheels carry, splits products as small as 64 × 64 × 128 among all cores. On matrices of that size
the threads wait for each other longer than they compute, and on a busy machine many times longer.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np

SMALL = 2**17
"""Multiplications up to which OpenBLAS uses one thread by itself."""

LARGE = 2**25
"""Multiplications from which a product takes about a millisecond, and is worth sharing among threads."""


@cache
def _thread_functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """
    OpenBLAS's own functions to read and to set its number of threads.

    :return: (get, set); None if NumPy came with another BLAS
    """
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")
    for path in (path for folder in folders for path in sorted(folder.glob("*openblas*"))):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                return get, put
    return None


@contextmanager
def threads_kept() -> Iterator[None]:
    """
    A context after which NumPy's matrix products use as many threads as before it.

    :return: the context
    """
    functions = _thread_functions()
    before = functions[0]() if functions else None
    try:
        yield
    finally:
        if functions and before is not None:
            functions[1](before)


@contextmanager
def _one_thread(get: Callable[[], int], put: Callable[[int], None]) -> Iterator[None]:
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


def threads_for(multiplications: int) -> AbstractContextManager[None]:
    """
    A context in which NumPy's matrix products use one thread; the number of before comes back at its end.

    :param multiplications: of the largest product within
    :return: the context; one that does nothing if the product is worth several threads, or there is but one anyway
    """
    if multiplications <= SMALL or multiplications >= LARGE:
        return _NOTHING
    functions = _thread_functions()
    if functions is None or functions[0]() == 1:
        return _NOTHING
    return _one_thread(*functions)


_NOTHING = nullcontext()

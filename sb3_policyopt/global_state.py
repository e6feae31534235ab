"""
Settings of the whole process that training changes and restores: torch's gradient mode, the validation of its distributions,
and the number of threads that NumPy's matrix products use.

:func:`modes_kept` surrounds a training. :func:`threads_for` surrounds single products: OpenBLAS, which NumPy's wheels contain,
splits products as small as 64 × 64 × 128 among all cores. At that size synchronising the threads takes longer than the
multiplications, and on a busy machine many times longer, so such products are computed by one thread.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch as th
from torch.distributions import Distribution

SMALL = 2**17
"""Multiplications up to which OpenBLAS uses one thread by itself."""

LARGE = 2**25
"""Multiplications from which a product takes about a millisecond, and several threads make it faster."""


@contextmanager
def modes_kept() -> Iterator[None]:
    """
    Restore at the end torch's gradient mode, the validation of its distributions, and NumPy's number of threads.

    Each ``with`` inside restores its own setting, unless Ctrl-C arrives between the change and the ``with``: gradients would
    then stay off in an interactive session, and the next training would fail without a visible cause.

    :return: a context
    """
    gradients, checks = th.is_grad_enabled(), Distribution._validate_args
    try:
        with threads_kept():
            yield
    finally:
        th.set_grad_enabled(gradients)
        Distribution.set_default_validate_args(checks)


@cache
def blas_thread_functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
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
    Restore at the end the number of threads that NumPy's matrix products use.

    :return: the context
    """
    functions = blas_thread_functions()
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


@contextmanager
def threads_set(blas: int, torch: int) -> Iterator[None]:
    """
    A context in which NumPy's matrix products and torch use so many threads; at its end they use as many as before.

    :param blas: of OpenBLAS, if NumPy came with it
    :param torch: of torch
    :return: the context
    """
    functions, before = blas_thread_functions(), th.get_num_threads()
    blas_before = functions[0]() if functions else blas
    try:
        if functions and blas != blas_before:
            functions[1](blas)
        if torch != before:
            th.set_num_threads(torch)
        yield
    finally:
        if functions and blas != blas_before:
            functions[1](blas_before)
        if torch != before:
            th.set_num_threads(before)


def threads_for(multiplications: int) -> AbstractContextManager[None]:
    """
    A context in which NumPy's matrix products use one thread; at its end the number of threads is restored.

    :param multiplications: of the largest product within
    :return: the context; one that changes nothing if several threads make the product faster, or there is only one
    """
    if multiplications <= SMALL or multiplications >= LARGE:
        return _NOTHING
    functions = blas_thread_functions()
    if functions is None or functions[0]() == 1:
        return _NOTHING
    return _one_thread(*functions)


_NOTHING = nullcontext()

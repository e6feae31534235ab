"""
Settings of the process that training changes and restores: torch's gradient mode, the validation of its distributions, the
cache of ``torch.autocast``, and the number of threads that NumPy's matrix products use.

:func:`training_modes` surrounds a training. :func:`threads_for` surrounds single products: OpenBLAS, which NumPy's wheels
contain, splits products as small as 64 × 64 × 128 among all cores. At that size synchronising the threads takes longer than
the multiplications, and on a busy machine many times longer, so such products are computed by one thread.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch as th
from torch.distributions import Distribution

SMALL = 2**17
"""Multiplications up to which OpenBLAS uses one thread by itself."""

LARGE = 2**25
"""Multiplications from which a product takes about a millisecond, and several threads make it faster."""


T = TypeVar("T")


class ProcessSetting(Generic[T]):
    """
    A setting of the whole process that trainings in several threads may change at the same time: the first to change it notes
    what it was, and the last restores it.

    :param get: reads it
    :param put: sets it
    :param needed: the value that is set for a time
    """

    def __init__(self, get: Callable[[], T], put: Callable[[T], None], needed: T) -> None:
        self.get, self.put, self.needed = get, put, needed
        self.before = get()
        self.lock = threading.RLock()
        self.changes = self.trainings = 0

    @contextmanager
    def changed(self) -> Iterator[None]:
        """
        Set it to the value that is needed.

        :return: a context
        """
        with self.lock:
            if self.changes == 0:
                self.before = self.get()
                self.changes = 1  # first: whenever the value is this package's, it is counted
                self.put(self.needed)
            else:
                self.changes += 1
        try:
            yield
        finally:
            with self.lock:
                if self.changes == 1:
                    self.put(self.before)
                self.changes = max(0, self.changes - 1)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """
        Restore it at the end of the last training where Ctrl-C has kept a :meth:`changed` from doing so. What a callback
        has set on purpose stays.

        :return: a context
        """
        with self.lock:
            self.trainings += 1
        try:
            yield
        finally:
            with self.lock:
                self.trainings -= 1
                if self.trainings == 0 and self.changes:
                    self.put(self.before)
                    self.changes = 0


_validation = ProcessSetting(lambda: bool(Distribution._validate_args), Distribution.set_default_validate_args, needed=False)


def unvalidated() -> AbstractContextManager[None]:
    """Torch distributions without argument checks, each of which would wait for the device; our own guards name the cause."""
    return _validation.changed()


@contextmanager
def training_modes() -> Iterator[None]:
    """
    Torch's gradients are on, and autocast keeps no casts. At the end the mode of the gradients, autocast's cache, the
    validation of torch's distributions and NumPy's number of threads are what they were, or what a callback set the last
    two to.

    Each ``with`` inside restores its own setting, unless Ctrl-C arrives between the change and the ``with``: gradients would
    then stay off in an interactive session, and the next training would fail without a visible cause.

    :return: a context
    :raises ValueError: within ``torch.inference_mode()``, whose tensors cannot be trained any more
    """
    if th.is_inference_mode_enabled():
        raise ValueError(
            "learn() was called within torch.inference_mode(), in which parameters cannot be trained: call it outside"
        )
    threads = _blas_threads()
    with th.enable_grad(), uncached_casts(), _validation.kept(), threads.kept() if threads else nullcontext():
        yield


def autocast_is_on() -> bool:
    """Whether ``torch.autocast`` changes what networks compute, on whichever device."""
    return any(th.is_autocast_enabled(device) for device in ("cpu", "cuda", "mps", "xpu"))


@contextmanager
def uncached_casts() -> Iterator[None]:
    """
    Within ``torch.autocast`` weights are cast anew at every use. Torch keeps what it has cast until the outermost ``autocast``
    ends, so in one around a whole training every pass would compute with the weights of the first one.

    :return: a context
    """
    cached = th.is_autocast_cache_enabled()
    if not (cached and autocast_is_on()):
        yield
        return
    th.clear_autocast_cache()
    th.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        th.set_autocast_cache_enabled(cached)


def unchecked_arithmetic() -> AbstractContextManager[object]:
    """
    A context in which NumPy computes as torch does: without exceptions for underflow and the like, even after
    ``np.seterr(all="raise")``. Our own guards look for what is not finite.

    :return: the context, for one use
    """
    return np.errstate(all="ignore")


@contextmanager
def arithmetic_of_updates() -> Iterator[None]:
    """
    :func:`unchecked_arithmetic` and :func:`uncached_casts`, which a callback may have made necessary since the training began.

    :return: a context
    """
    with unchecked_arithmetic(), uncached_casts():
        yield


def arithmetic_of_steps() -> Callable[[], AbstractContextManager[object]]:
    """
    :func:`unchecked_arithmetic` for each step of a rollout, where it is needed: it takes a microsecond.

    :return: what makes the contexts; they change nothing where ``np.seterr`` has asked for no exceptions
    """
    return _nothing if set(np.geterr().values()) <= {"ignore", "warn", "print"} else unchecked_arithmetic


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


@cache
def _blas_threads() -> ProcessSetting[int] | None:
    """The number of threads of NumPy's matrix products; None if NumPy came with another BLAS."""
    functions = blas_thread_functions()
    return None if functions is None else ProcessSetting(*functions, needed=1)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """
    A context in which torch uses so many threads, and NumPy's matrix products one; at its end they use as many as before.

    :param count: of torch, which has such a number for each thread of Python
    :return: the context
    """
    setting, before = _blas_threads(), th.get_num_threads()
    with setting.changed() if setting else nullcontext():
        try:
            if count != before:
                th.set_num_threads(count)
            yield
        finally:
            if count != before:
                th.set_num_threads(before)


def threads_for(multiplications: int) -> AbstractContextManager[None]:
    """
    A context in which NumPy's matrix products use one thread; at its end the number of threads is restored.

    :param multiplications: of the largest product within
    :return: the context; one that changes nothing if several threads make the product faster, or there is only one
    """
    if multiplications <= SMALL or multiplications >= LARGE:
        return _NOTHING
    setting = _blas_threads()
    if setting is None or setting.get() == 1:
        return _NOTHING
    return setting.changed()


def _nothing() -> AbstractContextManager[object]:
    return _NOTHING


_NOTHING = nullcontext()

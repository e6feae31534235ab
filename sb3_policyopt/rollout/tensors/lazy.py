"""What ``callback.locals`` shows of tensors: arrays that are made when a callback looks at them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.info import Info

Made = TypeVar("Made")


class Moment:
    """A step of the environments, whose tensors hold until the next one: a context while callbacks look at it."""

    def __init__(self) -> None:
        self.is_over = False

    def __enter__(self) -> "Moment":
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True

    def make(self, function: Callable[[], Made], what: str) -> Made:
        """
        Read tensors.

        :param function: reads them
        :param what: for the message
        :return: what it returns
        :raises RuntimeError: if the step is over
        """
        if self.is_over:
            raise RuntimeError(
                f"callback.locals: {what} of an earlier step was not looked at during that step, and its memory has been used "
                "again; copy it in _on_step, for example with numpy.array(...)"
            )
        return function()


class LazyArray(NDArrayOperatorsMixin):
    """
    An array that is copied from the device when it is first used.

    :param moment: until when the tensor holds
    :param name: of the variable, for the message
    :param function: () ↦ the array, with memory of its own
    """

    def __init__(self, moment: Moment, name: str, function: Callable[[], NumpyArray]) -> None:
        self._moment, self._name, self._function = moment, name, function
        self._made: NumpyArray | None = None

    @property
    def array(self) -> NumpyArray:
        """The array itself."""
        if self._made is None:
            self._made = self._moment.make(self._function, self._name)
        return self._made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NumpyArray:
        array = self.array if dtype is None else self.array.astype(dtype)
        return array.copy() if copy else array

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        arrays = [value.array if isinstance(value, LazyArray) else value for value in inputs]
        return getattr(ufunc, method)(*arrays, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as those that copy and pickle ask for
            raise AttributeError(name)
        return getattr(self.array, name)

    def __reduce__(self) -> Any:
        return np.array, (self.array,)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        raise ValueError(f"callback.locals: {self._name} lies on the device; a callback cannot change it here")

    def __bool__(self) -> bool:
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def __repr__(self) -> str:
        return repr(self.array)


class LazyInfos(Sequence[Info]):
    """
    SB3's infos, which are made when a callback first looks at one.

    :param moment: until when the tensors hold
    :param n_envs: number of environments
    :param function: () ↦ an info for each environment
    """

    def __init__(self, moment: Moment, n_envs: int, function: Callable[[], list[Info]]) -> None:
        self._moment, self._n_envs, self._function = moment, n_envs, function
        self._made: list[Info] | None = None

    @property
    def infos(self) -> list[Info]:
        """The infos themselves."""
        if self._made is None:
            self._made = self._moment.make(self._function, "infos")
        return self._made

    def __len__(self) -> int:
        return self._n_envs

    @overload
    def __getitem__(self, index: int) -> Info: ...

    @overload
    def __getitem__(self, index: slice) -> list[Info]: ...

    def __getitem__(self, index: int | slice) -> Info | list[Info]:
        return self.infos[index]

    def __iter__(self) -> Iterator[Info]:
        return iter(self.infos)

    def __repr__(self) -> str:
        return repr(self.infos)

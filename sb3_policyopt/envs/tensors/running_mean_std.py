"""SB3's ``RunningMeanStd`` on a device."""

import copyreg
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_policyopt.maths.arrays import Array, NumpyArray


@dataclass(frozen=True)
class Moments:
    """
    Mean, variance and number of observations; float64 on the device.

    :param mean: shape of one observation
    :param var: the same shape
    :param count: shape ()
    """

    mean: th.Tensor
    var: th.Tensor
    count: th.Tensor


class TensorMeanStd(RunningMeanStd):
    """
    Running mean and variance in float64 tensors, with SB3's formulas (Chan et al.) and SB3's attributes as NumPy arrays.

    Updates write to the tensors, which stay the same ones, and do not wait for the device. Reading or assigning ``mean``,
    ``var`` and ``count`` copies; the arrays that they give are read-only. A pickle or deep copy of it is SB3's class.

    :param moments: of SB3, whose numbers are copied
    :param device: of the tensors
    """

    def __init__(self, moments: RunningMeanStd, device: th.device) -> None:
        numbers = (
            th.tensor(np.asarray(x), dtype=th.float64, device=device) for x in (moments.mean, moments.var, moments.count)
        )
        self.tensors = Moments(*numbers)

    @classmethod
    def on(cls, device: th.device, moments: RunningMeanStd) -> "TensorMeanStd":
        """
        The same statistics on a device.

        :param device: of the tensors
        :param moments: of either class
        :return: themselves if they are there
        """
        if isinstance(moments, cls) and moments.tensors.mean.device == device:
            return moments
        return cls(moments, device)

    def update(self, arr: Array, without: th.Tensor | None = None) -> None:
        """
        Take in observations.

        :param arr: shape (n, ...)
        :param without: which of them to leave out, bool, shape (n,); then ``arr`` has no further axes
        """
        batch = th.as_tensor(arr, device=self.tensors.mean.device).double()
        if without is None:
            var, mean = th.var_mean(batch, dim=0, correction=0)
            self.update_from_moments(mean, var, len(batch))
            return
        count = (~without).sum()
        mean = batch.masked_fill(without, 0).sum() / count.clamp(min=1)
        var = ((batch - mean) ** 2).masked_fill(without, 0).sum() / count.clamp(min=1)
        self.update_from_moments(mean, var, count)

    def update_from_moments(self, batch_mean: Any, batch_var: Any, batch_count: Any) -> None:
        """
        Take in the moments of observations.

        :param batch_mean: their mean
        :param batch_var: their variance
        :param batch_count: their number
        """
        mean, var, count = self.tensors.mean, self.tensors.var, self.tensors.count
        batch_mean, batch_var = (th.as_tensor(x, dtype=th.float64, device=mean.device) for x in (batch_mean, batch_var))
        total = count + batch_count
        delta = batch_mean - mean
        squares = var * count + batch_var * batch_count + delta**2 * count * batch_count / total
        mean.add_(delta * batch_count / total)
        var.copy_(squares / total)
        count.copy_(total)

    def _array(self, name: str) -> NumpyArray:
        array = getattr(self.tensors, name).to("cpu", copy=True).numpy()
        array.flags.writeable = False  # else what is written to it would be lost
        return array

    def _assign(self, name: str, value: Any) -> None:
        tensor = getattr(self.tensors, name)
        tensor.copy_(th.as_tensor(np.asarray(value), dtype=th.float64))

    @property
    def mean(self) -> NumpyArray:  # type: ignore[override]  # an attribute of SB3's
        """The mean; a read-only copy."""
        return self._array("mean")

    @mean.setter
    def mean(self, value: Any) -> None:
        self._assign("mean", value)

    @property
    def var(self) -> NumpyArray:  # type: ignore[override]
        """The variance; a read-only copy."""
        return self._array("var")

    @var.setter
    def var(self, value: Any) -> None:
        self._assign("var", value)

    @property
    def count(self) -> float:  # type: ignore[override]
        """The number of observations, with SB3's first 1e-4."""
        return float(self._array("count"))

    @count.setter
    def count(self, value: Any) -> None:
        self._assign("count", value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {"mean": self.mean.copy(), "var": self.var.copy(), "count": self.count}
        return copyreg._reconstructor, (RunningMeanStd, object, None), state  # type: ignore[attr-defined]

"""T5, T7 by graphs: a Fisher-vector product, and all iterations of the conjugate gradient method at once."""

from collections.abc import Callable, Hashable, Sequence

import torch as th

from sb3_policyopt.graphs import Recorder, Task
from sb3_policyopt.maths.conjugate_gradient import (
    ConjugateGradientResult,
    DeviceResult,
    conjugate_gradient_on_device,
    in_python,
)
from sb3_policyopt.objectives.trust_region import FisherProduct

ProductAt = Callable[..., Callable[[th.Tensor], th.Tensor]]
"""(what a forward pass left) ↦ (v ↦ F v)."""


class ReplayedFisherProduct(FisherProduct):
    """
    As the base class, by graphs.

    :param recorder: of graphs
    :param product_at: makes the product of what a forward pass left
    :param kept: what it left, in memory that stays the same
    :param key: what the product depends on beside it, such as where else it reads
    """

    def __init__(self, recorder: Recorder, product_at: ProductAt, kept: Sequence[th.Tensor], key: Hashable) -> None:
        super().__init__(self._replay)
        self.recorder, self.product_at, self.kept, self.key = recorder, product_at, kept, key

    def _replay(self, vector: th.Tensor) -> th.Tensor:
        """F v in memory of its own."""

        def product(vector: th.Tensor, *kept: th.Tensor) -> tuple[th.Tensor, ...]:
            return (self.product_at(*kept)(vector),)

        fixed = range(1, 1 + len(self.kept))
        return self.recorder.call(Task("F v", self.key, product, [vector, *self.kept], fixed=fixed))[0].clone()

    def solve(self, b: th.Tensor, max_iterations: int, damping: float) -> ConjugateGradientResult[th.Tensor]:
        """As the base class, with one wait for the device."""

        def iterate(b: th.Tensor, damping: th.Tensor, *kept: th.Tensor) -> tuple[th.Tensor, ...]:
            result = conjugate_gradient_on_device(self.product_at(*kept), b, max_iterations, damping=damping)
            return result.x, result.numbers

        inputs = [b, b.new_tensor(damping), *self.kept]
        task = Task("conjugate gradient", (self.key, max_iterations), iterate, inputs, fixed=range(2, len(inputs)))
        capture = self.recorder.capture(task)
        if capture is None:
            return super().solve(b, max_iterations, damping)
        x, numbers = capture(*inputs)
        return in_python(DeviceResult(x.clone(), numbers))

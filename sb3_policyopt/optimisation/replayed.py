"""Steps of Adam by a graph, on a GPU."""

from collections.abc import Callable

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.graphs import Recorder, Task
from sb3_policyopt.maths.arrays import Scalar
from sb3_policyopt.maths.terms import Count, Terms
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.optimisation.optimiser import Optimiser


class ReplayedOptimiser(Optimiser):
    """
    The same numbers as :class:`Optimiser`; clipping and Adam are one graph where the step is a fused one.

    :param policy: whose ``optimizer`` says what a step is
    :param flat: its parameters
    :param first: number of the first parameter of the range
    :param after_foreign_step: called after a step that the policy's own optimizer made
    :param recorder: of graphs
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        flat: FlatParameters,
        first: int,
        after_foreign_step: Callable[[], None],
        recorder: Recorder,
    ) -> None:
        super().__init__(policy, flat, first, after_foreign_step)
        self.recorder = recorder
        self._numbers: tuple[float, ...] = ()
        self._tensor = flat.vector.new_empty(0)

    def step(self, max_norm: float, loss: Scalar) -> Terms:
        """As the base class."""
        fused = self._fused_now() if self.recorder.is_active and isinstance(loss, th.Tensor) else None
        if fused is None or not isinstance(loss, th.Tensor):
            return super().step(max_norm, loss)
        self.flat.bring()

        def clip_and_step(loss: th.Tensor, numbers: th.Tensor) -> tuple[th.Tensor, ...]:
            bound, rate = numbers.unbind()
            norm, skipped = self.clip(bound, loss)
            fused.step(skipped, rate)
            return (th.stack((norm, skipped)),)

        group = self.policy.optimizer.param_groups[0]
        key = (type(self.policy.optimizer), id(fused), *(group["betas"]), group["eps"], group["weight_decay"])
        state = [self.flat.vector, self.flat.gradient, *fused.state]
        (found,) = self.recorder.call(
            Task("steps", key, clip_and_step, [loss, self._as_tensor(max_norm, float(group["lr"]))], state)
        )
        self.flat.push()
        norm, skipped = found.clone().unbind()
        return {"grad_norm": norm, "skipped_updates": Count(skipped)}

    def _as_tensor(self, *numbers: float) -> th.Tensor:
        """
        Numbers on the device, sent there when they have changed.

        :param numbers: of Python
        :return: shape (n,)
        """
        if numbers != self._numbers:
            self._numbers, self._tensor = numbers, th.tensor(numbers, dtype=th.float32, device=self.flat.vector.device)
        return self._tensor

"""Steps on a stretch of the flat vector, made as the policy's own torch optimizer makes them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.maths.arrays import Scalar
from sb3_policyopt.maths.terms import Count, Terms
from sb3_policyopt.optimisation.adam import FlatAdam
from sb3_policyopt.optimisation.flat_parameters import FlatParameters


class Optimiser:
    """
    Clips, skips and steps one range of the parameters; on any device, without waiting for it.

    :param policy: whose ``optimizer`` says what a step is
    :param flat: its parameters
    :param first: number of the first parameter of the range, which ends with the last one
    :param after_foreign_step: called after a step that the policy's own optimizer made, where that is not a fused one
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        flat: FlatParameters,
        first: int = 0,
        after_foreign_step: Callable[[], None] | None = None,
    ) -> None:
        self.policy = policy
        self.flat = flat
        self.first = first
        self.after_foreign_step = after_foreign_step
        self.gradient = flat.gradient[flat.offsets[first] :]
        self._adam: FlatAdam | None = None
        self.fused: FlatAdam | None = None

    @contextmanager
    def updating(self) -> Iterator["Optimiser"]:
        """
        Around a series of steps: read the state of the policy's optimizer before, and show state and gradients after.

        :return: a context with this object
        """
        self.flat.absent.clear()
        self.flat.unwatched = True
        self.fused = self._fused_adam()
        if self.fused is not None:
            self.fused.start()
        try:
            yield self
        finally:
            if self.fused is not None:
                self.fused.finish()
                self._hand_out_gradients()

    def step(self, max_norm: float, loss: Scalar) -> Terms:
        """
        Clip the gradient and make one step of the policy's optimizer, unless loss or gradient is not finite: parameters
        and moments then stay as they are.

        :param max_norm: bound on the gradient's Euclidean norm, as in ``torch.nn.utils.clip_grad_norm_``; may be infinite
        :param loss: the loss whose gradient it is, a scalar tensor
        :return: the norm before clipping, and the number of skipped steps (0 or 1)
        """
        norm, skipped = self.clip(max_norm, loss)
        fused = self._fused_now()
        if fused is not None:
            self.flat.bring()
            fused.step(skipped)
            self.flat.push()
        else:
            self._step_of_optimizer(skipped)
            self.flat.bring()
            if self.after_foreign_step is not None:
                self.after_foreign_step()
        return {"grad_norm": norm, "skipped_updates": Count(skipped)}

    def clip(self, max_norm: Scalar, loss: Scalar) -> tuple[th.Tensor, th.Tensor]:
        """
        Clip the gradient.

        :param max_norm: bound on its Euclidean norm; may be infinite
        :param loss: the loss whose gradient it is
        :return: the norm before, and 1.0 if norm or loss is not finite, else 0.0
        """
        norm = th.linalg.vector_norm(self.gradient)
        number = th.as_tensor(loss, dtype=th.float64 if isinstance(loss, float) else None)
        skipped = (~(th.isfinite(norm) & th.isfinite(number))).float()  # as fused Adam takes it
        self.gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm, skipped

    def _fused_adam(self) -> FlatAdam | None:
        """
        Adam in one call for the whole range, where that is what the policy's optimizer would do.

        :return: None if the optimizer has to make the steps itself
        """
        optimizer, mine = self.policy.optimizer, {id(parameter) for parameter in self.flat.parameters}
        if self.first == len(self.flat.parameters) or not FlatAdam.suits(optimizer):
            return None
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        if theirs != mine:
            return None
        if self._adam is None or self._adam.optimizer is not optimizer:
            self._adam = FlatAdam(optimizer, self.flat, self.first)
        return self._adam

    def _fused_now(self) -> FlatAdam | None:
        """
        What makes the next step in one call.

        :return: None if the optimizer itself has to make the step; it goes on from where the fused steps came to
        """
        if self.fused is None:
            return None
        if self.flat.absent:
            self.fused.finish()
            self.fused = None
        elif self.flat.unwatched and not self.fused.is_bound():
            # The first step, or the optimizer's state was loaded, moved or stepped by other code.
            self.fused.finish()
            if self.fused.prepare():
                self.fused.start()
            else:
                self.fused = None
        self.flat.unwatched = False
        return self.fused

    def _hand_out_gradients(self) -> None:
        """
        Give each parameter its gradient as a tensor of its own, so that whoever keeps one does not see it change.

        A parameter that the loss does not depend on, and those before the range, get none.
        """
        gradients = self.flat.places(self.flat.gradient.clone())
        for i, (parameter, gradient) in enumerate(zip(self.flat.parameters, gradients, strict=True)):
            parameter.grad = None if i < self.first or i in self.flat.absent else gradient

    def _step_of_optimizer(self, skipped: th.Tensor) -> None:
        """
        One step of the policy's own optimizer, undone if it is to be skipped.

        :param skipped: 1.0 or 0.0, on the parameters' device; it is not waited for unless the optimizer has no state yet
        """
        optimizer = self.policy.optimizer
        self._hand_out_gradients()
        on_device = [] if skipped.device.type == "cpu" else _state_on(skipped.device, optimizer)
        if not on_device:
            if not skipped:
                optimizer.step()
            return
        on_device += [parameter for group in optimizer.param_groups for parameter in group["params"]]
        before = [tensor.detach().clone() for tensor in on_device]
        optimizer.step()
        with th.no_grad():
            for tensor, old in zip(on_device, before, strict=True):
                tensor.copy_(th.where(skipped > 0, old, tensor))


def _state_on(device: th.device, optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """
    What an optimizer remembers of its parameters.

    :param device: where
    :param optimizer: one of torch, or with the same methods and no ``state``
    :return: the tensors there
    """
    states = [state for state in getattr(optimizer, "state", {}).values() if isinstance(state, dict)]
    tensors = [value for state in states for value in state.values() if isinstance(value, th.Tensor)]
    return [tensor for tensor in tensors if tensor.device == device]


class NumpyOptimiser(Optimiser):
    """
    The same for parameters in the CPU's memory, whose norm is computed in NumPy.

    :param policy: whose ``optimizer`` says what a step is
    :param flat: its parameters
    :param first: number of the first parameter of the range
    :param after_foreign_step: called after a step that the policy's own optimizer made
    """

    def __init__(
        self, policy: ActorCriticPolicy, flat: FlatParameters, first: int, after_foreign_step: Callable[[], None]
    ) -> None:
        super().__init__(policy, flat, first, after_foreign_step)
        self._array = self.gradient.numpy()

    def step(self, max_norm: float, loss: Scalar) -> Terms:
        """As the base class; on the CPU nothing has to be waited for."""
        gradient = self._array
        norm = math.sqrt(gradient.dot(gradient))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return {"grad_norm": norm, "skipped_updates": Count(1.0)}
        if norm + 1e-6 > max_norm:
            gradient *= max_norm / (norm + 1e-6)
        if self.flat.unwatched:
            self.flat.bring()
        fused = self._fused_now()
        if fused is not None:
            fused.step()
            self.flat.push()
        else:
            self.policy.optimizer.zero_grad()
            self._step_of_optimizer(_MADE)
            if self.after_foreign_step is not None:
                self.after_foreign_step()
        return {"grad_norm": norm, "skipped_updates": Count(0.0)}


_MADE = th.zeros((), dtype=th.float32)
"""The flag of a step that is not skipped."""

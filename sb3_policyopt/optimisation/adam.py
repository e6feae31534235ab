"""Adam and AdamW on the flat vector."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch as th
from torch.optim import optimizer as torch_optimizer

from sb3_policyopt.identity.originals import has_original_step
from sb3_policyopt.optimisation.flat_parameters import FlatParameters, is_held_elsewhere, with_own_storage

STATE = ("step", "exp_avg", "exp_avg_sq")
UNUSUAL = ("amsgrad", "maximize", "capturable", "differentiable")
GLOBAL_HOOKS = (
    getattr(torch_optimizer, "_global_optimizer_pre_hooks", {}),
    getattr(torch_optimizer, "_global_optimizer_post_hooks", {}),
)


class FlatAdam:
    """
    ``torch.optim.Adam`` or ``AdamW`` on a stretch of the flat vector: one fused call instead of a dozen per parameter.

    The moments are flat too, and the optimizer's own state holds tensors on their memory, so that ``optimizer.state_dict()``
    and whoever steps the optimizer later sees what stock Adam would show.

    :param optimizer: the policy's optimizer, for which :meth:`suits` is True
    :param flat: the parameters
    :param start: first parameter (its number, not its offset) that this steps
    """

    def __init__(self, optimizer: th.optim.Optimizer, flat: FlatParameters, start: int = 0) -> None:
        self.optimizer = optimizer
        self.flat = flat
        self.parameters = flat.parameters[start:]
        place = slice(flat.offsets[start], flat.offsets[-1])
        self.vector, self.gradient = flat.vector[place], flat.gradient[place]
        self.moments = th.zeros_like(flat.vector), th.zeros_like(flat.vector)
        on_cpu = self.vector.device.type == "cpu"
        kind = th.float64 if on_cpu and th.get_default_dtype() == th.float64 else th.float32
        self.steps = th.zeros(len(self.parameters), dtype=kind)  # of the type and on the CPU, as stock Adam keeps them
        self._count = self.steps[:1].to(self.vector.device)[0]  # the same memory, if the parameters are on the CPU too
        self._steps = self.steps.numpy()
        self._first, self._second = (moment[place] for moment in self.moments)
        views = (self.steps.unbind(), *(flat.places(moment, start) for moment in self.moments))
        self._places = [dict(zip(STATE, place, strict=True)) for place in zip(*views, strict=True)]
        self._addresses = [place.data_ptr() for places in self._places for place in places.values()]
        self._states: list[dict[str, Any]] = []
        self._tensors: list[th.Tensor] = []
        self._kept: list[Any] = []  # so that no other object can get the same id
        self._ids: list[int] = [0]
        self._step = th._fused_adamw_ if type(optimizer) is th.optim.AdamW else th._fused_adam_

    @staticmethod
    def suits(optimizer: th.optim.Optimizer) -> bool:
        """
        Whether this does exactly what the optimizer's own ``step`` would do.

        :param optimizer: the policy's optimizer
        :return: True for plain Adam and AdamW with one parameter group, without hooks, wrappers or unusual options
        """
        if type(optimizer) not in (th.optim.Adam, th.optim.AdamW) or len(optimizer.param_groups) != 1:
            return False
        group: Mapping[str, Any] = optimizer.param_groups[0]
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *GLOBAL_HOOKS)
        return (
            has_original_step(optimizer)
            and not any(hooks)
            and not any(group.get(option) for option in UNUSUAL)
            and not (group.get("fused") and any(parameter.is_cuda for parameter in group["params"]))
            and bool(group.get("decoupled_weight_decay")) == (type(optimizer) is th.optim.AdamW)
            and all(isinstance(beta, float) for beta in group["betas"])
        )

    def prepare(self) -> bool:
        """
        Move the optimizer's state into the flat moments where it is not there yet: at first, and after it was loaded or moved.

        :return: False if one fused call cannot go on from it: the parameters have been stepped unequally often, or a tensor
            of the state is shared with other code
        """
        return self.is_bound() or (self._adopt() and self.is_bound())

    def is_bound(self) -> bool:
        """
        Whether the optimizer's state lies in the flat moments, and one call can go on from it.

        :return: False if it does not yet, or no longer
        """
        values = [*map(id, chain(self.optimizer.state.values(), chain.from_iterable(map(dict.values, self._states))))]
        return (
            values == self._ids
            and [*map(th.Tensor.data_ptr, self._tensors)] == self._addresses
            and bool((self._steps == self._steps[0]).all())
        )

    def _adopt(self) -> bool:
        """
        Move the optimizer's state into the flat moments.

        :return: False if a tensor of it is shared with other code, and must stay where it is
        """
        moves = []
        for parameter, places in zip(self.parameters, self._places, strict=True):
            state = self.optimizer.state[parameter]
            for name, place in places.items():
                tensor = state.get(name)
                if tensor is not None and tensor.data_ptr() == place.data_ptr():
                    continue
                if tensor is not None and (is_held_elsewhere(tensor) or tensor.dtype != place.dtype):
                    return False
                moves.append((state, name, tensor, place))
        for state, name, tensor, place in moves:
            if tensor is None:
                place.zero_()
            else:
                place.copy_(tensor)
            state[name] = with_own_storage(place)
        self._states = [self.optimizer.state[parameter] for parameter in self.parameters]
        self._tensors = [state[name] for state in self._states for name in STATE]
        self._kept = [*self.optimizer.state.values(), *chain.from_iterable(map(dict.values, self._states))]
        self._ids = [*map(id, self._kept)]
        return True

    @property
    def state(self) -> list[th.Tensor]:
        """What a step changes beside the parameters."""
        return [*self.moments, self.steps if self._count.device.type == "cpu" else self._count]

    def step(self, skipped: th.Tensor | None = None, rate: th.Tensor | None = None) -> None:
        """
        θ ← Adam(θ, gradient), with the hyperparameters of the optimizer's parameter group.

        :param skipped: 1.0 to leave parameters and moments as they are, decided without waiting for the device; None to
            make the step in any case, with parameters on the CPU
        :param rate: the learning rate as a tensor without axes; None for that of the parameter group
        """
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        if skipped is None:
            self._steps += 1
        elif skipped.device.type == "cpu":
            self.steps += 1 - skipped
        else:
            self._count += 1 - skipped
            self._steps += 1  # as if it were not skipped; `finish` sets it right
        self._step(
            [self.vector],
            [self.gradient],
            [self._first],
            [self._second],
            [],
            [self._count],
            lr=float(group["lr"]) if rate is None else rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skipped,
        )

    def start(self) -> None:
        """Read the number of steps from the optimizer's state; call before a series of steps."""
        self._count.copy_(self.steps[0])

    def finish(self) -> None:
        """Show the true number of steps in the optimizer's state; call after a series of steps."""
        if self._count.device.type != "cpu":
            self.steps.fill_(float(self._count))

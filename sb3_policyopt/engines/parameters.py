"""One flat vector of parameters, of which the policy's parameters are views; and Adam on that vector."""

from collections.abc import Sequence

import torch as th
from torch import nn


class FlatParameters:
    """
    One vector θ and one gradient; each parameter and its ``grad`` become views of them.

    The policy's modules keep their parameters (the objects stay the same), so that forward passes, ``state_dict`` and
    optimizers see every change of the vector at once, and none is ever copied.

    :param parameters: what the vector holds, in this order
    :raises ValueError: if they do not share one floating dtype and one device
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        kinds = {(parameter.dtype, parameter.device) for parameter in self.parameters}
        if len(kinds) != 1:
            raise ValueError(
                "The policy's trainable parameters must share one dtype and one device, but they have "
                f"{sorted(f'{dtype} on {device}' for dtype, device in kinds)}; "
                "convert the policy with policy.to(...), or freeze some with requires_grad_(False)"
            )
        sizes = [parameter.numel() for parameter in self.parameters]
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self.vector = nn.utils.parameters_to_vector(self.parameters).detach().clone()
        self.gradient = th.zeros_like(self.vector)
        for parameter, view, _ in self._views():
            parameter.data = view

    def _views(self) -> list[tuple[nn.Parameter, th.Tensor, th.Tensor]]:
        """
        The places of the parameters.

        :return: for each parameter itself, its view of the vector and its view of the gradient
        """
        views = []
        for parameter, start in zip(self.parameters, self.offsets, strict=False):
            place = slice(start, start + parameter.numel())
            views.append((parameter, self.vector[place].view(parameter.shape), self.gradient[place].view(parameter.shape)))
        return views

    def start_of(self, parameter: th.Tensor) -> int:
        """
        Where a parameter's entries begin in the vector.

        :param parameter: one of them
        :return: its offset
        """
        return next(start for mine, start in zip(self.parameters, self.offsets, strict=False) if mine is parameter)

    def bind_gradients(self, first: int = 0) -> None:
        """
        Make every ``grad`` a view of the gradient; somebody may have set it to None.

        :param first: parameters before this one get no gradient at all, which keeps optimizers off them
        """
        for i, (parameter, _, view) in enumerate(self._views()):
            if i < first:
                parameter.grad = None
            elif parameter.grad is None or parameter.grad.data_ptr() != view.data_ptr():
                parameter.grad = view

    def is_bound(self) -> bool:
        """
        Whether the parameters are still views of the vector.

        :return: False once one was given other storage, for example by ``policy.to(device)``
        """
        start, size = self.vector.data_ptr(), self.vector.element_size()
        return all(
            parameter.data_ptr() == start + offset * size
            for parameter, offset in zip(self.parameters, self.offsets, strict=False)
        )


class FlatAdam:
    """
    ``torch.optim.Adam`` on a stretch of the flat vector: one fused call instead of a dozen per parameter.

    The moments are flat too, and the optimizer's own state holds views of them, so that ``optimizer.state_dict()`` and
    whoever steps the optimizer later sees what stock Adam would show.

    :param optimizer: the policy's optimizer, for which :meth:`suits` is True
    :param flat: the parameters
    :param start: first parameter (its number, not its offset) that this steps
    :param stop: the parameter after the last one
    """

    def __init__(self, optimizer: th.optim.Optimizer, flat: FlatParameters, start: int, stop: int) -> None:
        self.optimizer = optimizer
        self.parameters = flat.parameters[start:stop]
        place = slice(flat.offsets[start], flat.offsets[stop])
        self.vector, self.gradient = flat.vector[place], flat.gradient[place]
        self.offsets = [offset - place.start for offset in flat.offsets[start : stop + 1]]
        self.first_moment, self.second_moment = th.zeros_like(self.vector), th.zeros_like(self.vector)
        self.steps = th.zeros(len(self.parameters))  # on the CPU, where stock Adam keeps them
        self._count = self.steps[:1].to(self.vector.device)[0]  # the same memory, if the parameters are on the CPU too
        self._count_on_cpu = self.steps[:1].numpy()

    @staticmethod
    def suits(optimizer: th.optim.Optimizer) -> bool:
        """
        Whether this does exactly what the optimizer's own ``step`` would do.

        :param optimizer: the policy's optimizer
        :return: True for plain Adam with one parameter group, without hooks, wrappers or unusual options
        """
        if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1 or "step" in vars(optimizer):
            return False
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        unusual = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
        return not any(hooks) and not any(optimizer.param_groups[0].get(option) for option in unusual)

    def _adopt(self) -> None:
        """Take over the optimizer's state where it is not ours yet: at first, and after somebody loaded another."""
        for i, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter]
            place = slice(self.offsets[i], self.offsets[i + 1])
            ours = {
                "step": self.steps[i],
                "exp_avg": self.first_moment[place].view(parameter.shape),
                "exp_avg_sq": self.second_moment[place].view(parameter.shape),
            }
            for name, mine in ours.items():
                theirs = state.get(name)
                if theirs is None:
                    mine.zero_()
                elif theirs.data_ptr() == mine.data_ptr():
                    continue
                else:
                    mine.copy_(theirs)
                state[name] = mine

    def prepare(self) -> bool:
        """
        Take over the optimizer's state; call before a series of steps.

        :return: False if the parameters have been stepped unequally often, which one fused call cannot continue
        """
        self._adopt()
        self._count.copy_(self.steps[0])
        return bool((self.steps == self.steps[0]).all())

    def finish(self) -> None:
        """Show the number of steps in the optimizer's state; call after a series of steps."""
        self.steps.fill_(float(self._count))

    def step(self, skipped: th.Tensor | None = None) -> None:
        """
        θ ← Adam(θ, gradient), with the hyperparameters of the optimizer's parameter group.

        :param skipped: 1.0 to leave parameters and moments as they are, decided without waiting for the device; None to
            make the step in any case, with parameters on the CPU
        """
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        if skipped is None:
            self._count_on_cpu += 1
        else:
            self._count += 1 - skipped
        th._fused_adam_(
            [self.vector],
            [self.gradient],
            [self.first_moment],
            [self.second_moment],
            [],
            [self._count],
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skipped,
        )

"""The torch distributions that SB3's are made of: a family for policies of whose distribution nothing else is known."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import kl_divergence


class TorchFamily:
    """
    KL and Fisher metric of any distribution whose parts torch knows, as functions of the parts' parameters.

    :param parts: independent torch distributions, see :func:`torch_distributions`
    """

    def __init__(self, parts: list[TorchDistribution]) -> None:
        self.kinds: list[tuple[Callable[..., TorchDistribution], list[str]]] = [
            (type(part), parameter_names(part)) for part in parts
        ]

    @staticmethod
    def parameters(parts: list[TorchDistribution]) -> tuple[th.Tensor, ...]:
        """
        What the parts are made of.

        :param parts: independent torch distributions
        :return: the parameters of the first part, of the second, …, with their graph
        """
        return tuple(getattr(part, name) for part in parts for name in parameter_names(part))

    def distributions(self, parameters: tuple[th.Tensor, ...]) -> list[TorchDistribution]:
        """
        The parts with other parameters.

        :param parameters: as of :meth:`parameters`
        :return: torch distributions
        """
        rest = iter(parameters)
        return [kind(**{name: next(rest) for name in names}) for kind, names in self.kinds]

    def kl(self, old: tuple[th.Tensor, ...], new: tuple[th.Tensor, ...]) -> th.Tensor:
        """
        S2: KL(old‖new) of the joint action in nats.

        :param old: parameters for a batch of states
        :param new: others for the same states
        :return: shape (batch,)
        """
        return joint_kl(self.distributions(old), self.distributions(new))

    def metric_at(self, parameters: tuple[th.Tensor, ...]) -> Callable[[tuple[th.Tensor, ...]], tuple[th.Tensor, ...]]:
        """
        T5: u ↦ M u. M is the second derivative of the KL with respect to the new parameters, at the old ones (T4).

        :param parameters: for a batch of states
        :return: a function of a direction with the parameters' shapes
        """
        old = tuple(parameter.detach() for parameter in parameters)
        new = tuple(parameter.detach().requires_grad_() for parameter in parameters)
        with th.enable_grad():
            slopes = th.autograd.grad(self.kl(old, new).sum(), new, create_graph=True, materialize_grads=True)

        def product(tangent: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
            along = [(slope, part) for slope, part in zip(slopes, tangent, strict=True) if slope.requires_grad]
            outputs, directions = [slope for slope, _ in along], [part for _, part in along]
            return th.autograd.grad(outputs, new, directions, retain_graph=True, materialize_grads=True)

        return product


def torch_distributions(distribution: Distribution) -> list[TorchDistribution]:
    """
    What an SB3 distribution is made of; a squashed one has the KL of what it squashes, as tanh is a bijection.

    :param distribution: SB3's
    :return: independent torch distributions
    """
    several: list[TorchDistribution] = getattr(distribution, "distributions", [])  # of sb3-contrib's masked choices
    inner = several or distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


def parameter_names(distribution: TorchDistribution) -> list[str]:
    """
    The arguments that a distribution is made from.

    :param distribution: torch's, of a family that is made from its constrained arguments
    :return: their names; "logits" where it could be made from "probs" too
    """
    return [
        name for name in distribution.arg_constraints if not (name == "probs" and "logits" in distribution.arg_constraints)
    ]


def joint_kl(old: list[TorchDistribution], new: list[TorchDistribution]) -> th.Tensor:
    """
    S2: KL(old‖new) of the whole action, summed over its independent dimensions.

    :param old: independent parts, batch shape (batch,) or (batch, n)
    :param new: the same for other parameters
    :return: shape (batch,)
    """
    parts = [kl_divergence(p, q) for p, q in zip(old, new, strict=True)]
    return th.stack([part.flatten(1).sum(1) if part.dim() > 1 else part for part in parts]).sum(0)


@contextmanager
def unvalidated() -> Iterator[None]:
    """Torch distributions without argument checks, each of which would wait for the device; our own guards name the cause."""
    before = TorchDistribution._validate_args
    TorchDistribution.set_default_validate_args(False)
    try:
        yield
    finally:
        TorchDistribution.set_default_validate_args(before)

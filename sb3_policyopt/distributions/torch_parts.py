"""The torch distributions that SB3's are made of: a family for policies of whose distribution nothing else is known."""

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Independent, TransformedDistribution, kl_divergence
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
    Transform,
)


class TorchFamily:
    """
    KL and Fisher metric of any distribution whose parts torch knows, as functions of the parts' parameters.

    :param parts: independent torch distributions, see :func:`torch_distributions`
    :raises ValueError: if one of them cannot be made again from its parameters
    """

    def __init__(self, parts: list[TorchDistribution]) -> None:
        self.kinds: list[tuple[Callable[..., TorchDistribution], list[str]]] = [
            (type(part), parameter_names(part)) for part in parts
        ]
        for part in parts:
            check_rebuilt(part)

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
        :raises ValueError: if torch's KL divergence does not depend on the parameters
        """
        old = tuple(parameter.detach() for parameter in parameters)
        new = tuple(parameter.detach().requires_grad_() for parameter in parameters)
        with th.enable_grad():
            kl = self.kl(old, new).sum()
            if not kl.requires_grad:  # torch takes transforms that are equal for transforms that do not change
                kinds = ", ".join(kind.__name__ for kind, _ in self.kinds)  # type: ignore[attr-defined]
                raise ValueError(f"torch does not know the KL divergence of {kinds}; take another distribution, or PPO")
            slopes = th.autograd.grad(kl, new, create_graph=True, materialize_grads=True)

        def product(tangent: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
            along = [(slope, part) for slope, part in zip(slopes, tangent, strict=True) if slope.requires_grad]
            outputs, directions = [slope for slope, _ in along], [part for _, part in along]
            moved = th.autograd.grad(outputs, new, directions, retain_graph=True, materialize_grads=True)
            return tuple([part.detach() for part in moved])

        return product


def torch_distributions(distribution: Distribution) -> list[TorchDistribution]:
    """
    What an SB3 distribution is made of; a squashed one has the KL of what it squashes, as a bijection changes none.

    :param distribution: SB3's
    :return: independent torch distributions
    :raises ValueError: if it holds none
    """
    inner: Any = getattr(distribution, "distribution", None)  # sb3-contrib's masked choices need not have it
    if inner is None:
        inner = getattr(distribution, "distributions", None)
    parts = list(inner) if isinstance(inner, (list, tuple)) else [inner]
    if not parts or not all(isinstance(part, TorchDistribution) for part in parts):
        raise ValueError(
            f"the KL divergence of {type(distribution).__name__} is not known: put a torch distribution, or a list of "
            "independent ones, into its attribute `distribution`"
        )
    return [unwrapped(part) for part in parts]


def unwrapped(distribution: TorchDistribution) -> TorchDistribution:
    """
    A distribution with the same KL divergences, summed over more axes or before a bijection.

    :param distribution: torch's
    :return: without ``Independent`` around it, and without transforms that are the same bijection for every policy
    """
    while type(distribution) is Independent or (
        type(distribution) is TransformedDistribution and all(is_fixed_bijection(part) for part in distribution.transforms)
    ):
        distribution = distribution.base_dist
    return distribution


def is_fixed_bijection(transform: Transform) -> bool:
    """
    Whether a transform is one-to-one and does not depend on the policy's parameters.

    :param transform: torch's, computed with a graph
    :return: False also for classes that are not known here
    """
    if type(transform) is ComposeTransform:
        return all(is_fixed_bijection(part) for part in transform.parts)
    if type(transform) is AffineTransform:
        return not any(isinstance(value, th.Tensor) and value.requires_grad for value in (transform.loc, transform.scale))
    return type(transform) in (TanhTransform, SigmoidTransform, ExpTransform, SoftplusTransform)


def check_rebuilt(distribution: TorchDistribution) -> None:
    """
    Look whether a distribution is made from the arguments that its class names.

    :param distribution: torch's
    :raises ValueError: if it is not
    """
    names = parameter_names(distribution)
    try:
        type(distribution)(**{name: getattr(distribution, name) for name in names})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(distribution).__name__} cannot be made again from its parameters ({', '.join(names) or 'it names none'}), "
            "which its KL divergence needs; take another distribution, or PPO"
        ) from error


def parameter_names(distribution: TorchDistribution) -> list[str]:
    """
    The arguments that a distribution is made from.

    :param distribution: torch's, of a family that is made from its constrained arguments
    :return: their names; "logits" where it could be made from "probs" too, and "scale_tril" of a multivariate normal
    """
    names = list(distribution.arg_constraints)
    for one, others in (("logits", ("probs",)), ("scale_tril", ("covariance_matrix", "precision_matrix"))):
        if one in names:
            names = [name for name in names if name not in others]
    return names


def joint_kl(old: list[TorchDistribution], new: list[TorchDistribution]) -> th.Tensor:
    """
    S2: KL(old‖new) of the whole action, summed over its independent dimensions.

    :param old: independent parts, batch shape (batch,) or (batch, n)
    :param new: the same for other parameters
    :return: shape (batch,)
    """
    parts = [kl_divergence(p, q) for p, q in zip(old, new, strict=True)]
    return th.stack([part.flatten(1).sum(1) if part.dim() > 1 else part for part in parts]).sum(0)

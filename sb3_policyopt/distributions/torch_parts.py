"""The torch distributions that SB3's are made of, and their KL."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import kl_divergence


def torch_distributions(distribution: Distribution) -> list[TorchDistribution]:
    """
    What an SB3 distribution is made of; a squashed one has the KL of what it squashes, as tanh is a bijection.

    :param distribution: SB3's
    :return: independent torch distributions
    """
    inner = distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


def detached(distribution: TorchDistribution) -> TorchDistribution:
    """
    The same distribution as a constant.

    :param distribution: torch's, of a family that is made from its constrained arguments
    :return: one without a graph
    """
    return type(distribution)(**{name: getattr(distribution, name).detach() for name in parameter_names(distribution)})


def parameter_names(distribution: TorchDistribution) -> list[str]:
    """
    The arguments that a distribution is made from.

    :param distribution: torch's
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

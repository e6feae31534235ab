"""Which metrics of the updates the page shows, for each algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sb3_policyopt import registry
from sb3_policyopt.plots.outcomes import SUCCESS


@dataclass(frozen=True)
class Panel:
    """
    One small diagram of a metric over environment steps.

    :param title: what is drawn, with its unit
    :param column: metric in the log
    :param companions: further metrics on the same axes: column, name in the legend, line style
    :param name: of the metric itself, where the panel has companions
    :param scale: factor on the values (-1 turns SB3's ``entropy_loss`` into the entropy)
    :param log: logarithmic axis
    :param limits: of the vertical axis, where the metric has a natural range
    """

    title: str
    column: str
    companions: tuple[tuple[str, str, str], ...] = ()
    name: str = ""
    scale: float = 1.0
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)


EXPLAINED_VARIANCE = Panel("Critic: explained variance (1 is perfect)", "train/explained_variance", limits=(-1.05, 1.05))
SMALLEST_STD = (("train/std_min", "smallest", "--"),)
STD = Panel("Policy: standard deviation of the actions", "train/std", SMALLEST_STD, "mean", limits=(0, None))

PPO_PANELS = (
    Panel("KL per update, estimated (nats)", "train/approx_kl", (("train/target_kl", "target", ":"),), "KL", limits=(0, None)),
    Panel("Clipped samples (fraction)", "train/clip_fraction", limits=(0, None)),
    Panel("Policy: entropy (nats)", "train/entropy_loss", scale=-1.0),
    EXPLAINED_VARIANCE,
    Panel("Largest probability ratio", "train/ratio_max", log=True),
    Panel("Effective sample size (fraction)", "train/effective_sample_size", limits=(0, 1.05)),
    Panel("Gradient norm before clipping", "train/grad_norm", log=True),
    STD,
)

KL_COMPANIONS = (("train/kl_predicted", "predicted", "--"), ("train/target_kl", "bound δ", ":"))
TRPO_PANELS = (
    Panel("KL of the step taken (nats)", "train/kl_divergence_loss", KL_COMPANIONS, "true", limits=(0, None)),
    Panel("Line search: accepted fraction of the step", "train/step_fraction", limits=(-0.05, 1.05)),
    Panel("Line search: outcomes (% of updates)", SUCCESS),
    Panel("Surrogate improvement", "train/surrogate_improvement"),
    Panel("Conjugate gradient: iterations", "train/cg_iterations", limits=(0, None)),
    Panel("Conjugate gradient: relative residual", "train/cg_residual", log=True),
    EXPLAINED_VARIANCE,
    STD,
)


def panels_of(algo: str) -> Sequence[Panel]:
    """
    Look up the panels of an algorithm.

    :param algo: name of a registered algorithm
    :return: its panels, in their order on the page
    """
    return cast(Sequence[Panel], registry.resolve(registry.find(algo).panels))

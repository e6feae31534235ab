"""P1-P5: PPO's clipped objective with entropy bonus and value loss, as a loss in torch and as slopes."""

from dataclasses import dataclass
from typing import cast

import torch as th

from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import ArrayT, namespace
from sb3_policyopt.maths.losses import ValueClipping
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.objectives.outputs import Outputs, Slopes
from sb3_policyopt.rollout.batch import Batch


@dataclass(frozen=True)
class PPOCoefficients:
    """
    The numbers of P5 for one update.

    :param clip_range: ε of P2
    :param clip_range_vf: bound on the change of the value, None for none
    :param value_clipping: what the bound does, see :func:`sb3_policyopt.maths.losses.value_loss`
    :param ent_coef: c₁
    :param vf_coef: c₂
    """

    clip_range: float
    clip_range_vf: float | None
    value_clipping: ValueClipping
    ent_coef: float
    vf_coef: float

    @property
    def counts_entropy(self) -> bool:
        """Whether c₁ is not 0. Where a graph is given it as a tensor, it is not."""
        return isinstance(self.ent_coef, th.Tensor) or self.ent_coef != 0


def clipped_loss(
    values: th.Tensor, log_prob: th.Tensor, entropy: th.Tensor | None, batch: Batch[th.Tensor], coefficients: PPOCoefficients
) -> tuple[th.Tensor, Terms]:
    """
    P5: −L of a minibatch.

    :param values: V(s), shape (batch,)
    :param log_prob: ln π_θ(a|s), shape (batch,)
    :param entropy: H, shape (batch,); None if it has no closed form, and −ln π at the sampled actions then estimates it
    :param batch: transitions, advantages already normalised
    :param coefficients: ε, c₁, c₂ and the value clipping
    :return: the scalar to minimise, and what to log
    """
    c = coefficients
    log_ratio = losses.log_ratio(log_prob, batch.old_log_prob)
    ratio = th.exp(log_ratio)
    policy_objective = losses.clipped_surrogate(ratio, batch.advantages, c.clip_range)
    mean_entropy = (-log_prob if entropy is None else entropy).mean()
    value_loss = losses.value_loss(values, batch.returns, batch.old_values, c.clip_range_vf, c.value_clipping)
    loss = cast(th.Tensor, losses.combined_loss(policy_objective, mean_entropy, value_loss, c.ent_coef, c.vf_coef))
    with th.no_grad():
        terms: Terms = {
            "policy_gradient_loss": -policy_objective,
            "value_loss": cast(th.Tensor, value_loss).detach(),
            "entropy_loss": -mean_entropy,
            **losses.ratio_diagnostics(log_ratio, ratio, c.clip_range),
        }
    return loss, terms


def clipped_slopes(
    outputs: Outputs[ArrayT], batch: Batch[ArrayT], coefficients: PPOCoefficients
) -> tuple[Slopes[ArrayT], Terms]:
    """
    P5: ∂(−L)/∂outputs of :func:`clipped_loss`.

    :param outputs: of actor and critic
    :param batch: transitions, advantages already normalised; actions of shape (batch, n_actions)
    :param coefficients: ε, c₁, c₂ and the value clipping
    :return: the slopes, and the loss with what else to log
    """
    c, values = coefficients, outputs.values
    evaluation = outputs.family.evaluate(outputs.parameters, batch.actions, entropy_gradient=c.counts_entropy)
    log_ratio = losses.log_ratio(evaluation.log_prob, batch.old_log_prob)
    ratio = namespace(log_ratio).exp(log_ratio)

    policy_objective, policy_slope = losses.clipped_surrogate_and_slope(ratio, batch.advantages, c.clip_range)
    descent = -policy_slope[:, None]
    slopes = tuple([descent * score for score in evaluation.score])
    if c.counts_entropy:
        for slope, entropy_gradient in zip(slopes, evaluation.entropy_gradient, strict=True):
            slope -= (c.ent_coef / len(values)) * entropy_gradient
    value_loss, value_slope = losses.value_loss_and_slope(
        values, batch.returns, batch.old_values, c.clip_range_vf, c.value_clipping
    )
    return Slopes(slopes, c.vf_coef * value_slope), {
        "loss": losses.combined_loss(policy_objective, evaluation.mean_entropy, value_loss, c.ent_coef, c.vf_coef),
        "policy_gradient_loss": -policy_objective,
        "value_loss": value_loss,
        "entropy_loss": -evaluation.mean_entropy,
        **losses.ratio_diagnostics(log_ratio, ratio, c.clip_range),
    }

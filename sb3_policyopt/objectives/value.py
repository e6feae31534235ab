"""T10: the critic's loss, as a loss in torch and as a slope."""

from typing import cast

import torch as th

from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import ArrayT
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.objectives.outputs import Outputs, Slopes
from sb3_policyopt.rollout.batch import Batch


def critic_loss(values: th.Tensor, batch: Batch[th.Tensor]) -> tuple[th.Tensor, Terms]:
    """
    T10: L_VF of a minibatch.

    :param values: V(s), shape (batch,)
    :param batch: transitions
    :return: the scalar to minimise, and what to log
    """
    loss = cast(th.Tensor, losses.value_loss(values, batch.returns))
    return loss, {"value_loss": loss.detach()}


def critic_slopes(outputs: Outputs[ArrayT], batch: Batch[ArrayT]) -> tuple[Slopes[ArrayT], Terms]:
    """
    T10: ∂L_VF/∂V.

    :param outputs: of the critic
    :param batch: transitions
    :return: the slope, and what to log
    """
    value_loss, slope = losses.value_loss_and_slope(outputs.values, batch.returns)
    return Slopes(values=slope), {"value_loss": value_loss}

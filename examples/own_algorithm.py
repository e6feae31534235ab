"""
PPO with a KL penalty in place of the clip (Schulman et al. 2017, section 4): L = E[r A] − β KL + c₁ H − c₂ E[(V − G)²].
The KL is estimated by E[r − 1 − ln r]; β is doubled or halved so that it stays near its target.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_policyopt import PPO
from sb3_policyopt.objectives import PPOCoefficients, clipped_loss, clipped_slopes, closed_form


@dataclass(frozen=True)
class Coefficients(PPOCoefficients):
    """PPO's numbers, and β."""

    beta: float


def penalised_slopes(outputs, batch, c):
    """∂(−L)/∂outputs: without a clip ∂/∂ln π of E[r − 1 − ln r] is (r − 1)/n."""
    slopes, terms = clipped_slopes(outputs, batch, c)
    log_prob, score = outputs.family.log_prob_and_score(outputs.parameters, batch.actions)
    penalty = c.beta * (np.exp(log_prob - batch.old_log_prob) - 1) / batch.size
    for slope, part in zip(slopes.parameters, score, strict=True):
        slope += penalty[:, None] * part
    return slopes, {**terms, "loss": terms["loss"] + c.beta * terms["approx_kl"]}


class PenaltyPPO(PPO):
    """PPO with an adaptive KL penalty; its arguments are those of PPO, ``desired_kl`` is the KL of an update in nats."""

    def __init__(self, policy, env, *, beta=1.0, desired_kl=0.01, clip_range=np.inf, **options):
        super().__init__(policy, env, clip_range=clip_range, **options)
        self.beta, self.desired_kl = beta, desired_kl

    def current_coefficients(self):
        """PPO's, and β."""
        return Coefficients(**vars(super().current_coefficients()), beta=self.beta)

    @closed_form(penalised_slopes)
    def loss(self, batch, coefficients):
        """−L in torch, for policies without a closed form."""
        values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
        loss, terms = clipped_loss(values.flatten(), log_prob, entropy, batch, coefficients)
        return loss + coefficients.beta * (th.exp(d := log_prob - batch.old_log_prob) - 1 - d).mean(), terms

    def train(self):
        """PPO's update, then β."""
        super().train()
        kl = self.logger.name_to_value["train/approx_kl"]
        self.beta *= 2.0 if kl > 1.5 * self.desired_kl else 0.5 if kl < self.desired_kl / 1.5 else 1.0


if __name__ == "__main__":
    model = PenaltyPPO("MlpPolicy", "CartPole-v1").learn(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
    print(f"served by {model.engine_in_use.name}, β = {model.beta:g}")

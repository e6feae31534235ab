"""Independent bits."""

from collections.abc import Callable
from dataclasses import dataclass

from sb3_policyopt.distributions.family import ActionDistribution
from sb3_policyopt.maths.arrays import ArrayT, namespace, row_sums, sigmoid, softplus


@dataclass(frozen=True)
class Bernoulli(ActionDistribution):
    """
    Independent bits: parameters (logits (batch, n),).

    :param output_dim: number n of bits
    """

    output_dim: int

    def noise(self, uniform: Callable[[], ArrayT], normal: Callable[[], ArrayT]) -> ArrayT:
        """Standard logistic: ln u − ln(1 − u)."""
        u = uniform()
        xp = namespace(u)
        return xp.log(u) - xp.log1p(-u)

    def sample(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> ArrayT:
        """1 where logit + logistic noise > 0, which has the probability σ(logit)."""
        logits = parameters[0]
        return (logits + noise > 0) * namespace(logits).ones_like(logits)

    def log_prob(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> ArrayT:
        """Σ a l − ln(1 + e^l)."""
        (logits,) = parameters
        return row_sums(actions * logits - softplus(logits))

    def log_prob_and_score(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """The score is a − σ(l)."""
        return self.log_prob(parameters, actions), (actions - sigmoid(parameters[0]),)

    def entropy(self, parameters: tuple[ArrayT, ...]) -> ArrayT:
        """Σ ln(1 + e^l) − σ(l) l."""
        (logits,) = parameters
        return row_sums(softplus(logits) - sigmoid(logits) * logits)

    def entropy_gradient(self, parameters: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """−l σ(l) (1 − σ(l))."""
        (logits,) = parameters
        return (-logits * sigmoid(logits) * sigmoid(-logits),)

    def kl(self, old: tuple[ArrayT, ...], new: tuple[ArrayT, ...]) -> ArrayT:
        """Σ σ(l) (l − l') − ln(1 + e^l) + ln(1 + e^l')."""
        (logits,), (new_logits,) = old, new
        return row_sums(sigmoid(logits) * (logits - new_logits) - softplus(logits) + softplus(new_logits))

    def fisher_metric(self, parameters: tuple[ArrayT, ...], tangent: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """M = diag(σ(l) (1 − σ(l)))."""
        (logits,) = parameters
        return (sigmoid(logits) * sigmoid(-logits) * tangent[0],)

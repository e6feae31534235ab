"""
T3-T5: three definitions of the Fisher matrix, dense and in float64, for networks with separate and shared features.

θ holds everything, the critic's parameters too, so that the matrix must vanish on what only the critic uses.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th
from distribution_cases import CASES, Case, expectation
from torch.func import jacrev

from sb3_policyopt.maths import losses

pytestmark = pytest.mark.fast

BATCH, N_OBS, N_HIDDEN = 5, 3, 4

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
extractors = pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])


def jacobian(function: Callable[[th.Tensor], th.Tensor], theta: th.Tensor) -> th.Tensor:
    """First derivatives of every output."""
    return jacrev(function)(theta)


def hessian(function: Callable[[th.Tensor], th.Tensor], theta: th.Tensor) -> th.Tensor:
    """Second derivatives of every output, reverse over reverse (``torch.func.hessian`` takes seconds to load)."""
    return jacrev(jacrev(function))(theta)


class Network:
    """
    A tanh network from observations to a distribution's parameters (and a value), as a function of one vector θ.

    :param shared: whether actor and critic use the same hidden layer
    """

    def __init__(self, case: Case, shared: bool, seed: int = 0) -> None:
        n_out = case.family.output_dim
        shapes = {"hidden": (N_OBS, N_HIDDEN), "bias": (N_HIDDEN,), "actor": (N_HIDDEN, n_out), "critic": (N_HIDDEN, 1)}
        if not shared:
            shapes["critic_hidden"] = (N_OBS, N_HIDDEN)
        if case.is_gaussian:
            shapes["log_std"] = (n_out,)
        self.shapes, self.shared, self.case = shapes, shared, case
        generator = th.Generator().manual_seed(seed)
        self.observations = th.randn(BATCH, N_OBS, generator=generator, dtype=th.float64)
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self.theta = 0.7 * th.randn(sum(sizes), generator=generator, dtype=th.float64)
        ends = np.cumsum(sizes)
        self.places = {name: slice(end - n, end) for name, n, end in zip(shapes, sizes, ends, strict=True)}

    def weights(self, theta: th.Tensor) -> dict[str, th.Tensor]:
        return {name: theta[place].reshape(self.shapes[name]) for name, place in self.places.items()}

    def parameters(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        """The parameters of π_θ(·|s) for every observation."""
        w = self.weights(theta)
        output = th.tanh(self.observations @ w["hidden"] + w["bias"]) @ w["actor"]
        return (output, w["log_std"]) if self.case.is_gaussian else (output,)

    def value(self, theta: th.Tensor) -> th.Tensor:
        w = self.weights(theta)
        features = th.tanh(self.observations @ (w["hidden"] if self.shared else w["critic_hidden"]))
        return (features @ w["critic"]).flatten()

    def only_the_critics(self) -> th.Tensor:
        mask = th.zeros_like(self.theta, dtype=th.bool)
        for name in ("critic", "critic_hidden"):
            if name in self.places:
                mask[self.places[name]] = True
        return mask


def hessian_of_the_kl(network: Network) -> th.Tensor:
    """T4: the second derivative of E_s[D(π_old‖π_θ)] at θ = θ_old."""
    old = network.parameters(network.theta)
    return hessian(lambda theta: network.case.family.kl(old, network.parameters(theta)).mean(), network.theta)


def mean_over_states_and_actions(network: Network, function: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
    return expectation(network.case, network.parameters(network.theta), function).mean(0)


def scores(network: Network, actions: th.Tensor) -> th.Tensor:
    """∇_θ ln π_θ(a|s), shape (batch, n_parameters)."""
    return jacobian(lambda theta: network.case.family.log_prob(network.parameters(theta), actions), network.theta)


def covariance_of_the_score(network: Network) -> th.Tensor:
    """T5: E_s E_a[s sᵀ]."""
    return mean_over_states_and_actions(network, lambda a: th.einsum("bi,bj->bij", *(scores(network, a),) * 2))


def jacobians_around_the_metric(network: Network) -> th.Tensor:
    """T5: E_s[JᵀMJ], J the Jacobian of the distribution's parameters, M their metric."""
    jacobians = jacrev(network.parameters)(network.theta)
    # The log standard deviation has no axis for the batch; every state has the same row of it.
    rows = [j if j.dim() == 3 else j.expand(BATCH, *j.shape) for j in jacobians]
    parameters, total = network.parameters(network.theta), th.zeros(len(network.theta), len(network.theta)).double()
    for i in range(len(network.theta)):
        metric_column = network.case.family.fisher_metric(parameters, tuple(j[:, :, i] for j in rows))
        total[:, i] = sum(th.einsum("bni,bn->i", j, m.expand(BATCH, -1)) for j, m in zip(rows, metric_column, strict=True))
    return total / BATCH


@cases
@extractors
def test_T5_three_definitions_of_the_fisher_matrix_agree(case: Case, shared: bool) -> None:
    network = Network(case, shared)
    by_hessian = hessian_of_the_kl(network)
    scale = by_hessian.abs().max().item()
    assert scale > 0.01
    for other in (covariance_of_the_score(network), jacobians_around_the_metric(network)):
        np.testing.assert_allclose(other, by_hessian, rtol=0, atol=1e-13 * scale + 1e-14)


@cases
@extractors
def test_T4_the_fisher_matrix_is_positive_semi_definite_and_plus_the_covariance(case: Case, shared: bool) -> None:
    """
    The sign slip of some texts: E[∇² ln π] = −F, so F = −E[∇² ln π] = +E[s sᵀ]. With a minus before E[s sᵀ] the
    quadratic model of the KL would be negative, and T6 would have no maximum.
    """
    network = Network(case, shared)
    fisher = hessian_of_the_kl(network)
    np.testing.assert_allclose(fisher, fisher.T, atol=1e-14)
    eigenvalues = th.linalg.eigvalsh(fisher)
    assert eigenvalues.min() >= -1e-13 * eigenvalues.max()
    assert eigenvalues.max() > 0.01

    mean_hessian = mean_over_states_and_actions(
        network, lambda a: hessian(lambda theta: network.case.family.log_prob(network.parameters(theta), a), network.theta)
    )
    np.testing.assert_allclose(mean_hessian, -fisher, rtol=0, atol=1e-12)


@cases
@extractors
def test_T4_the_score_has_mean_zero(case: Case, shared: bool) -> None:
    network = Network(case, shared)
    mean = mean_over_states_and_actions(network, lambda a: scores(network, a))
    np.testing.assert_allclose(mean, np.zeros(len(network.theta)), atol=1e-14)


@cases
@extractors
def test_T4_kl_has_zero_value_and_gradient_at_the_old_parameters_and_half_the_fisher_form_beyond(
    case: Case, shared: bool
) -> None:
    network = Network(case, shared)
    old, fisher = network.parameters(network.theta), hessian_of_the_kl(network)

    def kl(theta: th.Tensor) -> th.Tensor:
        return case.family.kl(old, network.parameters(theta)).mean()

    assert abs(kl(network.theta).item()) < 1e-15
    np.testing.assert_allclose(jacobian(kl, network.theta), np.zeros(len(network.theta)), atol=1e-15)
    direction = th.randn(len(network.theta), generator=th.Generator().manual_seed(1), dtype=th.float64)
    errors = [
        abs(kl(network.theta + t * direction).item() - 0.5 * t**2 * (direction @ fisher @ direction).item())
        for t in (1e-2, 5e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.3)  # the remainder is of third order: halving t divides it by 8


@cases
@extractors
def test_T3_the_surrogate_to_first_order(case: Case, shared: bool) -> None:
    network = Network(case, shared)
    actions = case.actions_and_weights(network.parameters(network.theta))[1][0]
    old_log_prob = case.family.log_prob(network.parameters(network.theta), actions)
    generator = th.Generator().manual_seed(2)
    advantages = th.randn(BATCH, generator=generator, dtype=th.float64)

    def surrogate(theta: th.Tensor) -> th.Tensor:
        log_prob = case.family.log_prob(network.parameters(theta), actions)
        value = losses.surrogate(losses.probability_ratio(log_prob, old_log_prob), advantages)
        assert isinstance(value, th.Tensor)
        return value

    # S1: the gradient of the surrogate at θ_old is the policy gradient E[A ∇ln π].
    gradient = jacobian(surrogate, network.theta)
    np.testing.assert_allclose(gradient, (advantages[:, None] * scores(network, actions)).mean(0), atol=1e-14)
    direction = th.randn(len(network.theta), generator=generator, dtype=th.float64)
    errors = [
        abs((surrogate(network.theta + t * direction) - surrogate(network.theta) - t * (gradient @ direction)).item())
        for t in (1e-3, 5e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # the remainder is of second order


@cases
@extractors
def test_T5_the_policy_does_not_know_the_parameters_that_only_the_critic_uses(case: Case, shared: bool) -> None:
    network = Network(case, shared)
    mask, fisher = network.only_the_critics(), hessian_of_the_kl(network)
    assert (fisher[mask] == 0).all() and (fisher[:, mask] == 0).all()
    used_by_the_critic = jacobian(network.value, network.theta).abs().sum(0) > 0
    assert used_by_the_critic[mask].all()
    in_both = used_by_the_critic & (fisher.diagonal() > 0)
    assert in_both.any() == shared

"""Draw the figures of docs/algorithms with the package's own formulas: ``python docs/make_figures.py``."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sb3_policyopt.distributions import DiagonalGaussian
from sb3_policyopt.maths.advantages import gae
from sb3_policyopt.maths.conjugate_gradient import conjugate_gradient
from sb3_policyopt.maths.losses import clipped_surrogate, surrogate
from sb3_policyopt.maths.trust_region import step_scale

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito


def save(figure: "plt.Figure", name: str) -> None:
    """
    Write a figure.

    :param figure: what was drawn
    :param name: of the file, without its ending
    """
    figure.savefig(FOLDER / f"{name}.png", dpi=140, bbox_inches="tight")
    plt.close(figure)


def clipped_objective(clip_range: float = 0.2) -> None:
    """
    T1 and P2 of one sample as functions of the ratio.

    :param clip_range: ε
    """
    ratios = np.linspace(0, 2, 401)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
        one = np.array([advantage])
        plain = [surrogate(np.array([ratio]), one) for ratio in ratios]
        clipped = [clipped_surrogate(np.array([ratio]), one, clip_range) for ratio in ratios]
        axis.plot(ratios, plain, color=GREY, ls="--", label="surrogate $r A$ (T1)")
        axis.plot(ratios, clipped, color=BLUE, lw=2, label=r"clipped, $\epsilon = 0.2$ (P2)")
        axis.axvline(1, color=GREY, lw=0.6)
        axis.axvspan(1 - clip_range, 1 + clip_range, color=BLUE, alpha=0.08, lw=0)
        axis.plot(1, advantage, "o", color=ORANGE, label=r"$\theta_{old}$")
        axis.set(title=f"A = {advantage:+g}", xlabel="ratio $r$", ylabel="objective of the sample")
        axis.legend(frameon=False, loc="best", fontsize=8)
    save(figure, "clipped_objective")


def trust_region(delta: float = 0.02, n: int = 20_000) -> None:
    """
    T2, T6, T8 for a Gaussian with the two parameters μ and ln σ: KL, its ellipse, and two steps of the same KL.

    :param delta: δ in nats
    :param n: number of actions
    """
    family, old = DiagonalGaussian(1), (np.zeros((1, 1)), np.array([np.log(0.2)]))
    actions = np.random.default_rng(0).normal(0.0, 0.2, (n, 1))
    advantages = -((actions[:, 0] - 0.25) ** 2)  # the best action is 0.25
    advantages -= advantages.mean()
    _, score = family.log_prob_and_score((np.zeros((n, 1)), old[1]), actions)
    gradient = np.array([(advantages * part[:, 0]).mean() for part in score])
    columns = [family.fisher_metric(old, (unit[:1, None], unit[1:, None])) for unit in np.eye(2)]
    fisher = np.column_stack([np.concatenate(column).ravel() for column in columns])
    natural = conjugate_gradient(lambda v: fisher @ v, gradient).x

    changes = np.linspace(-0.2, 0.2, 201)
    kl = [[family.kl(old, (np.full((1, 1), mean), old[1] + change))[0] for mean in changes] for change in changes]
    figure, axis = plt.subplots(figsize=(5.2, 4.6))
    axis.contour(changes, changes, kl, levels=[delta], colors=[BLUE], linewidths=2)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    ellipse = np.linalg.solve(np.linalg.cholesky(fisher).T, circle) * np.sqrt(2 * delta)
    axis.plot(*ellipse, color=BLUE, ls=":", label=r"$\frac{1}{2}\Delta^T F \Delta = \delta$ (T4)")
    axis.plot([], [], color=BLUE, lw=2, label=r"KL$(\pi_{old}\|\pi_\theta) = \delta$ (T2)")
    for direction, colour, label in ((gradient, ORANGE, "gradient"), (natural, GREEN, "natural gradient")):
        step = direction * step_scale(direction, fisher @ direction, delta)
        axis.annotate("", step, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        axis.plot([], [], color=colour, lw=2, label=f"{label}: $g^T\\Delta$ = {gradient @ step:.4f}")
    axis.set(xlabel=r"change of $\mu$", ylabel=r"change of $\ln\sigma$", xlim=(-0.1, 0.1), ylim=(-0.2, 0.2))
    axis.locator_params(axis="x", nbins=5)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, "trust_region")


def bias_and_variance(n_steps: int = 12, n_rollouts: int = 4000, gamma: float = 0.99) -> None:
    """
    S4: bias and variance of the advantage of the first step of a chain with noisy rewards and a wrong critic.

    The reward of each step is normal with mean 1 and deviation 1, so that V(s_t) is the discounted number of the steps that
    are left. All actions are alike: the true advantage is 0. The critic says 0.7 V at every state but the first, where it is
    right.

    :param n_steps: length of the chain
    :param n_rollouts: number of sampled episodes
    :param gamma: γ
    """
    true_values = np.array([(1 - gamma ** (n_steps - t)) / (1 - gamma) for t in range(n_steps)])
    critic = np.where(np.arange(n_steps) == 0, true_values, 0.7 * true_values)
    rewards = np.random.default_rng(0).normal(1.0, 1.0, (n_steps, n_rollouts))
    dones = np.zeros_like(rewards)
    dones[-1] = 1.0
    values = np.repeat(critic[:, None], n_rollouts, 1)
    lambdas = np.linspace(0, 1, 21)
    estimates = np.array([gae(rewards, values, np.zeros(n_rollouts), dones, gamma, lam)[0] for lam in lambdas])
    bias, variance = estimates.mean(1) ** 2, estimates.var(1)
    figure, axis = plt.subplots(figsize=(6, 3.6))
    axis.plot(lambdas, bias, color=ORANGE, lw=2, label="squared bias")
    axis.plot(lambdas, variance, color=BLUE, lw=2, label="variance")
    axis.plot(lambdas, bias + variance, color=GREY, ls="--", label="mean squared error")
    axis.set(xlabel=r"$\lambda$", ylabel="of $A_0$, true value 0")
    axis.legend(frameon=False)
    save(figure, "bias_variance")


def residuals(n: int = 40, iterations: int = 40) -> None:
    """
    T7: relative residual of CG for matrices whose eigenvalues differ, and of one with only five.

    :param n: size of the matrices
    :param iterations: most iterations
    """
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    right = rng.normal(size=n)
    spectra = {
        "condition number 10": (np.geomspace(0.1, 1, n), 0.0, BLUE, "-"),
        "condition number 10,000": (np.geomspace(1e-4, 1, n), 0.0, ORANGE, "-"),
        "the same, damping 0.1": (np.geomspace(1e-4, 1, n), 0.1, ORANGE, "--"),
        "five distinct eigenvalues": (np.repeat(np.geomspace(1e-2, 1, 5), n // 5), 0.0, GREEN, "-"),
    }
    figure, axis = plt.subplots(figsize=(6, 3.8))
    for label, (eigenvalues, damping, colour, style) in spectra.items():
        matrix = rotation @ np.diag(eigenvalues) @ rotation.T
        curve = [1.0]
        for k in range(1, iterations + 1):
            found = conjugate_gradient(lambda v, m=matrix: m @ v, right, k, tolerance=1e-12, damping=damping)
            damped = matrix + damping * np.eye(n)
            curve.append(float(np.linalg.norm(right - damped @ found.x) / np.linalg.norm(right)))
        axis.semilogy(curve, color=colour, ls=style, label=label)
    axis.axvline(15, color=GREY, lw=0.8, ls=":")
    axis.text(15.3, 3, "cg_max_steps = 15", fontsize=8, color=GREY)
    axis.set(xlabel="iterations", ylabel=r"$\|g - (F + \lambda I)x\|\,/\,\|g\|$", ylim=(1e-13, 20))
    axis.legend(frameon=False, fontsize=8)
    save(figure, "cg_residuals")


def main() -> None:
    """Draw all of them."""
    FOLDER.mkdir(exist_ok=True)
    clipped_objective()
    trust_region()
    bias_and_variance()
    residuals()


if __name__ == "__main__":
    main()

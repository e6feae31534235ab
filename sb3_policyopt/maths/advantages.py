"""
S3, S4, T10, P4: temporal-difference errors, generalised advantage estimation and the critic's targets.

All arrays have the shape (n_steps, n_envs): time first, as in SB3's rollout buffer. ``dones[t]`` says that an episode
ended with the transition t, by termination or by truncation; a truncated transition carries the value of its final
observation in its reward (r + γ V(final observation)), as SB3's ``collect_rollouts`` puts it there.
"""

from typing import Literal

from sb3_policyopt.maths.arrays import ArrayT, namespace

ValueTarget = Literal["td_lambda", "td_zero", "monte_carlo"]


def discounted_sum(x: ArrayT, decay: ArrayT) -> ArrayT:
    """
    y_t = x_t + decay_t · y_{t+1}, for all t at once, with y = 0 after the last step.

    A parallel scan (Hillis and Steele 1986): after the k-th pass y_t holds the sum over the next 2^k steps, so that
    log2(n_steps) array operations replace n_steps of them.

    :param x: summands, shape (n_steps, n_envs)
    :param decay: factor between a step and the next, shape (n_steps, n_envs); 0 where an episode ends
    :return: the sums, shape (n_steps, n_envs)
    """
    xp = namespace(x)
    n_steps, reach = x.shape[0], 1
    total, factor = x, decay
    while reach < n_steps:
        total = xp.concatenate((total[:-reach] + factor[:-reach] * total[reach:], total[-reach:]))
        factor = xp.concatenate((factor[:-reach] * factor[reach:], 0 * factor[-reach:]))
        reach *= 2
    return total


def next_values(values: ArrayT, last_values: ArrayT) -> ArrayT:
    """
    V(s_{t+1}) for every step of a rollout.

    :param values: V(s_t), shape (n_steps, n_envs)
    :param last_values: V of the observation after the last step, shape (n_envs,)
    :return: shape (n_steps, n_envs)
    """
    return namespace(values).concatenate((values[1:], last_values[None]))


def td_errors(rewards: ArrayT, values: ArrayT, last_values: ArrayT, dones: ArrayT, gamma: float) -> ArrayT:
    """
    S3: δ_t = r_t + γ V(s_{t+1}) − V(s_t), where V(s_{t+1}) is 0 after the end of an episode.

    :param rewards: r_t, shape (n_steps, n_envs)
    :param values: V(s_t), shape (n_steps, n_envs)
    :param last_values: V of the observation after the last step, shape (n_envs,)
    :param dones: 1.0 where the transition ended an episode, shape (n_steps, n_envs)
    :param gamma: discount γ in [0, 1]
    :return: δ_t, shape (n_steps, n_envs)
    """
    return rewards + gamma * (1 - dones) * next_values(values, last_values) - values


def gae(rewards: ArrayT, values: ArrayT, last_values: ArrayT, dones: ArrayT, gamma: float, gae_lambda: float) -> ArrayT:
    """
    S4: A_t = Σ_k (γλ)^k δ_{t+k}, the sum ending with the episode or the rollout.

    :param rewards: r_t, shape (n_steps, n_envs)
    :param values: V(s_t), shape (n_steps, n_envs)
    :param last_values: V of the observation after the last step, shape (n_envs,)
    :param dones: 1.0 where the transition ended an episode, shape (n_steps, n_envs)
    :param gamma: discount γ in [0, 1]
    :param gae_lambda: λ in [0, 1]; 0 gives the TD error, 1 the Monte-Carlo advantage
    :return: A_t, shape (n_steps, n_envs)
    """
    errors = td_errors(rewards, values, last_values, dones, gamma)
    return discounted_sum(errors, gamma * gae_lambda * (1 - dones))


def value_targets(
    kind: ValueTarget,
    rewards: ArrayT,
    values: ArrayT,
    last_values: ArrayT,
    dones: ArrayT,
    gamma: float,
    gae_lambda: float,
) -> ArrayT:
    """
    T10, P4: what the critic is fitted to.

    - ``td_lambda``: the λ-return A_t + V(s_t), SB3's choice
    - ``td_zero``: r_t + γ V(s_{t+1})
    - ``monte_carlo``: the discounted sum of rewards, to the end of the episode or, where the rollout cuts it, to the
      value of the observation after the cut

    The three differ only in λ: they are the λ-returns of λ, 0 and 1.

    :param kind: "td_lambda", "td_zero" or "monte_carlo"
    :param rewards: r_t, shape (n_steps, n_envs)
    :param values: V(s_t), shape (n_steps, n_envs)
    :param last_values: V of the observation after the last step, shape (n_envs,)
    :param dones: 1.0 where the transition ended an episode, shape (n_steps, n_envs)
    :param gamma: discount γ in [0, 1]
    :param gae_lambda: λ in [0, 1], used by ``td_lambda``
    :return: the targets G_t, shape (n_steps, n_envs)
    """
    effective_lambda = {"td_lambda": gae_lambda, "td_zero": 0.0, "monte_carlo": 1.0}[kind]
    return gae(rewards, values, last_values, dones, gamma, effective_lambda) + values

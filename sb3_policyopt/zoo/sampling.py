"""Search spaces for ``-optimize``: that of TRPO, and those of policies with memory."""

from collections.abc import Callable, Mapping

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params

Sampler = Callable[[optuna.Trial, int, int, Mapping[str, object]], dict[str, object]]
"""rl-zoo3's form of a search space: trial, n_actions, n_envs, additional_args ↦ constructor arguments."""

OF_MEMORY = ("lstm_hidden_size", "n_lstm_layers", "enable_critic_lstm", "rnn")
"""Arguments of a policy with memory that are searched."""


def sample_trpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Mapping[str, object]
) -> dict[str, object]:
    """
    Sample TRPO's hyperparameters.

    rl-zoo3 searches ``target_kl`` per action dimension. Here it bounds the joint KL divergence of the action, which grows with
    the number of dimensions, and so does the Fisher matrix: the ranges of ``target_kl`` and ``cg_damping`` are scaled by it.

    :param trial: the trial of the study
    :param n_actions: dimensions of a Box action space, 0 for the others
    :param n_envs: number of parallel environments
    :param additional_args: arguments of off-policy algorithms, not used
    :return: constructor arguments
    """
    dimensions = max(n_actions, 1)
    sampled = {
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 6, 12),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-4, 0.1, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
        "cg_damping": trial.suggest_float("cg_damping", 1e-3 * dimensions, 0.5 * dimensions, log=True),
        "target_kl": trial.suggest_float("target_kl", 1e-3 * dimensions, 0.1 * dimensions, log=True),
        "line_search_shrinking_factor": trial.suggest_categorical("line_search_shrinking_factor", [0.5, 0.7, 0.8]),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    converted: dict[str, object] = convert_onpolicy_params(sampled)
    # Not among the trial's parameters, which are transformed; rl-zoo3's samplers record the same three.
    for name in ("gamma", "n_steps", "batch_size"):
        trial.set_user_attr(name, converted[name])
    return converted


def with_memory(sample: Sampler) -> Sampler:
    """
    Extend a search space by the arguments of a policy with memory.

    :param sample: the search space without
    :return: the search space with ``OF_MEMORY`` among the ``policy_kwargs``
    """

    def sample_with_memory(
        trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Mapping[str, object]
    ) -> dict[str, object]:
        sampled = sample(trial, n_actions, n_envs, additional_args)
        memory = {
            "lstm_hidden_size": trial.suggest_categorical("lstm_hidden_size", [16, 32, 64, 128, 256]),
            "n_lstm_layers": trial.suggest_int("n_lstm_layers", 1, 2),
            "enable_critic_lstm": trial.suggest_categorical("enable_critic_lstm", [False, True]),
            "rnn": trial.suggest_categorical("rnn", ["lstm", "gru"]),
        }
        return _with_policy_kwargs(sampled, memory)

    return sample_with_memory


def convert_lstm_params(sampled_params: Mapping[str, object]) -> dict[str, object]:
    """
    Turn the parameters of a finished trial into arguments of the constructor.

    :param sampled_params: of a trial of :func:`with_memory`
    :return: constructor arguments
    """
    plain = {name: value for name, value in sampled_params.items() if name not in OF_MEMORY}
    memory = {name: value for name, value in sampled_params.items() if name in OF_MEMORY}
    return _with_policy_kwargs(convert_onpolicy_params(plain), memory)


def _with_policy_kwargs(arguments: dict[str, object], further: Mapping[str, object]) -> dict[str, object]:
    policy_kwargs = arguments["policy_kwargs"]
    assert isinstance(policy_kwargs, dict)
    return {**arguments, "policy_kwargs": {**policy_kwargs, **further}}


sample_ppo_lstm_params = with_memory(sample_ppo_params)
"""Samples the hyperparameters of PPO for a policy with memory."""

sample_trpo_lstm_params = with_memory(sample_trpo_params)
"""Samples the hyperparameters of TRPO for a policy with memory."""

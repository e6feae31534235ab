"""Evaluate the last parameters of one trained agent; run as a process of its own, which prints JSON."""

import argparse
import json

import torch as th

from benchmarks.scores.runs import OURS, STOCK
from sb3_policyopt.recording import installed_versions

#: No training starts from a seed like this one.
SEED = 10_000_000


def evaluate(algo: str, env_id: str, run: str, implementation: str, n_episodes: int) -> list[float]:
    """
    Returns of whole episodes with the deterministic policy and the statistics of ``VecNormalize`` as they are.

    :param algo: "ppo" or "trpo"
    :param env_id: the environment
    :param run: folder that rl-zoo3 saved
    :param implementation: "ours", which registers our classes with rl-zoo3, or "stock", which does not
    :param n_episodes: how many
    :return: their returns, of the environment's own reward
    """
    import rl_zoo3
    import rl_zoo3.import_envs
    from rl_zoo3.utils import create_test_env, get_saved_hyperparams
    from stable_baselines3.common.evaluation import evaluate_policy

    if implementation == OURS:
        import sb3_policyopt.zoo  # noqa: F401
    name = env_id.replace("/", "-")
    hyperparams, statistics = get_saved_hyperparams(f"{run}/{name}", test_mode=True)
    # One environment: of more, rl-zoo3 would make processes.
    env = create_test_env(env_id, stats_path=statistics, seed=SEED, hyperparams=hyperparams, should_render=False, log_dir=None)
    model = rl_zoo3.ALGOS[algo].load(f"{run}/{name}.zip", device="cpu")
    returns, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes, deterministic=True, return_episode_rewards=True)
    env.close()
    return [float(value) for value in returns]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo")
    parser.add_argument("env_id")
    parser.add_argument("run")
    parser.add_argument("--implementation", choices=[OURS, STOCK], default=OURS)
    parser.add_argument("--episodes", type=int, default=100)
    options = parser.parse_args()
    th.set_num_threads(1)
    returns = evaluate(options.algo, options.env_id, options.run, options.implementation, options.episodes)
    versions = " ".join(f"{name}={number}" for name, number in installed_versions().items())
    print(json.dumps({"returns": returns, "versions": versions}))


if __name__ == "__main__":
    main()

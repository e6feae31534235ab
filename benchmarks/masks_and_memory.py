"""
What masks and memory are good for: ``python -m benchmarks.masks_and_memory`` trains the same algorithm with and without them.

Each run is a process of its own with one thread; the CSV file keeps every run, and those that it has are not repeated. The
return of a run is the mean of 100 episodes with the most likely actions of the last parameters.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = ("task", "algo", "policy", "seed", "mean", "std", "seconds")

PPO: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "learning_rate": 1e-3}
TRPO: dict[str, Any] = {"n_steps": 256, "batch_size": 128, "learning_rate": 1e-3, "target_kl": 0.02}
SMALL = {"lstm_hidden_size": 64}
TASKS: dict[str, dict[str, Any]] = {
    "Recall": {"env_id": "benchmarks/Recall-v0", "steps": 250_000, "gamma": 0.99},
    "CartPoleNoVel": {"env_id": "CartPoleNoVel-v1", "steps": 200_000, "gamma": 0.98, "normalize": True},
    "PendulumNoVel": {"env_id": "PendulumNoVel-v1", "steps": 200_000, "gamma": 0.9, "normalize": True},
    "MaskedRoute": {"env_id": "MaskedRoute-v0", "steps": 50_000, "gamma": 0.99},
}
"""By name: the environment, steps, discount, and whether observations and rewards are normalised; 8 environments each."""

POLICIES = {
    "Recall": ("MlpPolicy", "MlpLstmPolicy"),
    "CartPoleNoVel": ("MlpPolicy", "MlpLstmPolicy"),
    "PendulumNoVel": ("MlpPolicy", "MlpLstmPolicy"),
    "MaskedRoute": ("MlpPolicy", "MaskableMlpPolicy"),
}


def train(task: str, algo: str, policy: str, seed: int) -> tuple[float, float, float]:
    """
    One training and its evaluation.

    :param task: of ``TASKS``
    :param algo: "ppo" or "trpo"
    :param policy: name of the policy
    :param seed: of all random generators
    :return: mean and standard deviation of the returns, and seconds of training
    """
    import importlib

    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    import benchmarks.environments  # registers Recall
    import sb3_policyopt
    import sb3_policyopt.envs  # registers MaskedRoute

    importlib.import_module("rl_zoo3.import_envs")  # registers the environments without velocities
    settings = TASKS[task]
    limit: dict[str, Any] = {"wrapper_class": benchmarks.environments.limited} if task == "MaskedRoute" else {}
    env = make_vec_env(settings["env_id"], 8, seed=seed, **limit)
    if settings.get("normalize"):
        env = VecNormalize(env, gamma=settings["gamma"])
    policy_kwargs = dict(SMALL) if "Lstm" in policy else {}
    algorithm = getattr(sb3_policyopt, algo.upper())
    words = PPO if algo == "ppo" else TRPO
    model = algorithm(policy, env, seed=seed, device="cpu", gamma=settings["gamma"], policy_kwargs=policy_kwargs, **words)
    start = time.perf_counter()
    model.learn(settings["steps"])
    seconds = time.perf_counter() - start
    if isinstance(env, VecNormalize):
        env.training, env.norm_reward = False, False
    returns = evaluate(model, env, masks="Maskable" in policy)
    mean = sum(returns) / len(returns)
    return mean, (sum((x - mean) ** 2 for x in returns) / len(returns)) ** 0.5, seconds


def evaluate(model: Any, env: Any, masks: bool, n_episodes: int = 100) -> list[float]:
    """
    Returns of episodes with the most likely actions. Each environment gives its share of them, as in SB3's
    ``evaluate_policy``: of those that end first, short ones would be too many.

    :param model: trained
    :param env: its environments
    :param masks: whether the policy gets masks
    :param n_episodes: how many
    :return: one number an episode
    """
    import numpy as np

    returns: list[float] = []
    observations, state, starts = env.reset(), None, np.ones(env.num_envs, bool)
    left = [(n_episodes + i) // env.num_envs for i in range(env.num_envs)]
    while any(left):
        allowed = {"action_masks": np.stack(env.env_method("action_masks"))} if masks else {}
        actions, state = model.predict(observations, state, starts, deterministic=True, **allowed)
        observations, _, starts, infos = env.step(actions)
        for i, info in enumerate(infos):
            if "episode" in info and left[i]:
                left[i] -= 1
                returns.append(info["episode"]["r"])
    return returns


def rows() -> list[dict[str, str]]:
    """All runs so far."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table() -> str:
    """The runs as Markdown: every seed."""
    runs: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    minutes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows():
        key = row["task"], row["algo"], row["policy"]
        runs[key].append(f"{float(row['mean']):,.2f}" if abs(float(row["mean"])) < 10 else f"{float(row['mean']):,.0f}")
        minutes[key].append(float(row["seconds"]) / 60)
    lines = ["| task | | policy | return of each seed | minutes |", "|---|---|---|---|---:|"]
    for (task, algo, policy), means in runs.items():
        spent = minutes[task, algo, policy]
        lines.append(f"| {task} | {algo.upper()} | {policy} | {', '.join(means)} | {sum(spent) / len(spent):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.masks_and_memory", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--one", nargs=4, metavar=("TASK", "ALGO", "POLICY", "SEED"), help="one run in this process")
    parser.add_argument("--table", action="store_true", help="print the table of the runs so far")
    args = parser.parse_args()
    if args.one:
        task, algo, policy, seed = args.one
        print(*train(task, algo, policy, int(seed)))
        return
    done = {(row["task"], row["algo"], row["policy"], int(row["seed"])) for row in rows()}
    wanted = [(t, a, p, s) for t in TASKS for a in ("ppo", "trpo") for p in POLICIES[t] for s in args.seeds]
    for run in [] if args.table else [run for run in wanted if run not in done]:
        command = [sys.executable, "-m", "benchmarks.masks_and_memory", "--one", *map(str, run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        is_new = not RESULTS.exists()
        with RESULTS.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow([*run, *(f"{float(x):.3f}" for x in result.stdout.split()[-3:])])
        print(*run, result.stdout.split()[-3:], flush=True)
    print(table())


if __name__ == "__main__":
    main()

"""Train TRPO and PPO on CartPole-v1 by their hyperparameter files, evaluate them, and draw how they learned."""

import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_policyopt
from sb3_policyopt.plots import plot_runs

ENV = "CartPole-v1"
EPISODES = 20
FOLDER = Path("demo")


def train(algorithm: str) -> Path:
    """
    Train through the command line, as a user would.

    :param algorithm: "trpo" or "ppo"
    :return: the new run's folder
    """
    command = ["train", "--algo", algorithm, "--env", ENV, "--seed", "1", "--progress", "--verbose", "0", "-f", str(FOLDER)]
    subprocess.run([sys.executable, "-m", "sb3_policyopt", *command, "--eval-freq", "10000"], check=True)
    return max((FOLDER / algorithm).glob(f"{ENV}_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def main() -> int:
    """
    Train both, evaluate both, print a table and the path of the picture.

    :return: exit code: 0 if both have learnt the task, with 400 of 500 at least (the last policy, not the best one)
    """
    rows, runs = [], []
    for algorithm in ("trpo", "ppo"):
        started = time.perf_counter()
        run = train(algorithm)
        seconds = time.perf_counter() - started
        model = getattr(sb3_policyopt, algorithm.upper()).load(run / f"{ENV}.zip", device="cpu")
        mean, std = evaluate_policy(model, make_vec_env(ENV, seed=1000), n_eval_episodes=EPISODES)
        rows.append((algorithm.upper(), mean, std, model.num_timesteps, seconds))
        runs.append(run)
    picture = plot_runs(runs, FOLDER / "learning_curve.png")
    print(f"\n{'':6}{f'return over {EPISODES} episodes':>26}{'steps':>10}{'seconds':>10}")
    for name, mean, std, steps, seconds in rows:
        print(f"{name:6}{f'{mean:.1f} +/- {std:.1f}':>26}{steps:>10,}{seconds:>10.1f}")
    print(f"\nLearning curves: {picture}")
    return 0 if all(row[1] >= 400 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

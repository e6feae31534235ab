"""
Train the entries of hyperparams/*.yml through the command line, and put their scores beside the published ones.

    python benchmarks/scores.py train CartPole-v1 Pendulum-v1 --seeds 0 1 2    # appends to benchmarks/scores.csv
    python benchmarks/scores.py table                                           # writes docs/scores.md

Each agent is trained by ``sb3-policyopt train`` with its entry as it stands (another number of steps can be given with
``-n``, and is then shown), and evaluated over 100 episodes with the deterministic policy, on its last parameters. A row that
is already in the CSV file is not trained again.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "scores.csv"
DOCUMENT = HERE.parent / "docs" / "scores.md"
COLUMNS = ["algo", "env_id", "seed", "n_timesteps", "mean", "std", "n_episodes", "wall_seconds", "version"]

#: rl-zoo3's benchmark.md at 22e3ff2450: mean and standard deviation over the evaluation episodes of ONE trained agent.
PUBLISHED = {
    ("ppo", "CartPole-v1"): (100_000, 500.0, 0.0, ""),
    ("ppo", "Pendulum-v1"): (100_000, -172.225, 104.159, ""),
    ("ppo", "MountainCarContinuous-v0"): (20_000, 88.343, 2.572, ""),
    ("ppo", "MountainCar-v0"): (1_000_000, -110.423, 19.473, ""),
    ("ppo", "Acrobot-v1"): (1_000_000, -73.506, 18.201, ""),
    ("ppo", "LunarLander-v3"): (1_000_000, 242.119, 31.823, "on -v2"),
    ("ppo", "LunarLanderContinuous-v3"): (1_000_000, 270.863, 32.072, "on -v2"),
    ("ppo", "BipedalWalker-v3"): (5_000_000, 287.939, 2.448, ""),
    ("ppo", "HalfCheetah-v5"): (1_000_000, 5819.099, 663.530, "on -v3"),
    ("ppo", "Swimmer-v5"): (1_000_000, 281.561, 9.671, "on -v3"),
    ("trpo", "CartPole-v1"): (100_000, 500.0, 0.0, ""),
    ("trpo", "Pendulum-v1"): (100_000, -174.631, 127.577, ""),
    ("trpo", "MountainCarContinuous-v0"): (50_000, 92.489, 0.355, ""),
    ("trpo", "MountainCar-v0"): (100_000, -107.278, 13.231, ""),
    ("trpo", "Acrobot-v1"): (100_000, -83.114, 18.648, ""),
    ("trpo", "LunarLander-v3"): (200_000, 133.166, 112.173, "on -v2"),
    ("trpo", "LunarLanderContinuous-v3"): (200_000, 262.387, 21.428, "on -v2"),
    ("trpo", "BipedalWalker-v3"): (1_000_000, 182.339, 145.570, ""),
    ("trpo", "HalfCheetah-v5"): (1_000_000, 1785.476, 68.672, "on -v3"),
    ("trpo", "Swimmer-v5"): (1_000_000, 365.663, 2.087, "on -v3"),
}


def rows() -> list[dict[str, str]]:
    """Read the scores so far."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def train(algo: str, env_id: str, seed: int, n_timesteps: int | None, folder: Path) -> Path:
    """Train one agent and return its run folder."""
    steps = [] if n_timesteps is None else ["-n", str(n_timesteps)]
    command = ["train", "--algo", algo, "--env", env_id, "--seed", str(seed), "-f", str(folder), "--eval-freq", "-1", *steps]
    subprocess.run([sys.executable, "-m", "sb3_policyopt", *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return folder / algo / f"{env_id}_1"


def evaluate(algo: str, env_id: str, run: Path, n_episodes: int = 100) -> tuple[float, float]:
    """Mean and standard deviation of the returns of a saved agent."""
    import rl_zoo3.import_envs
    from rl_zoo3.utils import create_test_env, get_saved_hyperparams
    from stable_baselines3.common.evaluation import evaluate_policy

    import sb3_policyopt.zoo  # noqa: F401

    hyperparams, statistics = get_saved_hyperparams(str(run / env_id), test_mode=True)
    env = create_test_env(
        env_id,
        stats_path=statistics,
        seed=10_000,
        hyperparams=hyperparams,
        should_render=False,
        log_dir=str(run / "evaluation"),
    )
    model = rl_zoo3.ALGOS[algo].load(run / f"{env_id}.zip", device="cpu")
    returns, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes, deterministic=True, return_episode_rewards=True)
    env.close()
    return float(np.mean(returns)), float(np.std(returns))


def train_all(algos: list[str], env_ids: list[str], seeds: list[int], n_timesteps: int | None) -> None:
    """Train and evaluate whatever has no row yet."""
    for env_id in env_ids:
        for algo in algos:
            for seed in seeds:
                done = {(row["algo"], row["env_id"], row["seed"]) for row in rows()}
                if (algo, env_id, str(seed)) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    run = train(algo, env_id, seed, n_timesteps, Path(folder))
                    provenance = json.loads((run / "provenance.json").read_text())
                    mean, std = evaluate(algo, env_id, run)
                append(
                    {
                        "algo": algo,
                        "env_id": env_id,
                        "seed": seed,
                        "n_timesteps": provenance["requested_timesteps"],
                        "mean": round(mean, 3),
                        "std": round(std, 3),
                        "n_episodes": 100,
                        "wall_seconds": round(provenance["wall_time_seconds"], 1),
                        "version": provenance["versions"]["sb3-policyopt"],
                    }
                )


def append(row: dict[str, object]) -> None:
    """Add a row to the CSV file, and print it."""
    new = not RESULTS.is_file()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(*row.values(), flush=True)


def table() -> str:
    """One line for each algorithm and environment: the seeds' means, and the published figure."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows():
        groups.setdefault((row["algo"], row["env_id"], row["n_timesteps"]), []).append(row)
    lines = [
        "| algorithm | environment | steps | return of each seed | mean | published (rl-zoo3) | its steps |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for (algo, env_id, steps), group in groups.items():
        seeds = ", ".join(f"{float(row['mean']):.1f}" for row in sorted(group, key=lambda row: int(row["seed"])))
        mean = np.mean([float(row["mean"]) for row in group])
        published, published_steps = "", ""
        if (algo, env_id) in PUBLISHED:
            their_steps, their_mean, their_std, note = PUBLISHED[algo, env_id]
            published, published_steps = f"{their_mean:.1f} ± {their_std:.1f} {note}".strip(), f"{their_steps:,}"
        lines.append(
            f"| {algo.upper()} | {env_id} | {int(float(steps)):,} | {seeds} | {mean:.1f} | {published} | {published_steps} |"
        )
    return "\n".join(lines)


def write_document() -> None:
    """Put the table between the two marks in docs/scores.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    DOCUMENT.write_text(f"{before}<!-- table -->\n{table()}\n<!-- end of table -->{after}", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    training = actions.add_parser("train")
    training.add_argument("env_ids", nargs="+", metavar="ENV")
    training.add_argument("--algos", nargs="+", default=["ppo", "trpo"])
    training.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    training.add_argument("-n", "--n-timesteps", type=int, default=None)
    actions.add_parser("table")
    options = parser.parse_args()
    if options.action == "table":
        write_document()
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    train_all(options.algos, options.env_ids, options.seeds, options.n_timesteps)


if __name__ == "__main__":
    main()

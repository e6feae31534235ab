"""
TRPO: the KL divergence between policies before and after an update stays within a bound that one number sets.

    python examples/train_trpo.py [timesteps]
"""

import sys

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_policyopt import TRPO  # was: from sb3_contrib import TRPO


class Watch(BaseCallback):
    """Prints how each update used its trust region."""

    def _on_rollout_start(self) -> None:
        log = self.model.logger.name_to_value
        if "train/kl_divergence_loss" in log:
            kl, bound = log["train/kl_divergence_loss"], log["train/target_kl"]
            print(f"KL {kl:.4f} of at most {bound:.4f}, {log['train/step_fraction']:.0%} of the full step")

    def _on_step(self) -> bool:
        return True


def main(total_timesteps: int = 50_000) -> None:
    """
    Train on CartPole-v1 and evaluate.

    :param total_timesteps: environment steps to train for
    """
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=512, target_kl=0.02, seed=0)
    model.learn(total_timesteps, callback=Watch(), log_interval=10)
    mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1), n_eval_episodes=10)
    print(f"Return over 10 episodes: {mean:.0f} +- {std:.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

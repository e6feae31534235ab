"""
PPO in place of SB3's: one import changes, nothing else has to.

    python examples/train_ppo.py [timesteps]
"""

import sys

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_policyopt import PPO  # was: from stable_baselines3 import PPO


def main(total_timesteps: int = 50_000) -> None:
    """
    Train on CartPole-v1, save, load, evaluate.

    :param total_timesteps: environment steps to train for
    """
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    # Every coefficient may follow a schedule; "lin_0.001" goes from 0.001 linearly to 0.
    model = PPO(
        "MlpPolicy", env, n_steps=32, batch_size=256, n_epochs=20, learning_rate="lin_0.001", ent_coef="lin_0.01", seed=0
    )
    model.learn(total_timesteps)
    model.save("ppo_cartpole")  # stable_baselines3.PPO.load opens it, too

    model = PPO.load("ppo_cartpole", device="cpu")
    mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1), n_eval_episodes=10)
    print(f"Return over 10 episodes: {mean:.0f} +- {std:.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

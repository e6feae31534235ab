"""
Many environments on one device: observations, actions and rewards stay tensors there. Without a GPU this runs on the CPU.

A simulator takes the place of ``TensorCartPole`` by an adapter, such as ``from_isaaclab(env)``: see docs/tensors.md.
"""

import sys

from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from sb3_policyopt import PPO
from sb3_policyopt.envs.tensors import TensorCartPole

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
env = TensorCartPole(1024, device="cuda", seed=0)  # as in SB3 the CPU where there is no GPU
model = PPO("MlpPolicy", env, n_steps=32, batch_size=8192, n_epochs=10, learning_rate=1e-3, seed=0).learn(steps)

mean, deviation = evaluate_policy(model, VecMonitor(TensorCartPole(16, seed=1)), n_eval_episodes=32)
print(f"rollouts on {model.device} by {model.engine_in_use.name}; return {mean:.1f} ± {deviation:.1f}")

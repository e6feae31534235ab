"""A script that saves models between trainings, on all ranks or on one: ``saves.py FOLDER``. Rank 0 is the slowest."""

import sys
import time
from pathlib import Path

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_policyopt import PPO
from sb3_policyopt.parallel import launcher

if __name__ == "__main__":
    th.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), launcher.rank()
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    for number in range(2):
        model.learn(64, CheckpointCallback(16, str(folder)))  # saves on rank 0 alone
        for again in range(2):
            if rank == 0:
                time.sleep(1)
            name = folder / f"model {number} {again}"
            model.save(name)
            model = PPO.load(name, env=gym.make("CartPole-v1"), device="cpu")
    model.learn(64)
    if rank == 0:
        model.save(folder / "of rank 0 alone")
    model.learn(64)
    if rank == 1:
        model.save(folder / "of rank 1 alone")  # until rank 0 trains again
    model.learn(64)
    if rank == 1:
        model.save(folder / "of rank 1 at the end")  # until rank 0 ends
    print(f"rank {rank} is done", flush=True)

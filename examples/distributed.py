"""
Training on several processes, without anything in the script that says so.

    python examples/distributed.py                             # one process, 4 environments
    torchrun --nproc-per-node 4 examples/distributed.py        # four processes, 16 environments, the same model in each

``n_envs``, ``n_steps`` and ``batch_size`` are those of each process, ``total_timesteps`` counts the steps of all.
"""

import sys

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_policyopt import TRPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.parallel import launcher


def main(total_timesteps: int = 100_000) -> None:
    """
    Train on CartPole-v1; kill a process and start again, and it goes on from the last checkpoint.

    :param total_timesteps: environment steps to train for, of all processes together
    """
    env = make_vec_env("CartPole-v1", n_envs=4)
    model = TRPO("MlpPolicy", env, n_steps=512, batch_size=128, verbose=1, seed=0)
    evaluation = EvalCallback(make_vec_env("CartPole-v1"), eval_freq=2048)  # runs on rank 0 only
    model.learn(total_timesteps, callback=[evaluation, ResumableCheckpointCallback("distributed_checkpoints", 20_000)])
    model.save("distributed_model")  # rank 0 writes
    print(f"rank {launcher.rank()} of {launcher.world_size()} has trained for {model.num_timesteps} timesteps")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""One rank of a training: ``ranks_train.py FOLDER DEVICE``; it writes the parameters that it came to."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.parallel import launcher

if __name__ == "__main__":
    th.set_num_threads(1)
    folder, device = Path(sys.argv[1]), sys.argv[2]
    results: dict[str, Any] = {}
    for cls in (PPO, TRPO):
        env = make_vec_env("CartPole-v1", n_envs=2)
        model = cls("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device=device).learn(256)
        assert model.policy.device.type == device
        parameters = th.nn.utils.parameters_to_vector(model.policy.parameters())
        results[cls.__name__] = parameters.detach().cpu().numpy()
        results[f"{cls.__name__} observations"] = model._last_obs
    np.savez(folder / f"{launcher.rank()}.npz", **results)

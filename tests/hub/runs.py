"""Run folders as rl-zoo3 writes them, trained in a second."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.recording import RunRecorder


def make_run(
    folder: Path,
    algo: str,
    env_id: str,
    normalize: bool = False,
    records: bool = True,
    n_timesteps: int = 512,
    **hyperparameters: Any,
) -> Path:
    """
    Train for a few steps, and write the files of a zoo run, with private facts.

    :param records: whether there are monitor files, a progress.csv and a provenance.json
    :return: the run folder
    """
    run = folder / algo / f"{env_id}_1"
    params = run / env_id
    params.mkdir(parents=True)
    env = make_vec_env(env_id, n_envs=2, seed=7, monitor_dir=str(run) if records else None)
    if normalize:
        env = VecNormalize(env)
    hyperparameters = {"n_steps": 128, "batch_size": 64, **hyperparameters}
    model = {"ppo": PPO, "trpo": TRPO}[algo]("MlpPolicy", env, seed=7, device="cpu", **hyperparameters)
    arguments = {
        "algo": algo,
        "env": env_id,
        "env_kwargs": None,
        "log_folder": "/home/somebody/secret/logs",
        "n_timesteps": n_timesteps,
        "seed": 7,
        "storage": "postgresql://user:password@database.example/study",
        "wandb_entity": "somebody",
    }
    model.learn(n_timesteps, callback=RunRecorder(run, facts={"arguments": arguments}) if records else None)
    model.save(run / f"{env_id}.zip")
    config = {"policy": "MlpPolicy", "n_envs": 2, "n_timesteps": float(n_timesteps), **hyperparameters}
    if normalize:
        assert isinstance(env, VecNormalize)
        env.save(str(params / "vecnormalize.pkl"))
        config["normalize"] = True
    for name, content in (("config.yml", config), ("args.yml", arguments)):
        (params / name).write_text(yaml.dump(OrderedDict(sorted(content.items()))))
    env.close()
    return run

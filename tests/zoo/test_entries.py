"""Every entry of hyperparams/*.yml, constructed as it stands and stepped for two updates on its environment."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th

import sb3_policyopt.zoo  # noqa: F401  registers environments too
from sb3_policyopt import hyperparams, registry
from sb3_policyopt.zoo.experiment import Experiment

pytestmark = pytest.mark.slow
ATARI, DEFAULT = "BreakoutNoFrameskip-v4", "CliffWalking-v1"  # one environment for each of the two entries that are no id


def environments(algo: str) -> list[str]:
    named = {"atari": ATARI}
    default = "MaskedWorkshop-v0" if registry.find(algo).masks else DEFAULT  # a default for environments with masks
    return [default if key == "default" else named.get(key, key) for key in hyperparams.load(algo)]


def installed(env_id: str) -> bool:
    try:
        gym.make(env_id).close()
    except (gym.error.Error, ImportError):
        return False
    return True


def experiment(algo: str, env_id: str, folder: Path, **options: Any) -> Experiment:
    return Experiment(
        argparse.Namespace(),
        algo,
        env_id,
        str(folder),
        eval_freq=-1,
        log_interval=-1,
        verbose=0,
        seed=0,
        device="cpu",
        **options,
    )


@pytest.mark.parametrize(("algo", "env_id"), [(algo, env_id) for algo in registry.ALGORITHMS for env_id in environments(algo)])
def test_two_updates(algo: str, env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into the current folder
    if not installed(env_id):
        pytest.skip(f"{env_id} cannot be made here")
    entry = experiment(algo, env_id, tmp_path).read_hyperparameters()[0]

    # As it stands: every key is an argument that the constructors take.
    prepared = experiment(algo, env_id, tmp_path).setup_experiment()
    assert prepared is not None
    model, _ = prepared
    assert model.n_envs == entry.get("n_envs", 1)
    default = 128 if algo == "ppo_lstm" else 2048  # sb3-contrib's of RecurrentPPO, and that of the others
    assert getattr(model, "n_steps") == entry.get("n_steps", default)  # noqa: B009
    assert model.env is not None
    model.env.close()

    # Two updates on short rollouts: the environment, its wrappers and every coefficient are the entry's.
    short = {"n_envs": min(entry.get("n_envs", 1), 2), "n_steps": min(entry.get("n_steps", 2048), 32), "batch_size": 32}
    steps = 2 * short["n_envs"] * short["n_steps"]
    run = experiment(algo, env_id, tmp_path, hyperparams=short, n_timesteps=steps)
    prepared = run.setup_experiment()
    assert prepared is not None
    model, _ = prepared
    before = model.policy.state_dict()
    before = {name: values.clone() for name, values in before.items()}
    run.learn(model)
    run.save_trained_model(model)
    after = model.policy.state_dict()
    assert model.num_timesteps == steps
    assert all(th.isfinite(values).all() for values in after.values())
    assert any((before[name] != values).any() for name, values in after.items())

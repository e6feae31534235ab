"""The examples run, as a reader would run them, for a few steps."""

import os
import pathlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from forked_scripts import run_python
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

FOLDER = pathlib.Path(__file__).parent.parent / "examples"
# Enough for an update or two; and what each prints.
EXAMPLES = {
    "train_ppo.py": (512, "Return over 10 episodes"),
    "train_trpo.py": (4096, "of the full step"),
    "custom_policy.py": (2048, "TRPO: NormalisedFeatures"),
    "auxiliary_loss.py": (2048, "smoothness_loss"),
    "own_algorithm.py": (4096, "served by closed_form"),
    "tensors.py": (32768, "rollouts on c"),
    "distributed.py": (2048, "rank 0 of 1 has trained for 2048 timesteps"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path) -> None:
    steps, output = EXAMPLES[name]
    done = run_python([str(FOLDER / name), str(steps)], tmp_path, os.environ)
    assert done.returncode == 0, done.stderr
    assert output in done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == {*EXAMPLES, "demo.py"}  # the demo is `make demo`


def test_the_own_algorithm_is_short_served_by_its_closed_form_and_equal_to_autograd() -> None:
    """Its slopes are those of its loss: the same update through autograd, to rounding. And β follows the KL."""
    assert len((FOLDER / "own_algorithm.py").read_text().splitlines()) <= 60
    own = runpy.run_path(str(FOLDER / "own_algorithm.py"))["PenaltyPPO"]
    options: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "ent_coef": 0.01, "seed": 0, "device": "cpu"}
    for env, beta in (("CartPole-v1", 1.0), ("Pendulum-v1", 30.0)):
        models = [own("MlpPolicy", env, beta=beta, engine=engine, **options) for engine in ("auto", "autograd")]
        assert models[0].prepare_engine().name == "closed_form"
        for model in models:  # on the same rollout
            _, callback = model._setup_learn(64)
            model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
            setattr(models[1].rollout_buffer, name, getattr(models[0].rollout_buffer, name).copy())
        for model in models:
            np.random.seed(0)
            model.train()
            assert model.beta in (beta / 2, beta, 2 * beta)
        vectors = [th.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models]
        th.testing.assert_close(*vectors, rtol=0, atol=1e-6)


def test_the_own_algorithm_learns() -> None:
    own = runpy.run_path(str(FOLDER / "own_algorithm.py"))["PenaltyPPO"]
    model = own("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=0), n_steps=64, batch_size=128, seed=0, device="cpu")
    model.learn(40_000)
    mean = evaluate_policy(model, make_vec_env("CartPole-v1", 1, seed=1), 10)[0]
    assert isinstance(mean, float) and mean > 150

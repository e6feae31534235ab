"""
Nothing non-finite gets in on a GPU either.

What torch does with NaN where a discrete action is drawn on a GPU (a "device-side assert") ends the process's use of the
GPU, so that these trainings run in processes of their own there.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from faulty_training import ACTIONS, train
from toy_environments import collect, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO, NonFiniteError

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "seed": 0}
BOTH = pytest.mark.parametrize("cls", [PPO, TRPO])


@BOTH
@pytest.mark.parametrize("quantity", ["observation", "reward"])
@pytest.mark.parametrize("actions", ACTIONS)
def test_what_an_environment_returns_is_named(cls: type[Any], quantity: str, actions: Any, device: str) -> None:
    arguments = (cls.__name__, actions, quantity, device)
    if device == "cpu":
        ended = train(*arguments)
    else:
        command = [sys.executable, str(Path(__file__).parent.parent / "algorithms" / "faulty_training.py"), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert ended.startswith(f"NonFiniteError: Non-finite {quantity} in environment 0 at step ")


@BOTH
def test_an_actor_that_overflowed_is_named(cls: type[Any], device: str) -> None:
    model = cls("MlpPolicy", toy(), **SMALL, device=device)
    with th.no_grad():
        model.policy.action_net.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="Non-finite action in environment 0"):
        model.learn(32)


@BOTH
def test_a_bad_minibatch_is_skipped_and_the_others_count(cls: type[Any], device: str) -> None:
    model = cls("MlpPolicy", toy(), **SMALL, device=device)
    start(model)
    collect(model)
    before = parameter_vector(model.policy)
    model.rollout_buffer.returns[3, 2] = np.nan
    model.train()
    after = parameter_vector(model.policy)
    assert bool(th.isfinite(after).all()) and not th.equal(before, after)
    assert model.logger.name_to_value["train/skipped_updates"] > 0


@BOTH
def test_training_ends_if_no_minibatch_is_good(cls: type[Any], device: str) -> None:
    model = cls("MlpPolicy", toy(), **SMALL, device=device)
    start(model)
    collect(model)
    before = parameter_vector(model.policy)
    model.rollout_buffer.returns[:] = np.nan
    with pytest.raises(NonFiniteError, match="updates in a row"):
        model.train()
    if cls is PPO:
        assert th.equal(before, parameter_vector(model.policy))
    assert bool(th.isfinite(parameter_vector(model.policy)).all())

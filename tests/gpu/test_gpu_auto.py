"""What ``device="auto"`` does where there is a GPU; the rule itself is tested without one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from toy_environments import ACTION_SPACES, parameter_vector, toy

from sb3_policyopt import PPO, TRPO

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
gpu = pytest.mark.gpu
BOTH = pytest.mark.parametrize("cls", [PPO, TRPO])


@gpu
@BOTH
def test_convolutions_train_on_the_gpu(cls: type[Any], tmp_path: Path) -> None:
    few = {"n_epochs": 1} if cls is PPO else {"n_critic_updates": 1}
    model = cls("CnnPolicy", toy(ATARI, ACTION_SPACES["discrete"]), n_steps=32, batch_size=64, seed=0, **few)
    assert model.device.type == model.policy.device.type == model.rollout_buffer.device.type == "cuda"
    before = parameter_vector(model.policy)
    model.learn(256)
    assert not th.equal(before, parameter_vector(model.policy))
    assert model.policy.device.type == "cuda"
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model")
    assert loaded.policy.device.type == "cuda"
    assert th.equal(parameter_vector(loaded.policy), parameter_vector(model.policy))


@gpu
@BOTH
def test_the_networks_are_those_of_the_cpu(cls: type[Any]) -> None:
    models = [
        cls("CnnPolicy", toy(ATARI, ACTION_SPACES["discrete"]), n_steps=32, batch_size=64, seed=0, **given)
        for given in ({}, {"device": "cpu"}, {"device": "cuda"})
    ]
    assert [model.device.type for model in models] == ["cuda", "cpu", "cuda"]
    for model in models[1:]:
        assert th.equal(parameter_vector(models[0].policy).cpu(), parameter_vector(model.policy).cpu())


SMALL = """
import sys
import torch as th
from sb3_policyopt import PPO, TRPO
assert th.cuda.is_available()
for cls in (PPO, TRPO):
    model = cls("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, seed=0, verbose=1).learn(128)
    model.save(sys.argv[1])
    loaded = cls.load(sys.argv[1], env=model.get_env()).learn(64)
    assert model.device.type == loaded.device.type == "cpu", model.device_reason
    assert model.engine_in_use.name == loaded.engine_in_use.name == "closed_form"
print("initialised:", th.cuda.is_initialized())
"""


@pytest.mark.parametrize("machine", ["emulated", pytest.param("real", marks=gpu)])
def test_small_networks_leave_the_gpu_alone(machine: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", SMALL, str(tmp_path / "model.zip")]
    environment = dict(os.environ)
    if machine == "emulated":
        folder = str(Path(__file__).parent.parent / "emulated_gpu")
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Using cpu device" in done.stdout and "cuda device" not in done.stdout
    assert done.stdout.splitlines()[-1] == "initialised: False"


class OnTheGpu(FlattenExtractor):
    """A user's extractor that knows where it wants to be."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space)
        self.scale = th.ones(self.features_dim, device="cuda")  # neither a parameter nor a buffer

    def forward(self, observations: Any) -> Any:
        return super().forward(observations) * self.scale


@gpu
@BOTH
def test_a_policy_that_puts_itself_on_the_gpu_trains_there(cls: type[Any]) -> None:
    options: dict[str, dict[str, Any]] = {"policy_kwargs": {"features_extractor_class": OnTheGpu}}
    model = cls("MlpPolicy", toy(), n_steps=32, batch_size=32, **options).learn(128)
    assert model.device.type == model.policy.device.type == "cuda"
    assert model.device_reason == "code of the policy puts tensors there"


@gpu
def test_processes_that_these_tests_start_see_the_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True, timeout=120
    )
    assert th.cuda.is_available() and done.stdout.strip() == "True"

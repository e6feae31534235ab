"""
What ``device="auto"`` means for a model, on a machine that says it has a GPU.

Where the CPU is chosen, nothing may touch the GPU: torch's own door to it is locked. Where the GPU is chosen, a policy that
notes where it is sent stands for the move itself, which ``tests/gpu`` makes.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.policies import ActorCriticPolicy as StockPolicy
from toy_environments import ACTION_SPACES, IMAGE, parameter_vector, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.parallel import launcher
from sb3_policyopt.parallel import one_model as start

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "seed": 0}
BOTH = pytest.mark.parametrize("cls", [PPO, TRPO])
PRIVATE = {"_device_is_auto", "device_reason", "_announces_device"}
CUDA = th.device("cuda")


@pytest.fixture(autouse=True)
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch says that there is a GPU, and any use of it is an error."""
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)

    def locked(*_: Any) -> None:
        raise AssertionError("the GPU was touched")

    monkeypatch.setattr(th.cuda, "_lazy_init", locked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class NotesItsDevice:
    """Mixed into a policy: stays where it is, and notes where it was sent."""

    def to(self, device: str) -> Any:
        self.sent_to = device
        return self


class CnnPolicy(NotesItsDevice, ActorCriticCnnPolicy):  # type: ignore[misc]  # takes less than torch's `to`
    pass


class ActorCriticPolicy(NotesItsDevice, StockPolicy):  # type: ignore[misc]  # takes less than torch's `to`
    """Of the name by which SB3 knows an MlpPolicy, about which it warns on a GPU."""


ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
WIDE: dict[str, Any] = {"batch_size": 8192, "n_steps": 2048, "policy_kwargs": {"net_arch": [512, 512]}}


def atari(cls: type[Any], **options: Any) -> Any:
    return cls(CnnPolicy, toy(ATARI, ACTION_SPACES["discrete"]), **{**SMALL, "n_steps": 8, **options})


@BOTH
class TestSmallNetworks:
    def test_train_on_the_cpu_as_if_they_had_been_told(self, cls: type[Any]) -> None:
        models = [cls("MlpPolicy", toy(), **SMALL, **given).learn(256) for given in ({}, {"device": "cpu"})]
        assert models[0].device == models[0].rollout_buffer.device == th.device("cpu")
        assert models[0].engine_in_use.name == "closed_form"
        assert th.equal(*(parameter_vector(model.policy) for model in models))
        assert models[0].device_reason.endswith("times as long on the GPU")
        assert models[1].device_reason == 'device="cpu" was asked for'

    def test_and_so_do_small_images(self, cls: type[Any]) -> None:
        model = cls("CnnPolicy", toy(IMAGE, ACTION_SPACES["discrete"]), **SMALL)
        assert model.device.type == "cpu" and model.prepare_engine().name == "hybrid"

    def test_can_be_loaded_and_go_on_there(self, cls: type[Any], tmp_path: Path) -> None:
        model = cls("MlpPolicy", toy(), **SMALL).learn(128)
        model.save(tmp_path / "model")
        for options in ({}, {"safe": True}, {"device": "auto", "env": toy()}):
            loaded = cls.load(tmp_path / "model", **options)
            assert loaded.device == loaded.policy.device == th.device("cpu")
            assert "times as long on the GPU" in loaded.device_reason
            assert th.equal(parameter_vector(model.policy), parameter_vector(loaded.policy))
            loaded.set_parameters(tmp_path / "model")
        assert loaded.learn(128, reset_num_timesteps=False).engine_in_use.name == "closed_form"
        assert cls.load(tmp_path / "model", device="cpu").device_reason == 'device="cpu" was asked for'


@BOTH
class TestLargeNetworks:
    def test_go_to_the_gpu_with_the_same_random_numbers(self, cls: type[Any]) -> None:
        model = atari(cls)
        drawn = th.get_rng_state()
        assert model.policy.sent_to == model.device == model.rollout_buffer.device == CUDA
        assert model.device_reason.endswith("times as long on the CPU")
        on_cpu = atari(cls, device="cpu")
        assert th.equal(drawn, th.get_rng_state())
        assert th.equal(parameter_vector(model.policy), parameter_vector(on_cpu.policy))

    def test_without_sb3s_warning_about_it(self, cls: type[Any]) -> None:
        policy_class = ActorCriticPolicy
        assert cls(policy_class, toy(), **WIDE).policy.sent_to == CUDA
        with pytest.warns(UserWarning, match="on the GPU, but it is primarily intended to run on the CPU"):
            cls(policy_class, toy(), **WIDE, device="cuda")

    def test_with_sb3s_settings_of_a_seeded_training(self, cls: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(th.backends.cudnn, "deterministic", False)
        monkeypatch.setattr(th.backends.cudnn, "benchmark", True)
        atari(cls, seed=None)
        assert not th.backends.cudnn.deterministic
        atari(cls)
        assert th.backends.cudnn.deterministic and not th.backends.cudnn.benchmark

    def test_a_buffer_of_a_users_class_is_made_where_the_policy_is(self, cls: type[Any]) -> None:
        class OwnBuffer(RolloutBuffer):
            def __init__(self, *args: Any, device: str, extra: int, **kwargs: Any) -> None:
                super().__init__(*args, **{"device": device, **kwargs})
                self.made_on, self.extra = device, extra

        model = atari(cls, rollout_buffer_class=OwnBuffer, rollout_buffer_kwargs={"extra": 3})
        assert model.rollout_buffer.made_on == CUDA and model.rollout_buffer.extra == 3
        assert atari(cls, rollout_buffer_class=RolloutBuffer).rollout_buffer.device == CUDA

    def test_the_rule_knows_of_micro_batches(self, cls: type[Any]) -> None:
        # In pieces of 64 rows each costs the GPU its launches.
        options: dict[str, Any] = {"n_steps": 1024, "batch_size": 4096, "policy_kwargs": {"net_arch": [256, 256]}}
        few_actions = {"n_epochs": 100} if cls is PPO else {"n_critic_updates": 1000}
        model = cls(ActorCriticPolicy, toy(), **options, **few_actions)
        assert model.device.type == "cuda"
        assert cls(ActorCriticPolicy, toy(), **options, **few_actions, micro_batch_size=32).device.type == "cpu"


@BOTH
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", th.device("cpu"), th.device("cuda", 1), th.device("mps")])
def test_what_the_user_says_is_obeyed(cls: type[Any], device: str) -> None:
    for model in (atari(cls, device=device), cls(type("Small", (ActorCriticPolicy,), {}), toy(), **SMALL, device=device)):
        assert model.device == model.policy.sent_to == model.rollout_buffer.device == th.device(device)
        assert model.device_reason == f'device="{device}" was asked for'


@BOTH
def test_an_engine_of_the_cpu_is_obeyed_too(cls: type[Any]) -> None:
    model = atari(cls, engine="hybrid")
    assert model.device.type == "cpu" and model.device_reason == 'engine="hybrid" serves there alone'
    assert atari(cls, engine="autograd").device.type == "cuda"


@BOTH
def test_without_a_gpu_cuda_is_the_cpu_as_in_sb3(cls: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    model = cls("MlpPolicy", toy(), **SMALL, device="cuda")
    assert model.device.type == "cpu"
    assert model.device_reason == 'device="cuda" was asked for, but there is no GPU'
    model = cls("MlpPolicy", toy(), **SMALL)
    assert model.device.type == "cpu" and model.device_reason == "there is no GPU"


@BOTH
def test_a_policy_that_puts_itself_on_the_gpu_stays_there(cls: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses import FakeTensorMode

    with monkeypatch.context() as without_gpu, FakeTensorMode():  # which would look at a real one
        without_gpu.setattr(th.cuda, "is_available", lambda: False)
        there = th.ones(1, device="cuda")

    class OwnPolicy(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.mlp_extractor.scale = there

    model = cls(OwnPolicy, toy(), **SMALL)
    assert model.device == model.policy.sent_to == CUDA
    assert model.device_reason == "code of the policy puts tensors there"


class TestWhatIsPrinted:
    def lines(self, capsys: pytest.CaptureFixture[str], build: Callable[..., Any]) -> list[Any]:
        capsys.readouterr()
        build()
        return capsys.readouterr().out.splitlines()

    @BOTH
    def test_it_is_true(self, cls: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
        small = self.lines(capsys, lambda: cls("MlpPolicy", "CartPole-v1", **SMALL, verbose=1))
        wide: dict[str, Any] = {"batch_size": 2048, "policy_kwargs": {"net_arch": [1024, 1024]}}
        large = self.lines(capsys, lambda: cls(ActorCriticPolicy, "CartPole-v1", **wide, verbose=1))
        told = self.lines(capsys, lambda: cls("MlpPolicy", "CartPole-v1", **SMALL, verbose=1, device="cpu"))
        of_stock: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
        stock = of_stock[cls]
        theirs = self.lines(capsys, lambda: stock("MlpPolicy", "CartPole-v1", **SMALL, verbose=1, device="cpu"))
        assert told == theirs
        # The same lines; that of the device comes once there is a policy by which to choose it.
        assert sorted(small) == sorted(theirs) and small[-1] == "Using cpu device"
        assert [line for line in large if line.startswith("Using")] == ["Using cuda device"]
        assert self.lines(capsys, lambda: cls("MlpPolicy", "CartPole-v1", **SMALL)) == []

    def test_verbose_is_kept(self) -> None:
        assert PPO("MlpPolicy", toy(), **SMALL, verbose=2).verbose == 2

    def test_loading_says_nothing(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        PPO("MlpPolicy", toy(), **SMALL, verbose=1).save(tmp_path / "model")
        assert self.lines(capsys, lambda: PPO.load(tmp_path / "model")) == []

    def test_a_wrong_policy_is_an_error_before_an_environment_is_made(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ValueError, match="Policy NoPolicy unknown"):
            PPO("NoPolicy", "CartPole-v1", verbose=1)
        assert capsys.readouterr().out == ""


def saved_on_a_gpu(path: Path) -> Any:
    """The same zip as torch writes it for tensors on a GPU: the place of each is written beside it."""
    result = io.BytesIO()
    n_changed = 0
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(result, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".pth"):
                inner = io.BytesIO()
                with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(inner, "w") as new:
                    for entry in old.namelist():
                        part = old.read(entry)
                        if entry.endswith("data.pkl"):
                            n_changed += part.count(b"X\x03\x00\x00\x00cpu")
                            part = part.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                        new.writestr(entry, part)
                content = inner.getvalue()
            target.writestr(name, content)
    assert n_changed > 0
    result.seek(0)
    return result


class TestZips:
    @pytest.mark.parametrize("ours, stock", [(PPO, StockPPO), (TRPO, ContribTRPO)])
    @pytest.mark.parametrize("has_gpu", [True, False])
    def test_those_that_stock_saved_on_a_gpu_open_here(
        self, ours: type[Any], stock: type[Any], has_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as plain:  # torch's own optimizers look at the GPU if there is one
            plain.setattr(th.cuda, "is_available", lambda: False)
            theirs = stock("MlpPolicy", toy(), n_steps=32, batch_size=32, device="cpu").learn(128)
        theirs.save(tmp_path / "model")
        file = saved_on_a_gpu(tmp_path / "model.zip")
        monkeypatch.setattr(th.cuda, "is_available", lambda: has_gpu)
        model = ours.load(file, env=toy())
        assert model.device.type == "cpu"
        assert th.equal(parameter_vector(model.policy), parameter_vector(theirs.policy))
        states = (each.policy.optimizer.state_dict()["state"] for each in (model, theirs))
        for mine, other in zip(*(state.values() for state in states), strict=True):
            assert all(th.equal(mine[key], other[key]) for key in other)
        model.learn(128)

    def test_ours_say_nothing_of_this_machine(self, tmp_path: Path) -> None:
        model = PPO("MlpPolicy", toy(), **SMALL)
        assert vars(model).keys() >= PRIVATE
        model.save(tmp_path / "model")
        with zipfile.ZipFile(tmp_path / "model.zip") as archive:
            for content in (json.loads(archive.read("data")), json.loads(archive.read("policyopt.json"))["attributes"]):
                assert not content.keys() & (PRIVATE | {"device"})
        # Attributes that are none of stock's would be set on stock's model.
        stock = StockPPO.load(tmp_path / "model", device="cpu")
        assert not vars(stock).keys() & PRIVATE

    def test_a_state_that_was_saved_with_a_device_does_not_decide(self, tmp_path: Path) -> None:
        atari(PPO).save(tmp_path / "large")
        small = {"policy_class": type("Small", (ActorCriticCnnPolicy,), {})}
        assert PPO.load(tmp_path / "large", custom_objects={"n_epochs": 1}, device="cpu").policy.sent_to == th.device("cpu")
        assert PPO.load(tmp_path / "large").policy.sent_to == CUDA
        assert PPO.load(tmp_path / "large", device="cpu", custom_objects=small).device.type == "cpu"


class TestRanks:
    @pytest.fixture(autouse=True)
    def two_ranks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "", "MASTER_PORT": 0, "LOCAL_RANK": 3}.items():
            monkeypatch.setenv(name, str(value))
        self.chosen: list[Any] = []
        monkeypatch.setattr(th.cuda, "set_device", self.chosen.append)

    def test_each_takes_its_own_gpu(self) -> None:
        assert atari(PPO).device == CUDA
        assert self.chosen and set(self.chosen) == {1}  # rank 3 of its host, which has two
        self.chosen.clear()
        atari(PPO, device="cuda")
        assert set(self.chosen) == {1}

    def test_on_the_cpu_none_takes_any(self) -> None:
        PPO("MlpPolicy", toy(), **SMALL)
        PPO("MlpPolicy", toy(), **SMALL, device="cpu")
        atari(PPO, device="cuda:0")
        assert self.chosen == []

    def test_they_must_have_chosen_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = PPO("MlpPolicy", toy(), **SMALL)
        monkeypatch.setattr(start, "gather", lambda mine: [mine, {**mine, "the device": "cuda"}])
        with pytest.raises(
            ValueError, match=r"the device differs between the ranks: cpu on rank 0, cuda on rank 1; .*\"auto\""
        ):
            start.check_alike(model)
        assert launcher.rank() == 1


def test_moving_keeps_parameters_and_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From where it is to where it is: the same training goes on, on the same parameter objects."""
    stays, moved = (PPO("MlpPolicy", toy(), **SMALL).learn(128) for _ in range(2))
    before = list(moved.policy.parameters())
    moved.move_to(th.device("cpu"), "a test says so")
    assert all(mine is theirs for mine, theirs in zip(before, moved.policy.parameters(), strict=True))
    assert moved.device_reason == "a test says so"
    for model in (stays, moved):
        model.set_random_seed(1)
        model.learn(256)
    assert th.equal(parameter_vector(stays.policy), parameter_vector(moved.policy))

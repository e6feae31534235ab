"""Zips go both ways: stock SB3 opens ours without this package, and ours opens those of stock SB3."""

import base64
import json
import pathlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.utils import FloatSchedule
from toy_environments import toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "seed": 0, "device": "cpu"}
OURS: dict[str, Any] = {"PPO": PPO, "TRPO": TRPO}
STOCK: dict[str, Any] = {"PPO": StockPPO, "TRPO": ContribTRPO}
# name: class, environment, arguments
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ppo": ("PPO", "CartPole-v1", {}),
    "ppo, everything ours": (
        "PPO",
        "Pendulum-v1",
        {
            "learning_rate": "lin_0.001",
            "clip_range": "lin_0.2",
            "clip_range_vf": lambda progress: 0.1 + progress,
            "ent_coef": "lin_0.01",
            "vf_coef": lambda progress: 0.5,
            "target_kl": "lin_0.02",
            "value_target": "monte_carlo",
            "value_clipping": "pessimistic",
            "kl_stop": "epoch",
            "engine": "autograd",
            "policy_kwargs": {"net_arch": {"pi": [16], "vf": [8, 8]}, "activation_fn": th.nn.ReLU},
        },
    ),
    "ppo, gSDE": ("PPO", "Pendulum-v1", {"use_sde": True, "sde_sample_freq": 4, "micro_batch_size": 16}),
    "trpo": ("TRPO", "CartPole-v1", {}),
    "trpo, everything ours": (
        "TRPO",
        "Pendulum-v1",
        {
            "learning_rate": lambda progress: 1e-3 * progress,
            "target_kl": "lin_0.02",
            "cg_damping": "lin_0.2",
            "value_target": "td_zero",
            "kl_reduction": "mean",
            "line_search": False,
            "engine": "closed_form",
        },
    ),
    "trpo, autograd": ("TRPO", "Pendulum-v1", {"engine": "autograd"}),
}


def observations(env_id: str) -> np.ndarray:
    shape = gym.make(env_id).observation_space.shape
    assert shape is not None
    width = shape[0]
    return np.random.default_rng(0).normal(size=(20, width)).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each of MODELS, trained and saved; and what stock SB3 did with its zip in a process without this package."""
    folder = tmp_path_factory.mktemp("zips")
    models, jobs = {}, []
    for i, (name, (cls, env_id, arguments)) in enumerate(MODELS.items()):
        model = OURS[cls]("MlpPolicy", env_id, **{**SMALL, **arguments}).learn(128)
        path = folder / f"model_{i}"
        model.save(path)
        models[name] = (model, path)
        out = str(folder / f"out_{i}.pt")
        jobs.append({"cls": cls, "env": env_id, "path": str(path), "observations": observations(env_id).tolist(), "out": out})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = pathlib.Path(__file__).parent / "stock_process.py"
    command = [sys.executable, str(script), str(folder / "jobs.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # A schedule or class that stock SB3 could not unpickle would be left out with a warning.
    assert "Could not deserialize" not in done.stderr
    return {name: (*models[name], th.load(job["out"])) for name, job in zip(MODELS, jobs, strict=True)}


@pytest.mark.parametrize("name", MODELS)
def test_stock_sb3_opens_our_zip(name: str, saved: Any) -> None:
    model, _, stock = saved[name]
    actions, _ = model.predict(observations(MODELS[name][1]), deterministic=True)
    np.testing.assert_allclose(stock["actions"], actions, rtol=1e-6)
    assert stock["n_updates"] == model._n_updates
    for key, value in model.policy.state_dict().items():
        assert th.equal(stock["parameters"][key], value)
    state, theirs = model.policy.optimizer.state_dict()["state"], stock["optimizer"]["state"]
    assert state and state.keys() == theirs.keys()
    for index, entries in state.items():
        assert float(entries["step"]) > 0
        for key, value in entries.items():
            assert th.equal(theirs[index][key], value)


@pytest.mark.parametrize("name", MODELS)
def test_our_model_goes_on_from_our_zip_and_from_stock_sb3s(name: str, saved: Any) -> None:
    model, path, _ = saved[name]
    cls, env_id, _ = MODELS[name]
    same = OURS[cls].load(path, env=gym.make(env_id), device="cpu")
    assert same.policy.optimizer.state_dict()["state"].keys() == model.policy.optimizer.state_dict()["state"].keys()
    for key, value in model.policy.state_dict().items():
        assert th.equal(same.policy.state_dict()[key], value)
    for attribute in (
        "value_target",
        "kl_reduction",
        "line_search",
        "value_clipping",
        "kl_stop",
        "engine",
        "micro_batch_size",
    ):
        if hasattr(model, attribute):
            assert getattr(same, attribute) == getattr(model, attribute)
    from_stock = OURS[cls].load(f"{path}_stock", env=gym.make(env_id), device="cpu")
    for loaded in (same, from_stock):
        n_updates = loaded._n_updates
        loaded.learn(64)
        assert loaded._n_updates > n_updates


@pytest.mark.parametrize("name", MODELS)
def test_no_pickle_names_this_package(name: str, saved: Any) -> None:
    with zipfile.ZipFile(saved[name][1].with_suffix(".zip")) as archive:
        data = json.loads(archive.read("data"))
        for member in archive.namelist():
            if member.endswith(".pth"):
                assert b"sb3_policyopt" not in archive.read(member)
    entries = {key: value for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    pickles = {key: base64.b64decode(value[":serialized:"]) for key, value in entries.items()}
    assert len(pickles) > 3  # spaces, policy class, schedules
    assert [key for key, pickle in pickles.items() if b"sb3_policyopt" in pickle] == []


@pytest.mark.parametrize("cls", OURS)
def test_our_model_goes_on_exactly_as_stock_sb3_would(cls: str, tmp_path: Path) -> None:
    """Stock zips open in ours, with parameters, optimizer state and counters."""
    stock = STOCK[cls]("MlpPolicy", "CartPole-v1", **SMALL).learn(128)
    stock.save(tmp_path / "stock")
    ours = OURS[cls].load(tmp_path / "stock", env=gym.make("CartPole-v1"), device="cpu")
    assert ours.num_timesteps == 128 and ours._n_updates == stock._n_updates
    x = observations("CartPole-v1")
    np.testing.assert_array_equal(ours.predict(x, deterministic=True)[0], stock.predict(x, deterministic=True)[0])
    theirs = stock.policy.optimizer.state_dict()["state"]
    for index, entries in ours.policy.optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            assert th.equal(value, theirs[index][key])
    steps = {index: float(entries["step"]) for index, entries in theirs.items()}
    ours.learn(128, reset_num_timesteps=False)
    assert ours.num_timesteps == 256
    for index, entries in ours.policy.optimizer.state_dict()["state"].items():
        assert float(entries["step"]) > steps[index]


@pytest.mark.parametrize("cls", OURS)
def test_the_zoos_custom_objects_load(cls: str, tmp_path: Path) -> None:
    """rl-zoo3's enjoy loads with a zero learning rate and clip range, so that no schedule is unpickled."""
    OURS[cls]("MlpPolicy", "CartPole-v1", **{**SMALL, "learning_rate": "lin_0.001"}).learn(64).save(tmp_path / "model")
    custom_objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = OURS[cls].load(tmp_path / "model", env=gym.make("CartPole-v1"), custom_objects=custom_objects, device="cpu")
    assert model.predict(observations("CartPole-v1"))[0].shape == (20,)
    model.learn(64)


@pytest.mark.parametrize("cls", OURS)
def test_arguments_given_to_load_win_over_the_zip(cls: str, tmp_path: Path) -> None:
    OURS[cls]("MlpPolicy", toy(), target_kl="lin_0.05", **SMALL).learn(256).save(tmp_path / "model")
    model = OURS[cls].load(tmp_path / "model", env=toy(), target_kl=0.03, value_target="td_zero", device="cpu")
    model.learn(256)
    assert model.target_kl == 0.03 and model.value_target == "td_zero"
    model = OURS[cls].load(tmp_path / "model", env=toy(), target_kl="lin_0.5", device="cpu")
    model.learn(512)
    assert model.schedules["target_kl"](0.5) == pytest.approx(0.25)


@pytest.mark.parametrize("cls", OURS)
def test_a_model_loads_without_an_environment(cls: str, tmp_path: Path) -> None:
    OURS[cls]("MlpPolicy", "CartPole-v1", **SMALL).learn(64).save(tmp_path / "model")
    model = OURS[cls].load(tmp_path / "model", device="cpu")
    assert model.predict(observations("CartPole-v1"))[0].shape == (20,)
    model.set_env(model._wrap_env(gym.make("CartPole-v1"), verbose=0))
    model.learn(64)


@pytest.mark.parametrize("cls", OURS)
def test_get_and_set_parameters(cls: str, engine: str, tmp_path: Path) -> None:
    """In place: the engine's vector, the policy and the optimizer stay one."""
    first, second = (OURS[cls]("MlpPolicy", toy(), engine=engine, **{**SMALL, "n_steps": 32, "seed": seed}) for seed in (0, 1))
    first.learn(128)
    second.learn(128)
    second.set_parameters(first.get_parameters())
    for key, value in first.policy.state_dict().items():
        assert th.equal(second.policy.state_dict()[key], value)
    first.save(tmp_path / "first")
    second.learn(128)
    second.set_parameters(tmp_path / "first")
    results = []
    for model in (first, second):
        model.set_env(toy(seed=7))
        model._last_obs = None
        model.set_random_seed(5)
        model.learn(128)
        results.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert th.equal(*results)


def test_the_clip_range_stays_a_schedule_of_sb3s(tmp_path: Path) -> None:
    PPO("MlpPolicy", toy(), clip_range="lin_0.3", **SMALL).save(tmp_path / "model")
    stock = StockPPO.load(tmp_path / "model", device="cpu")
    assert isinstance(stock.clip_range, FloatSchedule) and stock.clip_range(0.5) == pytest.approx(0.15)

"""Zips with masks and memory go both ways: sb3-contrib opens ours without this package, and ours open sb3-contrib's."""

import base64
import copy
import json
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import sb3_contrib
import torch as th
from contrib_twins import masked_toy
from gymnasium.spaces import Box
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from toy_environments import parameter_vector, toy

from sb3_policyopt import PPO, TRPO, MaskablePPO, MaskableTRPO, RecurrentPPO, RecurrentTRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
LSTM = {"lstm_hidden_size": 6, "net_arch": [8]}
# name: our class, policy, environment, arguments, sb3-contrib's class
MODELS: dict[str, tuple[Any, str, str, dict[str, Any], str]] = {
    "masks": (MaskablePPO, "MlpPolicy", "masks", {}, "MaskablePPO"),
    "masks, PPO": (PPO, "MaskableMlpPolicy", "masks", {"ent_coef": "lin_0.01", "engine": "autograd"}, "MaskablePPO"),
    "memory": (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", {"policy_kwargs": LSTM}, "RecurrentPPO"),
    "memory, PPO, two layers": (
        PPO,
        "MlpLstmPolicy",
        "Pendulum-v1",
        {"policy_kwargs": {**LSTM, "n_lstm_layers": 2}, "sequence_length": 4, "clip_range": "lin_0.2"},
        "RecurrentPPO",
    ),
    "memory, gSDE, shared": (
        RecurrentPPO,
        "MlpLstmPolicy",
        "Pendulum-v1",
        {"use_sde": True, "policy_kwargs": {**LSTM, "shared_lstm": True, "enable_critic_lstm": False}},
        "RecurrentPPO",
    ),
}


def make_env(name: str) -> VecEnv:
    return make_vec_env(InvalidActionEnvDiscrete if name == "masks" else name, 2, seed=0)


def observations(env_id: str) -> np.ndarray:
    """Seven steps of three environments."""
    width = cast(Box, make_env(env_id).observation_space).shape[0] if env_id != "masks" else 1
    if env_id == "masks":
        return np.zeros((7, 3, width), np.float32)
    return np.random.default_rng(0).normal(size=(7, 3, width)).astype(np.float32)


def some_masks() -> np.ndarray:
    """Shape (7, 3, 41), InvalidActionEnvDiscrete's number of actions."""
    n = int(InvalidActionEnvDiscrete().action_space.n)
    masks = np.random.default_rng(1).random((7, 3, n)) < 0.1
    masks[..., 0] = True
    return masks


def acted(model: Any, env_id: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Actions and states, as stock_process_for_masks_and_memory.py asks for them."""
    actions, states, state = [], [], None
    for step, rows in enumerate(inputs(model, env_id)):
        named = {"action_masks": some_masks()[step]} if env_id == "masks" else {"state": state}
        action, state = model.predict(rows, episode_start=np.full(3, step == 0), deterministic=True, **named)
        actions.append(action)
        states.append(state)
    return np.array(actions), None if env_id == "masks" else np.array(states)


def inputs(model: Any, env_id: str) -> np.ndarray:
    if env_id != "masks":
        return observations(env_id)
    space = model.observation_space
    return np.random.default_rng(0).integers(0, int(space.n), (7, 3)) if hasattr(space, "n") else observations(env_id)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each of MODELS, trained and saved; and what sb3-contrib did with its zip in a process without this package."""
    folder = tmp_path_factory.mktemp("zips")
    models, jobs = {}, []
    for i, (name, (cls, policy, env_id, arguments, stock)) in enumerate(MODELS.items()):
        model = cls(policy, make_env(env_id), **{**SMALL, **arguments}).learn(64)
        path = folder / f"model_{i}"
        model.save(path)
        models[name] = (model, path)
        masks = some_masks().tolist() if env_id == "masks" else None
        given = inputs(model, env_id).tolist()
        out = str(folder / f"out_{i}.pt")
        jobs.append({"cls": stock, "env": env_id, "path": str(path), "observations": given, "masks": masks, "out": out})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = pathlib.Path(__file__).parent / "stock_process_for_masks_and_memory.py"
    command = [sys.executable, str(script), str(folder / "jobs.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Could not deserialize" not in done.stderr
    return {name: (*models[name], th.load(job["out"], weights_only=False)) for name, job in zip(MODELS, jobs, strict=True)}


@pytest.mark.parametrize("name", MODELS)
def test_sb3_contrib_opens_our_zip_and_acts_the_same(name: str, saved: dict[str, Any]) -> None:
    model, _, stock = saved[name]
    actions, states = acted(model, MODELS[name][2])
    np.testing.assert_allclose(stock["actions"], actions, rtol=1e-5, atol=1e-6)
    if states is not None:
        assert np.abs(states).max() > 1e-3
        np.testing.assert_allclose(stock["states"], states, rtol=1e-5, atol=1e-6)
    assert stock["n_updates"] == model._n_updates
    for key, value in model.policy.state_dict().items():
        assert th.equal(stock["parameters"][key], value)
    state, theirs = model.policy.optimizer.state_dict()["state"], stock["optimizer"]["state"]
    assert state and state.keys() == theirs.keys()
    for index, entries in state.items():
        for key, value in entries.items():
            assert th.equal(theirs[index][key], value)


@pytest.mark.parametrize("name", MODELS)
def test_our_classes_open_our_zip_and_sb3_contribs_and_train_on(name: str, saved: dict[str, Any]) -> None:
    _, path, stock = saved[name]
    ours, _, env_id, _, theirs = MODELS[name]
    counterpart = {"MaskablePPO": MaskablePPO, "RecurrentPPO": RecurrentPPO}[theirs]
    for cls in {PPO, ours, counterpart}:
        same = cls.load(path, env=make_env(env_id), device="cpu")
        actions, states = acted(same, env_id)
        np.testing.assert_allclose(actions, stock["actions"], rtol=1e-5, atol=1e-6)
        if states is not None:
            np.testing.assert_allclose(states, stock["states"], rtol=1e-5, atol=1e-6)
        for loaded in (same, cls.load(f"{path}_stock", env=make_env(env_id), device="cpu")):
            before, vector = loaded._n_updates, parameter_vector(loaded.policy)
            loaded.learn(64)
            assert loaded._n_updates > before and not th.equal(parameter_vector(loaded.policy), vector)
    assert same.sequence_length == MODELS[name][3].get("sequence_length")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_sb3_contribs_goes_on_here_as_there(name: str, saved: dict[str, Any]) -> None:
    """Their zip of a training, opened on both sides, takes the same next updates with the same seed."""
    _, path, _ = saved[name]
    env_id, theirs = MODELS[name][2], getattr(sb3_contrib, MODELS[name][4])
    models: list[Any] = [cls.load(f"{path}_stock", env=make_env(env_id), device="cpu") for cls in (theirs, PPO)]
    models[1].engine = "autograd"
    models[1].sequence_length = None  # which sb3-contrib does not have
    for model in models:
        model.env.seed(1)
        model.set_random_seed(1)
        model.learn(64)
    one, other = (parameter_vector(model.policy) for model in models)
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", MODELS)
def test_no_pickle_names_this_package_and_states_stay_out(name: str, saved: dict[str, Any]) -> None:
    with zipfile.ZipFile(saved[name][1].with_suffix(".zip")) as archive:
        data = json.loads(archive.read("data"))
        for member in archive.namelist():
            if member.endswith(".pth"):
                assert b"sb3_policyopt" not in archive.read(member)
    assert not {"_last_lstm_states", "_last_action_masks", "engine_in_use"} & set(data)
    entries = {key: value for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    pickles = {key: base64.b64decode(value[":serialized:"]) for key, value in entries.items()}
    assert len(pickles) > 3
    assert [key for key, content in pickles.items() if b"sb3_policyopt" in content] == []


OWN: dict[str, tuple[Any, str, Any, dict[str, Any]]] = {
    "masks, TRPO": (MaskableTRPO, "MlpPolicy", masked_toy, {}),
    "memory, TRPO": (RecurrentTRPO, "MlpLstmPolicy", toy, LSTM),
    "gru": (RecurrentPPO, "MlpLstmPolicy", toy, {**LSTM, "rnn": "gru"}),
    "both, PPO": (PPO, "MaskableMlpLstmPolicy", masked_toy, LSTM),
    "both, TRPO, gru": (TRPO, "MaskableMlpLstmPolicy", masked_toy, {**LSTM, "rnn": "gru"}),
    "both, MaskablePPO": (MaskablePPO, "MlpLstmPolicy", masked_toy, LSTM),
}


def own_model(name: str) -> Any:
    cls, policy, env, network = OWN[name]
    arguments = {key: value for key, value in SMALL.items() if key != "n_epochs"}
    return cls(policy, env(), policy_kwargs=network, **arguments).learn(128)


def assert_act_the_same(one: Any, other: Any, masked: bool) -> None:
    states = [None, None]
    for step in range(5):
        rows = np.random.default_rng(step).normal(size=(3, 4)).astype(np.float32)
        masks = {"action_masks": np.eye(4, dtype=bool)[[0, 1, 2]] | (step % 2 == 0)} if masked else {}
        results = [
            model.predict(rows, state, np.full(3, step == 0), deterministic=True, **masks)
            for model, state in zip((one, other), states, strict=True)
        ]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        states = [state for _, state in results]
        if states[0] is not None:
            np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("name", OWN)
def test_models_without_a_stock_class_come_back_the_same(name: str, tmp_path: pathlib.Path) -> None:
    model = own_model(name)
    model.save(tmp_path / "model")
    cls, _, env, _ = OWN[name]
    loaded = cls.load(tmp_path / "model", env=env(), device="cpu")
    assert_act_the_same(model, loaded, env is masked_toy)
    vector = parameter_vector(loaded.policy)
    assert th.equal(vector, parameter_vector(model.policy))
    loaded.learn(128)
    assert not th.equal(vector, parameter_vector(loaded.policy))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_of_a_model_act_and_train_by_themselves(name: str, copied: Callable[[Any], Any]) -> None:
    """In the middle of episodes, too: both go on from the same states to the same parameters."""
    model = own_model(name)
    twin = copied(model)
    assert_act_the_same(model, twin, OWN[name][2] is masked_toy)
    before = parameter_vector(twin.policy)
    for each in (model, twin):
        each.set_random_seed(5)
        each.learn(128, reset_num_timesteps=False)
        if each is model:
            assert th.equal(parameter_vector(twin.policy), before)
    assert th.equal(parameter_vector(model.policy), parameter_vector(twin.policy))


def test_vec_normalize_goes_with_memory(tmp_path: pathlib.Path, engine: str) -> None:
    env = VecNormalize(toy())
    moments = cast(RunningMeanStd, env.obs_rms)
    model = RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=LSTM, engine=engine, **SMALL).learn(128)
    assert moments.count > 128
    assert np.abs(model.rollout_buffer.observations).max() > 1.05, "the toy's observations are within ±1"
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "moments"))
    loaded = RecurrentPPO.load(tmp_path / "model", env=VecNormalize.load(str(tmp_path / "moments"), toy()), device="cpu")
    loaded.learn(128)
    normalize = loaded.get_vec_normalize_env()
    assert normalize is not None and cast(RunningMeanStd, normalize.obs_rms).count > moments.count

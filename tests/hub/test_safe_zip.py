"""Saved agents load from plain JSON and tensors alone, and what cannot is refused."""

import contextlib
import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_policyopt import PPO
from sb3_policyopt.errors import PickleRequiredError
from sb3_policyopt.saving.plain_json import decode, encode
from sb3_policyopt.saving.safe_zip import DESCRIPTION, read_description, without_pickles, write_description

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "bounded box": spaces.Box(np.array([-1.0, 0.1]), np.array([0.3, np.inf]), dtype=np.float64),
    "discrete": spaces.Discrete(5),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "multi binary": spaces.MultiBinary(4),
    "image": IMAGE,
    # The order of the keys is that of the features, and is not the alphabetical one.
    "dict": spaces.Dict(OrderedDict([("z", spaces.Box(-1, 1, (2,))), ("image", IMAGE), ("a", spaces.Discrete(3))])),
}
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32)),
    "discrete": spaces.Discrete(4),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(3),
}


class RandomEnv(gym.Env):
    """Observations at random, no meaning: all that counts are the spaces."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), float(self.np_random.normal()), False, bool(self.np_random.random() < 0.1), {}


def save(model: Any, file: Any) -> Any:
    model.save(file)
    write_description(file, model)
    return file


def load_safely(algorithm: Any, file: Any, env: Any = None, custom_objects: Any = None) -> Any:
    copy, attributes = without_pickles(file, custom_objects)
    return algorithm.load(copy, env=env, device="cpu", custom_objects=attributes)


def make(algorithm: Any, observation_space: Any, action_space: Any, **kwargs: Any) -> Any:
    policy = "MlpPolicy"
    if isinstance(observation_space, spaces.Dict):
        policy = "MultiInputPolicy"
    elif observation_space is IMAGE:
        policy = "CnnPolicy"
    env = RandomEnv(observation_space, action_space)
    return algorithm(policy, env, n_steps=8, batch_size=8, seed=1, device="cpu", **kwargs)


def pickles_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, unpickling by SB3 or torch's unsafe loader is an error, whatever the pickle holds."""

    def explode(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("cloudpickle.loads", explode)
    monkeypatch.setattr("stable_baselines3.common.save_util.cloudpickle.loads", explode)
    monkeypatch.setattr(pickle, "load", explode)
    monkeypatch.setattr(pickle, "loads", explode)


CASES = [(observation, "discrete") for observation in OBSERVATION_SPACES] + [("box", action) for action in ACTION_SPACES]


@pytest.mark.parametrize("algorithm", [StockPPO, ContribTRPO])
@pytest.mark.parametrize(("observation", "action"), CASES)
def test_every_space_and_policy_survives(
    algorithm: Any, observation: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation_space, action_space = OBSERVATION_SPACES[observation], ACTION_SPACES[action]
    model = make(algorithm, observation_space, action_space).learn(8)
    file = save(model, io.BytesIO())

    pickles_explode(monkeypatch)
    file.seek(0)
    loaded = load_safely(algorithm, file, env=RandomEnv(observation_space, action_space))

    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    if isinstance(observation_space, spaces.Dict):
        assert list(loaded.observation_space.spaces) == list(model.observation_space.spaces)
    parameters, expected = loaded.get_parameters(), model.get_parameters()
    th.testing.assert_close(parameters["policy"], expected["policy"], rtol=0, atol=0)
    assert parameters["policy.optimizer"]["state"].keys() == expected["policy.optimizer"]["state"].keys()
    observation_space.seed(0)
    for _ in range(5):
        sample = observation_space.sample()
        np.testing.assert_array_equal(
            loaded.predict(sample, deterministic=True)[0], model.predict(sample, deterministic=True)[0]
        )
    assert loaded.learn(8, reset_num_timesteps=False).num_timesteps == 16


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments",
    [
        {"use_sde": True, "sde_sample_freq": 4, "policy_kwargs": {"log_std_init": -2.0, "ortho_init": False}},
        {"policy_kwargs": {"net_arch": {"pi": [8, 8], "vf": [4]}, "activation_fn": th.nn.ELU}},
        {"policy_kwargs": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9, "eps": 1e-5}}},
        {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5), "clip_range": LinearSchedule(0.2, 0.0, 1.0)},
        {"learning_rate": 7e-4, "clip_range": 0.3, "clip_range_vf": 0.1, "target_kl": 0.02, "normalize_advantage": False},
    ],
)
def test_hyperparameters_survive(arguments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"], **arguments).learn(8)
    file = save(model, io.BytesIO())
    pickles_explode(monkeypatch)
    file.seek(0)
    loaded = load_safely(StockPPO, file, env=RandomEnv(OBSERVATION_SPACES["box"], ACTION_SPACES["box"]))
    for name, value in vars(model).items():
        if isinstance(value, (bool, int, float, str, dict)) and name not in {"start_time", "device"}:
            assert getattr(loaded, name) == value, name
    for schedule in ("lr_schedule", "clip_range"):
        for progress in (1.0, 0.7, 0.3, 0.0):
            assert getattr(loaded, schedule)(progress) == getattr(model, schedule)(progress)
    assert type(loaded.policy.optimizer) is type(model.policy.optimizer)
    loaded.learn(8)


@pytest.mark.fast
def test_stock_load_opens_a_described_zip(tmp_path: Path) -> None:
    """The extra entry disturbs neither the ordinary load nor what it reads."""
    model = make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    path = save(model, tmp_path / "agent.zip")
    stock = StockPPO.load(path, device="cpu")
    th.testing.assert_close(stock.policy.state_dict(), model.policy.state_dict(), rtol=0, atol=0)


@pytest.mark.fast
def test_description_is_strict_json_with_the_facts(tmp_path: Path) -> None:
    path = save(
        make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"], tensorboard_log="/home/me/tb"), tmp_path / "a.zip"
    )
    text = zipfile.ZipFile(path).read(DESCRIPTION).decode()

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    description = json.loads(text, parse_constant=no_constant)
    assert description["algorithm"] == "PPO"
    assert description["policy"] == "MlpPolicy"
    assert description["attributes"]["n_steps"] == 8
    assert (
        description["versions"]["torch"] == th.__version__.split("+")[0] or description["versions"]["torch"] == th.__version__
    )
    assert "/home/me" not in text


# -- hostile and incomplete files -----------------------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.fast
def test_hostile_pickle_is_never_run(tmp_path: Path) -> None:
    model = make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    witness = tmp_path / "pwned"
    model.seed = Bomb(witness)  # stored as a pickle beside the honest attributes
    path = tmp_path / "hostile.zip"
    model.save(path)
    model.seed = 1
    write_description(path, model)

    loaded = load_safely(StockPPO, path)
    assert loaded.seed == 1
    assert not witness.exists()

    with warnings.catch_warnings(), contextlib.suppress(Exception):  # the stock load runs the bomb: the file is really hostile
        warnings.simplefilter("ignore")
        StockPPO.load(path, device="cpu")
    assert witness.exists()


@pytest.mark.fast
def test_hostile_tensor_file_is_never_run(tmp_path: Path) -> None:
    model = make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    witness = tmp_path / "pwned"
    honest = save(model, tmp_path / "honest.zip")
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(tmp_path / "hostile.zip", "w") as target:
        for name in source.namelist():
            if name == "policy.pth":
                buffer = io.BytesIO()
                th.save({"weights": Bomb(witness)}, buffer)
                target.writestr(name, buffer.getvalue())
            else:
                target.writestr(name, source.read(name))
    with pytest.raises(pickle.UnpicklingError):
        load_safely(StockPPO, tmp_path / "hostile.zip")
    assert not witness.exists()


def test_zip_of_stock_sb3_is_refused_with_a_sentence(tmp_path: Path) -> None:
    make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"]).save(tmp_path / "stock.zip")
    with pytest.raises(PickleRequiredError, match=r"stock\.zip has no policyopt\.json.*safe=False"):
        without_pickles(tmp_path / "stock.zip")


class OwnPolicy(ActorCriticPolicy):
    pass


def test_what_only_pickle_can_carry_is_refused_by_name(tmp_path: Path) -> None:
    env = RandomEnv(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    model = StockPPO(OwnPolicy, env, n_steps=8, batch_size=8, learning_rate=lambda p: 1e-3 * p, device="cpu")
    path = save(model, tmp_path / "own.zip")
    with pytest.raises(PickleRequiredError, match=r"policy_class \(.*OwnPolicy\)") as error:
        load_safely(StockPPO, path)
    assert "learning_rate" in str(error.value) and "safe=False" in str(error.value)
    given = {"policy_class": OwnPolicy, "learning_rate": 1e-3, "lr_schedule": FloatSchedule(1e-3)}
    loaded = load_safely(StockPPO, path, custom_objects=given)
    assert type(loaded.policy) is OwnPolicy


def rewritten(source: str, target: Any, description: Any) -> Any:
    """A copy of the zip with another description."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, description if name == DESCRIPTION else old.read(name))
    return target


@pytest.mark.parametrize(
    "name", ["os.system", "torch.nn.Module.__init__", "torch.nn.functional", "torch.load", "builtins.eval"]
)
def test_class_names_outside_the_fixed_set_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="none of the classes"):
        decode({"$class": name})


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    path = save(make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"]), tmp_path / "agent.zip")
    for text in ("{", "[]", "{}", '{"format": 1, "attributes": 3}', '{"format": 2, "attributes": {}}'):
        with pytest.raises(ValueError, match=r"policyopt\.json"):
            read_description(rewritten(path, tmp_path / "damaged.zip", text))
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ValueError, match="not a zip file"):
        read_description(tmp_path / "text.zip")
    with pytest.raises(FileNotFoundError):
        read_description(tmp_path / "missing.zip")
    with pytest.raises(ValueError, match="unknown tag"):
        decode({"$code": "print()"})


@pytest.mark.parametrize(
    "value",
    [
        {"$space": "Box"},
        {"$space": "Text"},
        {"$space": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "object"},
        {"$array": [[1], [2, 3]], "dtype": "float32", "shape": [2]},
        {"$schedule": "FloatSchedule"},
        {"$schedule": "eval"},
        {"$tuple": 3},
        {"$class": 3},
        {"$float": []},
        {"$dict": [1]},
    ],
)
def test_malformed_values_are_reported_with_the_attribute(value: Any, tmp_path: Path) -> None:
    path = save(make(StockPPO, OBSERVATION_SPACES["box"], ACTION_SPACES["box"]), tmp_path / "agent.zip")
    description: Any = read_description(path)
    description["attributes"]["gamma"] = value
    damaged = rewritten(path, tmp_path / "damaged.zip", json.dumps(description))
    with pytest.raises(ValueError, match=r"policyopt\.json in .*damaged\.zip is damaged, at gamma"):
        without_pickles(damaged)


@pytest.mark.parametrize("key", ["env", "tensorboard_log", "_logger", "learn"])
def test_what_no_saved_agent_holds_is_refused_before_it_is_used(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gymnasium would import the module that the id of an environment names."""
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'was imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = save(PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu"), tmp_path / "agent.zip")
    description: Any = read_description(path)
    description["attributes"][key] = "theirs:Foo-v0"
    changed = rewritten(path, tmp_path / "changed.zip", json.dumps(description))
    with pytest.raises(ValueError, match=f"sets '{key}', which no saved agent holds"):
        PPO.load(changed, device="cpu", safe=True)
    assert not (tmp_path / "was imported").exists()


# -- encode and decode ----------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["$class", "$pickle_only", "$tuple"]), inner)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=60, deadline=None)
def test_plain_values_round_trip_through_json(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert back == value
    assert type(back) is type(value)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_float32_arrays_and_boxes_round_trip_exactly(numbers: Any) -> None:
    array = np.array(numbers, dtype=np.float32)
    back = decode(json.loads(json.dumps(encode(array), allow_nan=False)))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    box = spaces.Box(np.minimum(array, 0), np.maximum(array, 0), dtype=np.float32)
    assert decode(json.loads(json.dumps(encode(box), allow_nan=False))) == box


@pytest.mark.fast
@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
        spaces.MultiDiscrete([3, 4], start=[1, -2]),
        spaces.MultiBinary([2, 3]),
        spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}),
    ],
)
def test_spaces_round_trip(space: Any) -> None:
    assert decode(json.loads(json.dumps(encode(space)))) == space


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numpy_scalars_become_python_numbers(value: Any) -> None:
    assert encode(value) == value.item()
    assert type(encode(value)) is type(value.item())


@pytest.mark.fast
@pytest.mark.parametrize("value", [th.nn.Tanh, th.nn.GELU, th.optim.Adam, RolloutBuffer, ActorCriticPolicy])
def test_known_classes_round_trip(value: Any) -> None:
    assert decode(encode(value)) is value


def test_schedules_round_trip_and_zoo_schedule_keeps_its_values() -> None:
    from rl_zoo3.utils import SimpleLinearSchedule

    nested = FloatSchedule(LinearSchedule(0.3, 0.1, 0.8))
    for schedule in (ConstantSchedule(0.1), nested, FloatSchedule(SimpleLinearSchedule("0.01"))):
        back = decode(json.loads(json.dumps(encode(schedule))))
        for progress in np.linspace(0, 1, 11):
            # start + (1 - p)(0 - start) and p · start differ by rounding alone.
            assert back(progress) == pytest.approx(schedule(progress), rel=1e-15, abs=1e-17)

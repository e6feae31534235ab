"""What stock SB3 and sb3-contrib take as an argument, these take, and train with it to the same numbers."""

import copy
import functools
import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from toy_environments import ACTION_SPACES, collect, copy_rollout, start, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}
PASSES: dict[type[Any], dict[str, Any]] = {
    StockPPO: {"n_epochs": 3},
    PPO: {"n_epochs": 3},
    ContribTRPO: {"n_critic_updates": 3},
    TRPO: {"n_critic_updates": 3},
}
"""Where it counts that a model learns and not what."""
COMPARED: dict[type[Any], dict[str, Any]] = {PPO: {"n_epochs": 5}, TRPO: {"n_critic_updates": 5}}
"""Comparisons with stock make more passes, which adds small errors up."""
DISCRETE = ACTION_SPACES["discrete"]
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:Mean of empty slice")


def warm_up(progress: float) -> float:
    return 3e-4 * min(1.0, (1 - progress) / 0.1)


def triangle(progress: float) -> float:
    return 1e-3 * (1 - abs(2 * progress - 1))


def power(progress: float, exponent: int) -> float:
    return 3e-4 * (1 - progress) ** exponent


class Callable:
    def __call__(self, progress: float) -> Any:
        return np.float32(3e-4 * progress)


def zero_d(value: bool | float) -> np.ndarray:
    return np.array(value)


SCHEDULES: dict[str, Any] = {
    "warm-up from 0": warm_up,
    "triangle from 0": triangle,
    "partial": functools.partial(power, exponent=2),
    "object that gives np.float32": Callable(),
    "gives an array": lambda progress: np.array(1e-3 * progress),
    "gives a tensor": lambda progress: th.tensor(1e-3 * progress),
    "gives an int": lambda progress: 0,
    "FloatSchedule": FloatSchedule(1e-3),
    "LinearSchedule from 0": LinearSchedule(0.0, 1e-3, 0.5),
    "ConstantSchedule": ConstantSchedule(1e-3),
}
CLIPPING = {name: SCHEDULES[name] for name in ("warm-up from 0", "gives an array", "LinearSchedule from 0")}
FLAGS: dict[str, Any] = {
    "1": 1,
    "0": 0,
    "np.True_": np.bool_(True),
    "np.False_": np.bool_(False),
    "array": zero_d(False),
    "None": None,
}
SHARED: dict[str, dict[str, Any]] = {
    "learning_rate": {"0": 0, "0.0": 0.0, "np.float64": np.float64(1e-3), **SCHEDULES},
    "n_steps": {"np.int64": np.int64(16), "np.int32": np.int32(8), "array": zero_d(16)},
    "batch_size": {
        "np.int64": np.int64(16),
        "np.uint8": np.uint8(16),
        "larger than the rollout": 1000,
        "tensor": th.tensor(8),
    },
    "gamma": {"0": 0, "1": 1, "True": True, "np.float32": np.float32(0.9)},
    "gae_lambda": {"0": 0, "1": 1, "np.float32": np.float32(0.9)},
    "normalize_advantage": {**FLAGS, "1.0": 1.0, "tensor": th.tensor(True)},
    "use_sde": {"1": 1, "np.True_": np.bool_(True)},
    "sde_sample_freq": {"0": 0, "-2": -2, "4.0": 4.0, "np.int64": np.int64(4)},
    "stats_window_size": {"None": None, "0": 0},
    "seed": {"0": 0, "large": 2**31},
    "verbose": {"False": False, "np.int64": np.int64(0)},
}
OF_PPO = {
    **SHARED,
    "n_epochs": {"np.int64": np.int64(2), "True": True},
    "clip_range": {"inf": math.inf, "np.float64": np.float64(0.1), **CLIPPING},
    "clip_range_vf": {"inf": math.inf, "np.float64": np.float64(0.1), "True": True, **CLIPPING},
    "ent_coef": {"negative": -0.01, "np.float32": np.float32(0.01), "tensor": th.tensor(0.01), "1": 1},
    "vf_coef": {"0": 0, "np.float32": np.float32(0.3), "tensor": th.tensor(0.3)},
    "max_grad_norm": {"0": 0, "0.0": 0.0, "inf": math.inf, "np.float32": np.float32(0.1), "array": zero_d(0.1), "1": 1},
    "target_kl": {"inf": math.inf, "np.float32": np.float32(0.01), "array": zero_d(0.01), "1": 1},
}
OF_TRPO = {
    **SHARED,
    "target_kl": {"0": 0, "np.float32": np.float32(0.01), "1": 1},
    "cg_damping": {"0": 0, "np.float32": np.float32(0.1), "1": 1},
    "cg_max_steps": {"np.int64": np.int64(5), "True": True},
    "line_search_shrinking_factor": {"0": 0, "1": 1, "np.float32": np.float32(0.5), "array": zero_d(0.5)},
    "line_search_max_iter": {"0": 0, "np.int64": np.int64(3)},
    "n_critic_updates": {"0": 0, "np.int64": np.int64(2)},
    "sub_sampling_factor": {"0": 0, "-1": -1, "1.0": 1.0, "np.int64": np.int64(2)},
}


# What stock has no use for, but is the same number.
OURS_ALONE = {
    "learning_rate": {"array": zero_d(1e-3), "np.float32": np.float32(1e-3), "tensor": th.tensor(1e-3)},
    "n_steps": {"tensor": th.tensor(16), "float": 16.0},
    "batch_size": {"float": 16.0},
    "gamma": {"array": zero_d(0.9), "tensor": th.tensor(0.9)},
    "ent_coef": {"array": zero_d(0.01)},
    "vf_coef": {"array": zero_d(0.3)},
    "stats_window_size": {"np.int64": np.int64(5)},
    "seed": {"np.int64": np.int64(3), "float": 3.0},
    "clip_range": {"0": 0, "0 throughout": lambda progress: 0, "np.float32": np.float32(0.1)},
    "clip_range_vf": {"0 throughout": lambda progress: 0},
}


def cases(table: dict[str, dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}: {label}") for name, values in table.items() for label, value in values.items()
    ]


def pair(ours: type[Any], stock: type[Any], name: str, value: Any, **options: Any) -> list[Any]:
    """Models of stock and of ours with the same parameters, the value among their arguments."""
    common: dict[str, Any] = {**SMALL, **COMPARED[ours], name: value}
    space = ACTION_SPACES["box_6"] if "sde" in name else DISCRETE
    if name == "sde_sample_freq":
        common["use_sde"] = True
    models = [
        cls("MlpPolicy", toy(action=space), **copy.deepcopy(common), **extra)
        for cls, extra in ((stock, {}), (ours, {} if common.get("use_sde") else options))
    ]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    return models


def update_both(stock: Any, ours: Any, progress: float = 1.0) -> None:
    """One rollout by stock, one update of both from it, at the same progress and with the same random numbers."""
    if ours._last_obs is None:
        start(ours)
    collect(stock)
    copy_rollout(stock.rollout_buffer, ours.rollout_buffer)
    for model in (stock, ours):
        model._current_progress_remaining = progress
        np.random.seed(7)
        th.manual_seed(7)
        if isinstance(model, TRPO):
            np.random.permutation(model.n_steps * model.n_envs)  # sb3-contrib's, of the samples for the policy
        model.train()


def difference(stock: Any, ours: Any, part: str = "") -> float:
    theirs = ours.policy.state_dict()
    return max(float((v - theirs[name]).abs().max()) for name, v in stock.policy.state_dict().items() if part in name)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("name", "value"), cases(OF_PPO))
def test_ppo_trains_with_it_to_the_parameters_of_stock(name: str, value: Any, engine: str) -> None:
    stock, ours = pair(PPO, StockPPO, name, value, engine=engine)
    # A clip range of exactly 0, as some of the schedules have it at 1, leaves to a rounding error what is clipped.
    for progress in (0.95, 0.5) if "clip" in name else (1.0, 0.95, 0.5):
        update_both(stock, ours, progress)
    assert difference(stock, ours) <= 3e-6


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("name", "value"), cases(OF_TRPO))
def test_trpo_trains_with_it_and_its_critic_is_that_of_stock(name: str, value: Any) -> None:
    """The policies differ on purpose (another solver); the critic, which has parameters of its own, does not."""
    stock, ours = pair(TRPO, ContribTRPO, name, value)
    before = copy.deepcopy(ours.policy.state_dict())
    for progress in (1.0, 0.95, 0.5):
        update_both(stock, ours, progress)
    assert difference(stock, ours, "value") <= 3e-6
    moved = any(not th.equal(v, before[k]) for k, v in ours.policy.state_dict().items() if "value" not in k)
    assert moved == ((name, value) not in [("target_kl", 0), ("line_search_max_iter", 0)])


def learnt(cls: type[Any], name: str, value: Any) -> Any:
    options: dict[str, Any] = {**SMALL, **PASSES[cls], name: value}
    if name == "sde_sample_freq":
        options["use_sde"] = True
    return cls("MlpPolicy", toy(action=ACTION_SPACES["box_1"] if "sde" in name else DISCRETE), **options).learn(128)


def assert_its_zip_opens(model: Any, stock: type[Any], name: str, path: Path) -> None:
    model.save(path)
    with zipfile.ZipFile(path) as file:
        data = json.loads(file.read("data"))
    kept = data.get(name, data.get(f"_{name}"))
    assert isinstance(kept, (bool, int, float, type(None))) or "clip_range" in name or ":serialized:" in kept
    if isinstance(kept, dict):
        assert callable(getattr(model, name)), "a number is not written as a pickle"
    for cls in (stock, type(model)):
        loaded = cls.load(path, env=model.env, device="cpu")
        assert difference(model, loaded) == 0
        loaded.learn(64)


LEARNING = [
    *[pytest.param(PPO, StockPPO, *p.values, id=f"PPO {p.id}") for p in cases(OF_PPO)],
    *[pytest.param(PPO, StockPPO, "target_kl", 0, id="PPO target_kl: 0")],
    *[pytest.param(TRPO, ContribTRPO, *p.values, id=f"TRPO {p.id}") for p in cases(OF_TRPO) if p.values[0] not in SHARED],
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("ours", "stock", "name", "value"), LEARNING)
def test_it_learns_and_its_zip_opens_in_stock(
    ours: type[Any], stock: type[Any], name: str, value: Any, tmp_path: Path
) -> None:
    learnt(stock, name, value)
    assert_its_zip_opens(learnt(ours, name, value), stock, name, tmp_path / "model.zip")


@pytest.mark.parametrize(("name", "value"), cases(OURS_ALONE))
def test_it_is_taken_here_too(name: str, value: Any, tmp_path: Path) -> None:
    assert_its_zip_opens(learnt(PPO, name, value), StockPPO, name, tmp_path / "model.zip")


ASSIGNED = [
    *[(PPO, StockPPO, "ent_coef", value) for value in (-0.01, np.float32(0.01), th.tensor(0.01), 1)],
    *[(PPO, StockPPO, "vf_coef", value) for value in (0, np.float64(0.1), th.tensor(0.1))],
    *[(PPO, StockPPO, "max_grad_norm", value) for value in (0, math.inf, np.float32(0.1))],
    *[(PPO, StockPPO, "target_kl", value) for value in (None, np.float32(0.01), 1)],
    *[(PPO, StockPPO, "n_epochs", value) for value in (np.int64(2),)],
    *[(cls, stock, "batch_size", np.int64(16)) for cls, stock in ((PPO, StockPPO), (TRPO, ContribTRPO))],
    *[
        (cls, stock, "normalize_advantage", flag)
        for cls, stock in ((PPO, StockPPO), (TRPO, ContribTRPO))
        for flag in (0, np.True_)
    ],
    *[
        (PPO, StockPPO, "clip_range", lambda progress: np.float32(0.05)),
        (PPO, StockPPO, "clip_range_vf", lambda progress: th.tensor(0.05)),
    ],
    *[(cls, stock, "lr_schedule", warm_up) for cls, stock in ((PPO, StockPPO), (TRPO, ContribTRPO))],
    *[(TRPO, ContribTRPO, "n_critic_updates", value) for value in (0, np.int64(2))],
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("ours", "stock", "name", "value"), ASSIGNED, ids=lambda x: getattr(x, "__name__", str(x)))
def test_it_may_be_assigned_between_updates(ours: type[Any], stock: type[Any], name: str, value: Any, engine: str) -> None:
    models = pair(ours, stock, "verbose", 0, engine=engine)
    update_both(*models)
    for model in models:
        setattr(model, name, value)
    for progress in (0.98, 0.5):
        update_both(models[0], models[1], progress)
    assert difference(models[0], models[1], "value" if ours is TRPO else "") <= 3e-6


@pytest.mark.parametrize(("ours", "stock"), [(PPO, StockPPO), (TRPO, ContribTRPO)])
@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"custom_objects": {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}},
        {"n_epochs": np.int64(2), "ent_coef": np.float32(-0.01), "n_critic_updates": np.int64(1)},
        {"normalize_advantage": np.False_, "max_grad_norm": math.inf, "cg_damping": 0},
    ],
    ids=["learning_rate", "custom_objects", "NumPy", "flag"],
)
def test_it_may_be_given_to_load(ours: type[Any], stock: type[Any], changes: dict[str, Any], tmp_path: Path) -> None:
    stock("MlpPolicy", toy(), **SMALL).save(tmp_path / "model")
    models = [cls.load(tmp_path / "model", env=toy(), device="cpu", **changes) for cls in (stock, ours)]
    for model in models:
        model.set_random_seed(0)
    for progress in (1.0, 0.5):
        update_both(models[0], models[1], progress)
    assert difference(models[0], models[1], "value" if ours is TRPO else "") <= 3e-6


def test_the_numbers_of_a_zip_of_sb3_contrib_keep_their_meaning(tmp_path: Path) -> None:
    """Its KL divergence is the mean over the dimensions of an action."""
    ContribTRPO("MlpPolicy", toy(), target_kl=0.03, **SMALL).save(tmp_path / "theirs")
    model = TRPO.load(tmp_path / "theirs", env=toy(), device="cpu")
    assert (model.target_kl, model.kl_reduction) == (0.03, "mean")
    with (tmp_path / "theirs.zip").open("rb") as file:
        assert TRPO.load(file).kl_reduction == "mean"
    assert TRPO.load(tmp_path / "theirs", kl_reduction="sum").kl_reduction == "sum"
    model.kl_reduction = "sum"
    model.save(tmp_path / "ours")
    assert TRPO.load(tmp_path / "ours").kl_reduction == TRPO.load(tmp_path / "ours", safe=True).kl_reduction == "sum"


@pytest.mark.parametrize(("ours", "stock"), [(PPO, StockPPO), (TRPO, ContribTRPO)])
@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "clip_range_vf"])
def test_a_schedule_is_called_when_stock_calls_it(ours: type[Any], stock: type[Any], name: str) -> None:
    """A schedule may count its calls, or give another number each time."""
    if ours is TRPO and name != "learning_rate":
        return
    calls = []
    for cls in (stock, ours):
        seen: list[Any] = []

        def schedule(progress: float, seen: list[Any] = seen) -> float:
            seen.append(float(progress))
            return 1e-3 / (1 + len(seen))

        cls("MlpPolicy", toy(), **{**SMALL, name: schedule}).learn(192)
        calls.append(seen)
    assert calls[0] == calls[1] and len(calls[0]) >= 3


@pytest.mark.parametrize("ours", [PPO, TRPO])
@pytest.mark.parametrize("name", ["total_timesteps"])
@pytest.mark.parametrize("value", [192.0, np.int64(192), np.float64(150.5), True, 0])
def test_learn_takes_the_steps_that_stock_takes(ours: type[Any], name: str, value: Any) -> None:
    of_stock: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
    stock = of_stock[ours]
    steps = [cls("MlpPolicy", toy(), **SMALL).learn(**{name: value}).num_timesteps for cls in (stock, ours)]
    assert steps[0] == steps[1]


REFUSED_BY_BOTH: dict[str, list[Any]] = {
    "learning_rate": [None, "3e-4", [1e-3], -1e-3, math.nan],
    "n_steps": [0, -1, 1.5, "8", None],
    "batch_size": [None, 1.5, "8"],
    "n_epochs": [0, 1.5, "8", None],
    "clip_range": [None, "0.1"],
    "clip_range_vf": [0, -0.1],
    "max_grad_norm": [None, "x"],
    "ent_coef": [None, "0.1", [0.1, 0.2]],
    "stats_window_size": [-1, 1.5],
    "seed": [-1, 1.5, "x", "0"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED_BY_BOTH.items() for value in values])
def test_what_stock_refuses_or_dies_of_is_refused_by_name(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {**SMALL, name: value}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with pytest.raises(Exception):  # noqa: B017  of any kind, and somewhere
            StockPPO("MlpPolicy", toy(), **arguments).learn(128)
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
            PPO("MlpPolicy", toy(), _init_setup_model=False, **arguments)


@pytest.mark.parametrize(("ours", "stock"), [(PPO, StockPPO), (TRPO, ContribTRPO)])
def test_a_schedule_that_is_negative_after_the_last_step_is_taken_as_in_stock(ours: type[Any], stock: type[Any]) -> None:
    """The zoo's linear schedules are, where a rollout ends after total_timesteps: 64 steps are asked for and 192 made."""
    rates = []
    for cls in (stock, ours):
        options: dict[str, Any] = {"learning_rate": lambda p: 1e-3 * p}
        if "PPO" in cls.__name__:
            options["ent_coef"] = 0.0
        model = cls("MlpPolicy", toy(), **{**SMALL, **options})
        n_steps = model.n_steps * model.n_envs
        model.learn(n_steps // 2)
        rates.append(model.policy.optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] == pytest.approx(-1e-3)
    if ours is PPO:
        for name in ("clip_range", "ent_coef", "target_kl"):
            PPO("MlpPolicy", toy(), **{**SMALL, name: lambda p: 0.2 * p}).learn(n_steps // 2)

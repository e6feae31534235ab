"""All that is logged are numbers, as in SB3: trackers that write, sum or average metrics take any of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.logger import KVWriter, Logger
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}
COEFFICIENTS = ("learning_rate", "clip_range", "clip_range_vf", "ent_coef", "vf_coef")
SCHEDULES: dict[str, Any] = {
    **dict.fromkeys(COEFFICIENTS, lambda p: np.float32(p)),
    "target_kl": lambda progress: np.array(progress),
}
MODELS: dict[str, Callable[[], Any]] = {
    "PPO closed_form": lambda: PPO("MlpPolicy", toy(), engine="closed_form", **SMALL),
    "PPO autograd": lambda: PPO("MlpPolicy", toy(), engine="autograd", **SMALL),
    "PPO hybrid": lambda: PPO("MultiInputPolicy", toy(OBSERVATION_SPACES["dict"]), **SMALL),
    "PPO discrete": lambda: PPO("MlpPolicy", toy(action=ACTION_SPACES["discrete"]), **SMALL),
    "PPO gSDE": lambda: PPO("MlpPolicy", toy(), use_sde=True, **SMALL),
    "PPO schedules": lambda: PPO("MlpPolicy", toy(), **SMALL, **SCHEDULES),
    "PPO subclass": lambda: WithTerm("MlpPolicy", toy(), **SMALL),
    "TRPO closed_form": lambda: TRPO("MlpPolicy", toy(), engine="closed_form", **SMALL),
    "TRPO autograd": lambda: TRPO("MlpPolicy", toy(), engine="autograd", **SMALL),
    "TRPO hybrid": lambda: TRPO("MultiInputPolicy", toy(OBSERVATION_SPACES["dict"]), **SMALL),
    "TRPO multi_binary": lambda: TRPO("MlpPolicy", toy(action=ACTION_SPACES["multi_binary"]), **SMALL),
    "TRPO kl_exceeded": lambda: TRPO("MlpPolicy", toy(), target_kl=5.0, line_search_max_iter=1, **SMALL),
    "TRPO no line search": lambda: TRPO("MlpPolicy", toy(), line_search=False, kl_reduction="mean", **SMALL),
    "TRPO schedules": lambda: TRPO("MlpPolicy", toy(), target_kl="lin_0.1", cg_damping=lambda p: np.float32(p), **SMALL),
    "TRPO discrete observations": lambda: TRPO("MlpPolicy", toy(OBSERVATION_SPACES["discrete"]), **SMALL),
}


class WithTerm(PPO):
    """Adds a term, as the README's example does."""

    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        loss, terms = super().loss(batch, coefficients)
        size = self.policy.predict_values(batch.observations).pow(2).mean()
        return loss + 1e-3 * size, {**terms, "size": size.detach()}


class Tracker(KVWriter):
    """Keeps every row that a tracker would write."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: Any, key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def tracked(model: Any, **options: Any) -> list[Any]:
    tracker = Tracker()
    model.set_logger(Logger(None, [tracker]))
    model.learn(192, **options)
    return tracker.rows


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_a_number(name: str) -> None:
    rows = tracked(MODELS[name]())
    assert len(rows) >= 3
    logged = {key: value for row in rows for key, value in row.items()}
    assert {key.partition("/")[0] for key in logged} >= {"train", "time"}
    for row in rows:
        for key, value in row.items():
            assert isinstance(value, (int, float)) and not isinstance(value, bool), (key, value, type(value))


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("name", MODELS)
def test_metrics_can_be_averaged(name: str) -> None:
    """``record_mean`` in place of ``record``, as trackers of averages do: the mean of three updates, one by one logged."""
    single = tracked(MODELS[name]())
    model: Any = MODELS[name]()
    tracker = Tracker()
    model.set_logger(Logger(None, [tracker]))
    model.logger.record = model.logger.record_mean
    n_updates = len(single)
    model.learn(192, log_interval=n_updates)
    (row,) = tracker.rows
    for key in single[0]:
        if key.startswith("train/"):
            values = [line[key] for line in single]
            assert row[key] == pytest.approx(np.mean(values), rel=1e-6, nan_ok=True), key


@pytest.mark.parametrize(("ours", "stock"), [(PPO, StockPPO), (TRPO, ContribTRPO)])
def test_a_tracker_of_stock_sees_the_same_kinds_of_values(ours: type[Any], stock: type[Any], engine: str) -> None:
    """What stock logs, ours logs too, each value of the same kind (integer or real)."""
    expected = tracked(stock("MlpPolicy", toy(), **SMALL))[-1]
    row = tracked(ours("MlpPolicy", toy(), engine=engine, **SMALL))[-1]
    for key, value in expected.items():
        assert isinstance(row[key], int) == isinstance(value, (int, np.integer)), key


@pytest.mark.parametrize("reason", ["kl_exceeded", "no_improvement", "zero_step", "non_finite"])
def test_each_reason_of_a_refusal_has_its_indicator(reason: str, engine: str) -> None:
    """TRPO made to fail in each way says so, by one indicator of four."""

    class Poisoned(TRPO):
        def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
            return super().surrogate(batch, log_prob) * float("nan")

    class Worse(TRPO):
        """Has a gradient that no step follows up: every step lowers the surrogate."""

        def surrogate(self, batch: Any, log_prob: th.Tensor) -> th.Tensor:
            ratio = th.exp(log_prob - batch.old_log_prob)
            return -((ratio - 1) ** 2).mean() + 1e-3 * (ratio - ratio.detach()).mean()

    arguments: dict[str, dict[str, Any]] = {
        "kl_exceeded": {"target_kl": 5.0, "line_search_max_iter": 1},
        "zero_step": {"target_kl": 0},
    }
    cls = {"non_finite": Poisoned, "no_improvement": Worse}.get(reason, TRPO)
    chosen: dict[str, Any] = {"engine": engine} if cls is TRPO else {}
    row = tracked(cls("MlpPolicy", toy(), **chosen, **SMALL, **arguments.get(reason, {})))[0]
    told = {key.removeprefix("train/line_search_"): v for key, v in row.items() if key.startswith("train/line_search_")}
    assert told == {**dict.fromkeys(("kl_exceeded", "no_improvement", "non_finite", "zero_step"), 0.0), reason: 1.0}
    assert row["train/is_line_search_success"] == 0

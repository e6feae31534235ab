"""Every coefficient follows a schedule: a number, a callable of progress_remaining, or "lin_X"."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import collect, parameter_vector, toy

from sb3_policyopt import PPO, TRPO

# What each coefficient is logged as.
COEFFICIENTS = [
    *((PPO, name) for name in ("learning_rate", "clip_range", "clip_range_vf")),
    *((PPO, name) for name in ("ent_coef", "vf_coef", "max_grad_norm", "target_kl")),
    *((TRPO, name) for name in ("learning_rate", "target_kl", "cg_damping")),
]
SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 32, "seed": 0, "device": "cpu"}


class Log(BaseCallback):
    """Keeps what is logged: one dict an iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        logger: Any = self.logger
        dump = logger.dump

        def keep_and_dump(step: int = 0) -> None:
            self.rows.append(dict(self.logger.name_to_value))
            dump(step)

        logger.dump = keep_and_dump

    def _on_step(self) -> bool:
        return True


def logged(model: Any, name: str, timesteps: int, callback: Any = None, **options: Any) -> list[float]:
    log = Log()
    model.learn(timesteps, callback=[log, *([callback] if callback else [])], **options)
    return [row[f"train/{name}"] for row in log.rows]


@pytest.mark.parametrize(("cls", "name"), COEFFICIENTS)
@pytest.mark.parametrize("value", ["lin_0.08", lambda progress: 0.08 * progress], ids=["lin_X", "callable"])
def test_the_current_value_is_used_and_logged(cls: type[Any], name: str, value: Any) -> None:
    model = cls("MlpPolicy", toy(), **{**SMALL, name: value})
    # Four iterations of 32 transitions; the update after the k-th sees the progress 1 − k/4.
    assert logged(model, name, 128) == pytest.approx([0.06, 0.04, 0.02, 0.0])
    if name == "learning_rate":
        assert model.policy.optimizer.param_groups[0]["lr"] == 0
    elif name in cls.coefficient_names:
        assert getattr(model, name) == 0  # a plain float, which stock SB3 understands
    else:
        assert getattr(model, name)(0.5) == pytest.approx(0.04)


@pytest.mark.parametrize(("cls", "name"), COEFFICIENTS)
def test_the_schedule_is_what_the_update_uses(cls: type[Any], name: str, engine: str) -> None:
    """A schedule that gives 0.02 at the first update leads where the number 0.02 leads."""
    results = []
    for value in (0.02, lambda progress: 0.02 + 0.3 * (progress - 0.5)):
        model = cls("MlpPolicy", toy(), engine=engine, **{**SMALL, name: value})
        collect(model)
        model._current_progress_remaining = 0.5
        model.train()
        results.append(parameter_vector(model.policy))
    assert th.equal(*results)


class Assign(BaseCallback):
    """Set an attribute of the model at the start of the second rollout, as users of SB3 schedule coefficients."""

    def __init__(self, name: str, value: object) -> None:
        super().__init__()
        self.name, self.value, self.rollouts = name, value, 0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.rollouts == 2:
            setattr(self.model, self.name, self.value)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for cls in (PPO, TRPO) for name in cls.coefficient_names],
    ids=lambda x: getattr(x, "__name__", x),
)
@pytest.mark.parametrize("first", [0.08, "lin_0.08"])
def test_a_coefficient_assigned_during_training_takes_effect(cls: type[Any], name: str, first: float | str) -> None:
    model = cls("MlpPolicy", toy(), **{**SMALL, name: first})
    model.learn(128, callback=Assign(name, 0.05))
    assert getattr(model, name) == 0.05

    model = cls("MlpPolicy", toy(), **{**SMALL, name: first})
    model.learn(128, callback=Assign(name, "lin_0.2"))
    assert getattr(model, name) == 0
    model._current_progress_remaining = 0.5
    model.train()
    assert getattr(model, name) == pytest.approx(0.1)


def test_nonsense_assigned_during_training_is_refused() -> None:
    model = PPO("MlpPolicy", toy(), **SMALL)
    with pytest.raises(ValueError, match="ent_coef"):
        model.learn(128, callback=Assign("ent_coef", "lin_x"))


@pytest.mark.parametrize(("cls", "name"), COEFFICIENTS)
@pytest.mark.parametrize("value", ["lin_0.08", lambda progress: 0.08 * progress], ids=["lin_X", "callable"])
def test_schedules_survive_save_and_load(cls: type[Any], name: str, value: Any, tmp_path: Path) -> None:
    cls("MlpPolicy", toy(), **{**SMALL, name: value}).learn(32).save(tmp_path / "model")
    model = cls.load(tmp_path / "model", env=toy(), device="cpu")
    assert logged(model, name, 128) == pytest.approx([0.06, 0.04, 0.02, 0.0])


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("by", ["kwargs", "custom_objects"])
def test_a_number_given_to_load_replaces_a_schedule_that_ended_at_it(cls: type[Any], by: str, tmp_path: Path) -> None:
    for name in cls.coefficient_names:
        cls("MlpPolicy", toy(), **{**SMALL, name: "lin_0.08"}).learn(32).save(tmp_path / name)
        for value in (0.0, 0.05):
            given: Any = {name: value} if by == "kwargs" else {"custom_objects": {name: value}}
            model = cls.load(tmp_path / name, env=toy(), device="cpu", **given)
            assert name not in model.schedules
            model.learn(64)
            assert getattr(model, name) == value


def test_a_longer_training_goes_on_where_the_schedule_stands() -> None:
    model = PPO("MlpPolicy", toy(), ent_coef="lin_0.08", **SMALL)
    assert logged(model, "ent_coef", 32) == pytest.approx([0.0])
    # SB3 counts the further 96 steps on top of the 32: three iterations, the first of which ends at 64 of 128.
    assert logged(model, "ent_coef", 96, reset_num_timesteps=False) == pytest.approx([0.04, 0.02, 0.0])


@pytest.mark.parametrize("name", ["clip_range", "max_grad_norm"])
def test_an_infinite_coefficient_stays_so_past_the_end_of_training(name: str) -> None:
    """64 steps a rollout: the second ends 28 steps after the 100 that were asked for."""
    infinite: dict[str, Any] = {name: float("inf")}
    model = PPO("MlpPolicy", toy(), n_steps=16, batch_size=16, n_epochs=1, **infinite)
    assert model.learn(100).num_timesteps == 128

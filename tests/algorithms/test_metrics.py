"""What is logged is true, complete, and belongs to the rollout it is logged with."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.logger import configure
from toy_environments import ACTION_SPACES, collect, toy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.maths.terms import value_of

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 24, "seed": 0, "device": "cpu"}
TIME = {"time/iterations", "time/fps", "time/time_elapsed", "time/total_timesteps"}
SHARED = (
    TIME
    | {"rollout/ep_rew_mean", "rollout/ep_len_mean"}
    | {
        f"train/{name}"
        for name in (
            "learning_rate",
            "value_loss",
            "explained_variance",
            "std",
            "std_min",
            "n_updates",
            "grad_norm",
            "skipped_updates",
        )
    }
)
REFUSALS = [f"line_search_{reason}" for reason in ("kl_exceeded", "no_improvement", "non_finite", "zero_step")]
OWN: dict[type[Any], set[str]] = {
    PPO: {
        *("entropy_loss", "policy_gradient_loss", "approx_kl", "clip_fraction", "loss", "clip_range"),
        *("ratio_max", "effective_sample_size"),
    },
    TRPO: {
        *("policy_objective", "kl_divergence_loss", "kl_predicted", "target_kl", "is_line_search_success"),
        *("step_fraction", *REFUSALS, "surrogate_improvement", "cg_iterations", "cg_residual"),
    },
}
STOCK: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")


def rows(model: Any, folder: Path, timesteps: int, **options: Any) -> list[dict[str, str]]:
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(timesteps, **options)
    with open(folder / "progress.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_names_hold_those_of_sb3(cls: type[Any], engine: str, tmp_path: Path) -> None:
    table = rows(cls("MlpPolicy", toy(), engine=engine, **SMALL), tmp_path / "ours", 192)
    stock = rows(STOCK[cls]("MlpPolicy", toy(), **SMALL), tmp_path / "stock", 192)
    assert set(table[0]) >= SHARED | {f"train/{name}" for name in OWN[cls]}
    assert set(table[0]) >= set(stock[-1])
    assert len(table) == 3
    for row in table:  # no row lacks the update of its rollout
        assert all(row[name] != "" for name in row), row


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_row_holds_the_update_made_from_its_rollout(cls: type[Any], engine: str, tmp_path: Path) -> None:
    """Each iteration's own numbers, noted when the update ends, are those of the row with its timestep; the last one too."""
    model = cls("MlpPolicy", toy(), engine=engine, **SMALL)
    train, noted = model.train, []

    def watched() -> None:
        train()
        noted.append((model.num_timesteps, model._n_updates, model.logger.name_to_value["train/value_loss"]))

    model.train = watched
    table = rows(model, tmp_path, 4 * 64)
    logged = [(int(r["time/total_timesteps"]), int(r["train/n_updates"]), float(r["train/value_loss"])) for r in table]
    assert len(noted) == 4 and [x[:2] for x in logged] == [x[:2] for x in noted]
    assert [x[2] for x in logged] == pytest.approx([x[2] for x in noted])
    assert [int(row["time/iterations"]) for row in table] == [1, 2, 3, 4]


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_log_interval(cls: type[Any], tmp_path: Path) -> None:
    table = rows(cls("MlpPolicy", toy(), **SMALL), tmp_path, 5 * 64, log_interval=2)
    assert [int(row["time/iterations"]) for row in table] == [2, 4]
    model = cls("MlpPolicy", toy(), **SMALL)
    model.learn(64, log_interval=None)


def test_ppo_logs_means_over_all_minibatches(engine: str) -> None:
    """64 transitions in minibatches of 24, 24 and 16, two epochs: six minibatches, each counting once, as in SB3."""
    model = PPO("MlpPolicy", toy(action=ACTION_SPACES["box_6"]), engine=engine, n_epochs=2, learning_rate=3e-3, **SMALL)
    collect(model)
    used: Any = model.prepare_engine()
    gradient = used.gradient
    noted: Any = []
    used.gradient = lambda *arguments: noted.append(gradient(*arguments)) or noted[-1]
    model.train()
    log = model.logger.name_to_value
    assert len(noted) == 6
    for name in noted[0]:
        values = [float(value_of(terms[name])) for terms in noted]
        expected = max(values) if name == "ratio_max" else np.mean(values)
        assert log[f"train/{name}"] == pytest.approx(expected, rel=1e-5), name
    assert len({float(terms["approx_kl"]) for terms in noted}) == 6


def test_ppo_terms_by_hand(engine: str) -> None:
    """The first minibatch, before any step: π_θ = π_old, so that ratio, KL, clip fraction and sample size are known."""
    env = toy(action=ACTION_SPACES["discrete"])
    model: Any = PPO(
        "MlpPolicy", env, engine=engine, n_epochs=1, n_steps=16, batch_size=64, ent_coef=0.3, seed=0, device="cpu"
    )
    buffer = collect(model)
    returns, values = buffer.returns.copy(), buffer.values.copy()
    observations = th.as_tensor(buffer.observations.reshape(64, -1))
    with th.no_grad():
        entropy = float(model.policy.get_distribution(observations).entropy().mean())
    value_loss = float(np.mean((returns - values) ** 2))
    model.train()
    log = {name.removeprefix("train/"): value for name, value in model.logger.name_to_value.items()}
    assert log["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert log["effective_sample_size"] == pytest.approx(1, abs=1e-5)
    assert log["approx_kl"] == pytest.approx(0, abs=1e-6) and log["clip_fraction"] == 0
    assert log["entropy_loss"] == pytest.approx(-entropy, rel=1e-5)
    assert log["value_loss"] == pytest.approx(value_loss, rel=1e-4)
    # Normalised advantages have mean zero, and the ratios are one.
    assert log["policy_gradient_loss"] == pytest.approx(0, abs=1e-5)
    assert log["loss"] == pytest.approx(-0.3 * entropy + 0.5 * value_loss, rel=1e-4)
    assert log["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns), rel=1e-4)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_std_of_a_gaussian(cls: type[Any], engine: str) -> None:
    model = cls("MlpPolicy", toy(action=ACTION_SPACES["box_6"]), engine=engine, **SMALL).learn(64)
    std = model.policy.log_std.detach().exp()
    assert model.logger.name_to_value == {} or "train/std" in model.logger.name_to_value
    collect(model)
    model.train()
    std = model.policy.log_std.detach().exp()
    assert model.logger.name_to_value["train/std"] == pytest.approx(float(std.mean()))
    assert model.logger.name_to_value["train/std_min"] == pytest.approx(float(std.min()))


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_success_rate(cls: type[Any], tmp_path: Path) -> None:
    env: Any = toy()

    def step_wait(original: Callable[..., Any] = env.step_wait) -> tuple[Any, ...]:
        observations, rewards, dones, infos = original()
        for done, info in zip(dones, infos, strict=True):
            if done:
                info["is_success"] = True
        return observations, rewards, dones, infos

    env.step_wait = step_wait
    table = rows(cls("MlpPolicy", env, **SMALL), tmp_path, 128)
    assert float(table[-1]["rollout/success_rate"]) == 1.0


def test_trpo_predicted_kl_shrinks_with_the_square_of_the_step(engine: str) -> None:
    """½(βʲΔ)ᵀF(βʲΔ) = β²ʲ δ: what is logged for the step that was taken, not for the one that was tried."""
    model = TRPO("MlpPolicy", toy(), engine=engine, target_kl=0.05, line_search_shrinking_factor=0.5, **SMALL)
    fractions = set()
    for _ in range(8):
        collect(model)
        model.train()
        log = model.logger.name_to_value
        fractions.add(log["train/step_fraction"])
        assert log["train/kl_predicted"] == pytest.approx(0.05 * log["train/step_fraction"] ** 2, rel=1e-3)
    assert fractions & {0.5, 0.25, 0.125}, "no step was shortened, so that this shows nothing"


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_skipped_minibatches_are_counted(cls: type[Any], engine: str) -> None:
    """64 transitions in minibatches of 24, 24 and 16, two passes; the one NaN is in one minibatch of each pass."""
    name_of: dict[type[Any], str] = {PPO: "n_epochs", TRPO: "n_critic_updates"}
    passes = name_of[cls]
    model = cls("MlpPolicy", toy(), engine=engine, **{**SMALL, passes: 2})
    buffer = collect(model)
    buffer.returns[3, 1] = np.nan
    model.train()
    assert model.logger.name_to_value["train/skipped_updates"] == 2

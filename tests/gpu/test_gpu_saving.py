"""What was trained on one device goes on on another: zips both ways, ours and stock's, and exact resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from resume_scenarios import ROLLOUT, Crash, fingerprint, train
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.vec_env import VecEnv
from toy_environments import ACTION_SPACES, IMAGE, VECTOR, parameter_vector, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "seed": 0}
ALGORITHMS: dict[str, tuple[Any, Any]] = {"PPO": (PPO, StockPPO), "TRPO": (TRPO, ContribTRPO)}
gpu = pytest.mark.gpu
WAYS = [
    ("cpu", "cpu"),
    pytest.param("cuda", "cpu", marks=gpu),
    pytest.param("cpu", "cuda", marks=gpu),
    pytest.param("cuda", "cuda", marks=gpu),
]


def optimizer_state(model: Any) -> Any:
    return [entry for _, entry in sorted(model.policy.optimizer.state_dict()["state"].items())]


def assert_same_model(loaded: Any, model: Any) -> None:
    assert th.equal(parameter_vector(loaded.policy).cpu(), parameter_vector(model.policy).cpu())
    states = optimizer_state(model)
    assert states
    for mine, theirs in zip(optimizer_state(loaded), states, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(th.equal(mine[key].cpu(), value.cpu()) for key, value in theirs.items())
    observations = model.observation_space.sample()[None]
    one, other = (each.predict(observations, deterministic=True)[0] for each in (loaded, model))
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("before, after", WAYS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestZips:
    @pytest.fixture
    def env(self) -> VecEnv:
        return toy(VECTOR, ACTION_SPACES["box_6"])

    def test_ours_go_on(self, algorithm: Any, before: str, after: str, env: VecEnv, tmp_path: Path) -> None:
        ours, _ = ALGORITHMS[algorithm]
        model = ours("MlpPolicy", env, **SMALL, device=before).learn(64)
        model.save(tmp_path / "model")
        for safe in (False, True):
            loaded = ours.load(tmp_path / "model", env=env, device=after, safe=safe)
            assert loaded.policy.device.type == loaded.device.type == after
            assert_same_model(loaded, model)
        updates = loaded._n_updates
        loaded.learn(64, reset_num_timesteps=False)
        assert loaded._n_updates > updates and loaded.policy.device.type == after

    def test_stock_opens_ours(self, algorithm: Any, before: str, after: str, env: VecEnv, tmp_path: Path) -> None:
        ours, stock = ALGORITHMS[algorithm]
        model = ours("MlpPolicy", env, **SMALL, device=before).learn(64)
        model.save(tmp_path / "model")
        loaded = stock.load(tmp_path / "model", env=env, device=after)
        assert_same_model(loaded, model)
        loaded.learn(64)

    def test_we_open_stocks(self, algorithm: Any, before: str, after: str, env: VecEnv, tmp_path: Path) -> None:
        ours, stock = ALGORITHMS[algorithm]
        model = stock("MlpPolicy", env, **SMALL, device=before).learn(64)
        model.save(tmp_path / "model")
        for device in (after, "auto"):  # auto is the CPU for so small a model, wherever it was saved
            loaded = ours.load(tmp_path / "model", env=env, device=device)
            assert loaded.policy.device.type == ("cpu" if device == "auto" else after)
            assert_same_model(loaded, model)
            loaded.learn(64)

    def test_parameters_alone(self, algorithm: Any, before: str, after: str, env: VecEnv, tmp_path: Path) -> None:
        ours, _ = ALGORITHMS[algorithm]
        model = ours("MlpPolicy", env, **SMALL, device=before).learn(64)
        model.save(tmp_path / "model")
        other = ours("MlpPolicy", env, **{**SMALL, "seed": 1}, device=after)
        for source in (tmp_path / "model", model.get_parameters()):
            other.set_parameters(source)
            assert_same_model(other, model)
            other.learn(64)


RUNS: dict[str, dict[str, Any]] = {"PPO": {}, "TRPO": {}, "gSDE": {"algorithm": "PPO", "use_sde": True, "sde_sample_freq": 7}}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_to_the_same_bits(name: str, device: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"algorithm": name, **RUNS[name]}
    whole = train(tmp_path / "whole", device=device, **options)
    with pytest.raises(Crash):
        train(tmp_path / "resumed", device=device, crash_at=5.6 * ROLLOUT, **options)
    resumed = train(tmp_path / "resumed", device=device, **options)
    assert resumed.policy.device.type == device
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_auto_resumes_where_the_checkpoint_was_made(algorithm: Any, device: str, tmp_path: Path) -> None:
    """For a network so small auto alone is the CPU."""
    whole = train(tmp_path / "whole", device=device, algorithm=algorithm)
    with pytest.raises(Crash):
        train(tmp_path / "resumed", device=device, crash_at=5.6 * ROLLOUT, algorithm=algorithm)
    resumed = train(tmp_path / "resumed", device="auto", algorithm=algorithm)
    assert resumed.device.type == resumed.policy.device.type == device
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize("before, after", [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.gpu
def test_another_device_goes_on_with_a_warning(before: str, after: str, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        train(tmp_path, device=before, crash_at=5.6 * ROLLOUT)
    with pytest.raises(UserWarning, match=f"was made on {before}.* goes on on {after}"):  # an error in these trainings
        train(tmp_path, device=after)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_model_moves_in_the_middle_of_training(cls: type[Any], device: str) -> None:
    """By the way that resume takes: the optimizer goes with the parameters, which stay the same objects."""
    stays, moves = (cls("CnnPolicy", toy(IMAGE, ACTION_SPACES["discrete"]), **SMALL, device="cpu").learn(64) for _ in range(2))
    before = list(moves.policy.parameters())
    moves.move_to(th.device(device), "a test says so")
    assert all(mine is theirs for mine, theirs in zip(before, moves.policy.parameters(), strict=True))
    assert_same_parameters_and_moments(moves, stays, device)
    moves.learn(64, reset_num_timesteps=False)
    assert moves.policy.device.type == device and moves.num_timesteps == 128


def assert_same_parameters_and_moments(moved: Any, original: Any, device: str) -> None:
    assert th.equal(parameter_vector(moved.policy).cpu(), parameter_vector(original.policy))
    for mine, theirs in zip(optimizer_state(moved), optimizer_state(original), strict=True):
        assert mine["exp_avg"].device.type == device
        assert th.equal(mine["exp_avg"].cpu(), theirs["exp_avg"])

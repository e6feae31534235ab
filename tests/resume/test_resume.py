"""A run that ends at any moment goes on to the same final bits."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resume_scenarios import CONTEXT, ROLLOUT, Crash, CrashAt, fingerprint, lives_until_killed, progress, train
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from toy_environments import Counting

from sb3_policyopt import MaskablePPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.saving import step_context


def interrupted_and_resumed(folder: Path, crash_at: float, **options: Any) -> Any:
    with pytest.raises(Crash):
        train(folder, crash_at=crash_at, **options)
    return train(folder, **options)


SCENARIOS: dict[str, dict[str, Any]] = {
    "PPO": {"algorithm": "PPO"},
    "PPO by autograd": {"algorithm": "PPO", "engine": "autograd"},
    "TRPO": {"algorithm": "TRPO"},
    "TRPO by autograd": {"algorithm": "TRPO", "engine": "autograd"},
    "gSDE": {"algorithm": "PPO", "use_sde": True, "sde_sample_freq": 7},
    "gSDE once a rollout": {"algorithm": "TRPO", "use_sde": True},
    "discrete actions": {"algorithm": "PPO", "env": "CartPole-v1"},
    "MuJoCo": {"algorithm": "TRPO", "env": "Hopper-v5"},
    "in worker processes": {"algorithm": "PPO", "env": "Hopper-v5", "vec_env": SubprocVecEnv},
    "in shared memory": {"algorithm": "PPO", "env": "Hopper-v5", "vec_env": SharedMemoryVecEnv},
    "where the trainer steps": {"algorithm": "PPO", "vec_env": partial(SharedMemoryVecEnv, trainer_steps=True)},
    "all generators in use": {"algorithm": "PPO", "noisy": True},
    "frame stack": {"algorithm": "PPO", "frame_stack": True},
    "schedules": {"algorithm": "PPO", "clip_range": "lin_0.3", "ent_coef": "lin_0.1", "target_kl": "lin_1.0"},
    "masks": {"algorithm": "PPO", "policy": "MaskableMlpPolicy", "env": "MaskedRoute-v0"},
    "memory": {"algorithm": "PPO", "policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 8}},
    "a GRU of two layers, gSDE": {
        "algorithm": "TRPO",
        "policy": "MlpLstmPolicy",
        "policy_kwargs": {"lstm_hidden_size": 8, "rnn": "gru", "n_lstm_layers": 2},
        "use_sde": True,
    },
    "masks and memory": {
        "algorithm": "TRPO",
        "policy": "MaskableMlpLstmPolicy",
        "env": "MaskedWorkshop-v0",
        "policy_kwargs": {"lstm_hidden_size": 8, "enable_critic_lstm": False, "shared_lstm": True},
    },
    "evaluation": {"algorithm": "PPO", "env": "CartPole-v1", "evaluate": True},
}


LONG = ("a GRU of two layers, gSDE",)


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "options", [pytest.param(SCENARIOS[name], marks=[pytest.mark.slow] * (name in LONG), id=name) for name in SCENARIOS]
)
def test_same_final_bits(tmp_path: Path, options: Any) -> None:
    if "Hopper" in options.get("env", ""):
        pytest.importorskip("mujoco")
    whole = train(tmp_path / "whole", **options)
    resumed = interrupted_and_resumed(tmp_path / "resumed", 5.6 * ROLLOUT, **options)
    assert fingerprint(resumed) == fingerprint(whole)
    assert progress(tmp_path / "resumed") == progress(tmp_path / "whole")
    if options.get("evaluate"):
        evaluations = [np.load(tmp_path / run / "evaluations.npz") for run in ("whole", "resumed")]
        for name in ("timesteps", "results", "ep_lengths"):
            np.testing.assert_array_equal(evaluations[0][name], evaluations[1][name])


def test_masks_in_infos_belong_to_the_last_observations(tmp_path: Path) -> None:
    """Counting allows one action in each step of an episode; with other masks than those of the step there is an error."""

    def run(folder: Path, crash_at: float = float("inf")) -> MaskablePPO:
        model = MaskablePPO(
            "MlpPolicy", DummyVecEnv([lambda: Counting("info")]), n_steps=16, batch_size=16, seed=0, device="cpu"
        )
        callbacks = [ResumableCheckpointCallback(folder, save_freq=16), CrashAt(crash_at)]
        return model.learn(64, callback=callbacks)

    whole = run(tmp_path / "whole")
    with pytest.raises(Crash):
        run(tmp_path / "resumed", crash_at=40)
    assert fingerprint(run(tmp_path / "resumed"))["last observations"] == fingerprint(whole)["last observations"]
    weights = [newest_weights(tmp_path / name) for name in ("whole", "resumed")]
    assert weights[0] == weights[1]


def newest_weights(folder: Path) -> list[Any]:
    model = MaskablePPO.load(folder / "rl_model_64_steps.zip", device="cpu")
    return [value.tolist() for value in model.policy.state_dict().values()]


def test_without_its_states_a_policy_with_memory_ends_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of Pendulum have 200 steps, rollouts of an environment 32: the comparison above sees the states."""
    whole = train(tmp_path / "whole", **SCENARIOS["memory"])
    monkeypatch.setattr(step_context, "restore", lambda model, context: None)
    resumed = interrupted_and_resumed(tmp_path / "resumed", 5.6 * ROLLOUT, **SCENARIOS["memory"])
    assert fingerprint(resumed)["states"] != fingerprint(whole)["states"]
    assert fingerprint(resumed)["policy action_net.weight"] != fingerprint(whole)["policy action_net.weight"]


def test_without_the_checkpoint_the_bits_differ(tmp_path: Path) -> None:
    """The comparison above can fail: the state of the environment alone makes a difference."""
    whole = train(tmp_path / "whole")
    other = train(tmp_path / "other", noisy=True)
    differing = {name for name, value in fingerprint(whole).items() if fingerprint(other)[name] != value}
    assert {"policy action_net.weight", "optimizer 0 exp_avg", "generators", "VecNormalize"} <= differing


@settings(max_examples=4)
@given(crashes=st.lists(st.integers(2, 8 * ROLLOUT - 2), min_size=1, max_size=3), save_freq=st.sampled_from((1, 100, 300)))
def test_any_number_of_interruptions(tmp_path_factory: pytest.TempPathFactory, crashes: Any, save_freq: int) -> None:
    options: dict[str, Any] = {"env": "CartPole-v1", "save_freq": save_freq}
    folder = tmp_path_factory.mktemp("runs")
    whole = train(folder / "whole", **options)
    for crash_at in sorted(crashes):
        with pytest.raises(Crash):
            train(folder / "resumed", crash_at=crash_at, **options)
    assert fingerprint(train(folder / "resumed", **options)) == fingerprint(whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    rows = progress(tmp_path)
    # Every step of a rollout would crash.
    again = train(tmp_path, crash_at=0)
    assert fingerprint(again) == fingerprint(first)
    assert progress(tmp_path) == rows


@pytest.mark.skipif(CONTEXT is None, reason="needs processes that start fast")
@pytest.mark.parametrize(
    "kind", ["TRPO", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PPO", "masks and memory"))]
)
def test_kill(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {**SCENARIOS[kind], "save_freq": ROLLOUT}
    options.setdefault("env", "CartPole-v1")
    kills, equal_endings = lives_until_killed(tmp_path, options, kills=5, seed=0)
    assert kills == 5
    assert equal_endings >= 1


@pytest.mark.slow
@pytest.mark.skipif(CONTEXT is None, reason="needs processes that start fast")
@pytest.mark.parametrize("engine", ["autograd", "closed_form"])
@pytest.mark.parametrize("algorithm", ["PPO", "TRPO"])
def test_many_kills(tmp_path: Path, algorithm: str, engine: str) -> None:
    few_passes = {"n_epochs": 2} if algorithm == "PPO" else {"n_critic_updates": 2}
    env = "CartPole-v1" if algorithm == "PPO" else "Pendulum-v1"
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "engine": engine,
        "env": env,
        "save_freq": ROLLOUT,
        "total": 12 * ROLLOUT,
        **few_passes,
    }
    kills, equal_endings = lives_until_killed(tmp_path, options, kills=25, seed=1)
    print(f"{algorithm} {engine}: {kills} kills, {equal_endings} trainings with the same end", flush=True)
    assert kills == 25

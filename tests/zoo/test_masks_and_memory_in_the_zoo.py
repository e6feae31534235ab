"""Masks and memory in the commands of the zoo: trained, evaluated, watched, filmed, searched, drawn and examined."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import rl_zoo3
import strict_route  # noqa: F401  registers StrictRoute-v0
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_policyopt import registry
from sb3_policyopt.cli.main import main
from sb3_policyopt.doctor.report import examine, settings_of
from sb3_policyopt.plots.page import make_figure
from sb3_policyopt.plots.runs import read_run

SHORT = ["n_steps:32", "batch_size:32", "n_envs:2"]
FAMILIES = {
    "masks": ("ppo_mask", "StrictRoute-v0", []),
    "masks for TRPO": ("trpo_mask", "StrictRoute-v0", []),
    "masks by the policy": ("ppo", "StrictRoute-v0", ["policy:'MaskableMlpPolicy'"]),
    "memory": ("ppo_lstm", "CartPoleNoVel-v1", ["policy_kwargs:dict(lstm_hidden_size=8)"]),
    "memory for TRPO": ("trpo_lstm", "CartPoleNoVel-v1", ["policy_kwargs:dict(lstm_hidden_size=8,rnn='gru')"]),
    "both": ("trpo_mask", "StrictRoute-v0", ["policy:'MlpLstmPolicy'", "policy_kwargs:dict(lstm_hidden_size=8)"]),
}


def run(*words: str) -> None:
    assert main(list(words)) == 0


@pytest.mark.parametrize(("algo", "env_id", "params"), FAMILIES.values(), ids=FAMILIES)
def test_train_and_enjoy(
    algo: str,
    env_id: str,
    params: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """StrictRoute raises an error where an evaluation during training, or ``enjoy``, leaves the masks out."""
    monkeypatch.chdir(tmp_path)
    agent = ["--algo", algo, "--env", env_id]
    train = ["-n", "128", "--eval-freq", "64", "--eval-episodes", "2", "--seed", "1", "--device", "cpu"]
    run("train", *agent, *train, "-params", *SHORT, *params)
    folder = tmp_path / "logs" / algo / f"{env_id}_1"
    assert len(np.load(folder / "evaluations.npz")["results"]) == 2 and (folder / "best_model.zip").is_file()
    assert rl_zoo3.ALGOS[algo] is registry.find(algo).load_class()
    capsys.readouterr()
    run("enjoy", *agent, "-f", "logs", "--no-render", "-n", "120", "--load-best", "--stochastic")
    assert re.search(r"Mean reward: -?\d", capsys.readouterr().out)
    assert rl_zoo3.ALGOS[algo] is registry.find(algo).load_class(), "the classes are back"

    read = read_run(folder)
    assert (read.algo, read.env) == (algo, env_id)
    settings = settings_of(read)
    assert (settings["n_steps"], settings["normalize_advantage"]) == (32, True), "the command line's, and the default"
    assert "truncated_minibatch" in examine(read).made
    headings = [
        text.get_text() for part in make_figure([read]).subfigs for text in part.findobj() if hasattr(text, "get_text")
    ]
    assert any(text.startswith(f"{registry.title(algo)}: metrics of the updates") for text in headings)


def test_record_video_uses_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = ["--algo", "ppo_mask", "--env", "StrictRoute-v0"]
    run("train", *agent, "-n", "64", "--eval-freq", "-1", "-params", *SHORT)
    run("record_video", *agent, "-f", "logs", "-n", "40", "--stochastic")
    (video,) = (tmp_path / "logs").rglob("*.mp4")
    assert video.read_bytes()[4:8] == b"ftyp"


def test_other_agents_are_watched_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm of Stable-Baselines3 and an environment without masks."""
    monkeypatch.chdir(tmp_path)
    agent = ["--algo", "a2c", "--env", "CartPole-v1"]
    run("train", *agent, "-n", "80", "--eval-freq", "40", "--eval-episodes", "1")
    run("enjoy", *agent, "-f", "logs", "--no-render", "-n", "50")


@pytest.mark.parametrize("algo", ["ppo_lstm", "trpo_lstm"])
def test_a_search_samples_the_arguments_of_memory(algo: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(20)]
    sampled = [HYPERPARAMS_SAMPLER[algo](trial, 1, 1, {}) for trial in trials]
    for name in ("lstm_hidden_size", "n_lstm_layers", "enable_critic_lstm", "rnn"):
        assert len({arguments["policy_kwargs"][name] for arguments in sampled}) > 1
    assert {"net_arch", "activation_fn"} < set(sampled[0]["policy_kwargs"])
    for trial, arguments in zip(trials, sampled, strict=True):
        assert HYPERPARAMS_CONVERTER[algo](trial.params) == arguments, "what --trial-id loads is what was tried"


def search(folder: Path, algo: str, env_id: str) -> optuna.Study:
    """A real search of two short trials, over the command line."""
    storage = folder / "study.log"
    options = ["-optimize", "--n-trials", "2", "--n-startup-trials", "1", "--n-evaluations", "2", "--eval-episodes", "1"]
    named = [
        "--storage",
        str(storage),
        "--study-name",
        "study",
        "--sampler",
        "random",
        "--pruner",
        "none",
        "--seed",
        "3",
        "--device",
        "cpu",
    ]
    run("train", "--algo", algo, "--env", env_id, "-n", "128", *options, *named)
    backend = optuna.storages.journal.JournalFileBackend(str(storage))
    return optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend))


@pytest.mark.parametrize(
    ("algo", "env_id"), [pytest.param("trpo_mask", "StrictRoute-v0", marks=pytest.mark.slow), ("ppo_lstm", "CartPoleNoVel-v1")]
)
def test_search(algo: str, env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluations of trials use masks; the model of a trial with memory takes what was sampled."""
    monkeypatch.chdir(tmp_path)
    if algo == "ppo_lstm":  # small ones
        small: dict[str, Any] = {"lstm_hidden_size": 8, "n_lstm_layers": 2, "enable_critic_lstm": True, "rnn": "gru"}
        monkeypatch.setitem(HYPERPARAMS_SAMPLER, algo, lambda *_: {"policy_kwargs": small, "n_steps": 16, "batch_size": 32})
    study = search(tmp_path, algo, env_id)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]

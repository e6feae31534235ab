"""
Each fault of rl-zoo3 that is corrected, with a test that fails when the correction can be deleted.

``original`` is rl-zoo3's own function, so that the first half of a test shows the fault and the second that it is gone.
"""

import argparse
import inspect
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3
import strict_route  # noqa: F401  registers StrictRoute-v0
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import exp_manager, load_from_hub, utils
from rl_zoo3.utils import StoreDict
from stable_baselines3.common.vec_env import VecNormalize

import sb3_policyopt.zoo  # noqa: F401  applies the shims
from sb3_policyopt.callbacks.evaluation import EvaluatesWithMasks
from sb3_policyopt.zoo import shims
from sb3_policyopt.zoo.experiment import Experiment

pytestmark = pytest.mark.fast

GONE = "rl-zoo3 has corrected this: delete the function and its test"


def original(function: Callable[..., Any]) -> Callable[..., Any]:
    return inspect.unwrap(function)


def experiment(tmp_path: Path, **options: Any) -> Experiment:
    args = argparse.Namespace(env_kwargs=None)
    defaults: dict[str, Any] = {
        "algo": "ppo",
        "env_id": "CartPole-v1",
        "log_folder": str(tmp_path),
        "eval_freq": -1,
        "verbose": 0,
    }
    return Experiment(args, **{**defaults, **options})


def test_all_are_applied_once() -> None:
    assert set(shims.apply()) == {
        "trial_zero",
        "no_folder_for_a_search",
        "trial_normalises_with_its_own_gamma",
        "trial_keeps_policy_kwargs",
        "values_that_are_not_python",
        "evaluations_with_masks",
        "agents_without_normalisation",
    }, GONE
    assert exp_manager.ExperimentManager is Experiment


def test_trial_zero(tmp_path: Path) -> None:
    storage = f"{tmp_path}/study.log"
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    study = optuna.create_study(storage=journal, study_name="study")
    searched = {
        "one_minus_gamma": 0.25,
        "one_minus_gae_lambda": 0.1,
        "net_arch": "small",
        "activation_fn": "tanh",
        "n_steps_pow": 5,
    }
    distributions = {name: optuna.distributions.CategoricalDistribution([value]) for name, value in searched.items()}
    study.add_trial(optuna.trial.create_trial(params=searched, distributions=distributions, value=1.0))

    stock = experiment(tmp_path, storage=storage, study_name="study", trial_id=0)
    assert original(Experiment.__base__.read_hyperparameters)(stock)[0]["gamma"] == 0.98, GONE
    corrected = experiment(tmp_path, storage=storage, study_name="study", trial_id=0)
    assert corrected.read_hyperparameters()[0]["gamma"] == 0.75


def searching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, policy_kwargs: Any, **options: Any) -> Any:
    """A prepared search on CartPole whose configuration has ``policy_kwargs``, and what its trials build their models with."""
    (tmp_path / "mine.yml").write_text(
        yaml.safe_dump({"CartPole-v1": {"policy": "MlpPolicy", "n_timesteps": 64, "policy_kwargs": policy_kwargs}})
    )
    built: list[dict[str, Any]] = []
    cls = rl_zoo3.ALGOS[algo]

    class Watched(cls):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            built.append(kwargs)
            super().__init__(*args, **{**kwargs, "n_steps": 32, "batch_size": 32})

    monkeypatch.setitem(rl_zoo3.ALGOS, algo, Watched)
    search = experiment(tmp_path, algo=algo, config=str(tmp_path / "mine.yml"), optimize_hyperparameters=True, **options)
    search.n_timesteps, search.n_evaluations, search.n_eval_episodes, search.optimization_log_path = 64, 1, 1, None
    search.setup_experiment()
    return search, built


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
@pytest.mark.parametrize("written", ["text", "mapping"])
def test_trial_keeps_policy_kwargs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, written: str) -> None:
    """Real trials, run by optuna in memory: rl-zoo3's own objective, and the corrected one."""
    text = "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ELU)"
    of_file = text if written == "text" else {"log_std_init": -2, "ortho_init": False, "net_arch": [8]}
    search, built = searching(tmp_path, monkeypatch, algo, of_file)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: original(exp_manager.ExperimentManager.objective)(search, trial), n_trials=1)
    assert set(built[-1]["policy_kwargs"]) == {"net_arch", "activation_fn"}, GONE
    study.optimize(search.objective, n_trials=2)
    for kwargs, trial in zip(built[-2:], study.trials[-2:], strict=True):
        sampled = rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER[algo](trial.params)["policy_kwargs"]
        assert kwargs["policy_kwargs"] == {"log_std_init": -2, "ortho_init": False, **sampled}, "the trial's keys go before"
        assert kwargs["learning_rate"] == trial.params["learning_rate"]
    assert "net_arch" not in search._hyperparams["policy_kwargs"] or written == "mapping", "trials leave no trace"


@pytest.mark.parametrize("given", [None, {"policy_kwargs": "dict(net_arch=[8])"}, {"gamma": 0.5}])
def test_a_loaded_trial_keeps_policy_kwargs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    """Training with a trial builds the model that the trial was; ``-params`` on the command line has the last word."""
    search, built = searching(tmp_path, monkeypatch, "ppo", "dict(ortho_init=False, net_arch=[3])")
    storage = f"{tmp_path}/study.log"
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    optuna.create_study(storage=journal, study_name="study").optimize(search.objective, n_trials=1)
    trained = experiment(
        tmp_path, config=str(tmp_path / "mine.yml"), storage=storage, study_name="study", trial_id=0, hyperparams=given
    )
    hyperparams, saved = trained.read_hyperparameters()
    expected = built[-1]["policy_kwargs"] if "policy_kwargs" not in (given or {}) else given["policy_kwargs"]
    assert hyperparams["policy_kwargs"] == saved["policy_kwargs"] == expected
    assert given != {"gamma": 0.5} or hyperparams["gamma"] == 0.5


@pytest.mark.parametrize("of_file", [None, {}, "dict()"])
def test_a_configuration_without_policy_kwargs(of_file: Any) -> None:
    assert shims.merged_policy_kwargs(of_file, {"net_arch": [8]}) == {"net_arch": [8]}


def test_no_folder_for_a_search(tmp_path: Path) -> None:
    search = experiment(tmp_path, optimize_hyperparameters=True)
    original(Experiment.create_log_folder)(search)
    assert list(tmp_path.rglob("CartPole-v1_1")), GONE
    shutil.rmtree(tmp_path / "ppo")
    assert search.setup_experiment() is None
    assert not list(tmp_path.iterdir())


def test_trial_normalises_with_its_own_gamma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    create = Experiment.create_envs

    def spy(self: Experiment, *args: Any, **kwargs: Any) -> Any:
        env = create(self, *args, **kwargs)
        assert isinstance(env, VecNormalize)
        seen.append(env.gamma)
        return env

    options: dict[str, Any] = {
        "env_id": "MountainCar-v0",
        "optimize_hyperparameters": True,
        "n_timesteps": 32,
        "n_eval_episodes": 1,
        "hyperparams": {"n_envs": 1},
    }
    search = experiment(tmp_path, **options)
    search.setup_experiment()
    monkeypatch.setattr(Experiment, "create_envs", spy)
    fixed = {
        "n_steps_pow": 5,
        "batch_size_pow": 5,
        "one_minus_gamma": 0.02,
        "one_minus_gae_lambda": 0.05,
        "learning_rate": 1e-4,
        "ent_coef": 1e-4,
        "clip_range": 0.2,
        "n_epochs": 1,
        "max_grad_norm": 0.5,
        "net_arch": "tiny",
        "activation_fn": "tanh",
    }
    original(Experiment.objective)(search, optuna.trial.FixedTrial(fixed))
    assert seen == [0.99, 0.99], GONE
    seen.clear()
    search.objective(optuna.trial.FixedTrial(fixed))
    assert seen == [0.98, 0.98]
    assert search.normalize_kwargs["gamma"] == 0.99, "the next trial starts from the configuration again"


def parse(call: Callable[..., None], *words: str) -> dict[str, Any]:
    class Action(argparse.Action):
        __call__ = call

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-params", nargs="+", action=Action, dest="params")
    values: dict[str, Any] = parser.parse_args(["-params", *words]).params
    return values


def test_values_that_are_not_python() -> None:
    with pytest.raises((NameError, SyntaxError)):
        parse(original(StoreDict.__call__), "target_kl:lin_0.01")
        pytest.fail(GONE)
    words = ["target_kl:lin_0.01", "clip_range:'lin_0.2'", "policy_kwargs:dict(net_arch=[8])"]
    assert parse(StoreDict.__call__, *words) == {
        "target_kl": "lin_0.01",
        "clip_range": "lin_0.2",
        "policy_kwargs": {"net_arch": [8]},
    }
    with pytest.raises(argparse.ArgumentError, match="a string in quotes of its own"):
        parse(StoreDict.__call__, "policy:MlpPolicy")


def test_evaluations_with_masks() -> None:
    """Stable-Baselines3's callback, which the zoo has, evaluates an agent with masks without them."""
    from stable_baselines3.common import callbacks

    from sb3_policyopt import MaskablePPO

    assert exp_manager.EvalCallback is not callbacks.EvalCallback
    assert issubclass(exp_manager.TrialEvalCallback, EvaluatesWithMasks)
    model = MaskablePPO("MlpPolicy", "StrictRoute-v0", n_steps=32, batch_size=32, seed=0, device="cpu")
    options: dict[str, Any] = {"eval_freq": 16, "n_eval_episodes": 3, "deterministic": False, "warn": False}
    with pytest.raises(AssertionError, match="a forbidden action"):
        model.learn(64, callback=callbacks.EvalCallback(gym.make("StrictRoute-v0"), **options))
        pytest.fail(GONE)
    evaluation = exp_manager.EvalCallback(gym.make("StrictRoute-v0"), **options)
    model.learn(64, callback=evaluation)
    assert evaluation.last_mean_reward > -1 and evaluation.model is model


def test_agents_without_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent on the Hub that has no vec_normalize.pkl, with the error that huggingface_hub raises for it."""
    import requests
    from huggingface_hub.errors import EntryNotFoundError

    assert not issubclass(EntryNotFoundError, requests.exceptions.HTTPError), GONE
    source = tmp_path / "published"
    source.mkdir()
    for name in ("ppo-CartPole-v1.zip", "config.yml", "args.yml", "env_kwargs.yml"):
        (source / name).touch()
    shutil.make_archive(str(source / "train_eval_metrics"), "zip", source)

    def download(repo_id: str, filename: str) -> str:
        if not (source / filename).is_file():
            raise EntryNotFoundError(f"404: {filename}")
        return str(source / filename)

    monkeypatch.setattr(load_from_hub, "load_from_hub", download)
    load_from_hub.download_from_hub("ppo", EnvironmentName("CartPole-v1"), 1, str(tmp_path), "somebody")
    assert (tmp_path / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()


@pytest.mark.parametrize("command", ["record_training", "benchmark"])
def test_our_children(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shims.children_are_stock(command), GONE
    calls: list[list[str]] = []

    def call(words: list[str], **options: Any) -> int:
        calls.append(words)
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    name = EnvironmentName("ALE/Pong-v5")
    with shims.our_children():
        subprocess.call(["python", "-m", "rl_zoo3.record_video", "--env", "ALE/Pong-v5"])
        subprocess.call(["python", "enjoy.py", "--env", name])
        subprocess.call(["git", "status"])
    assert [words[1:] for words in calls] == [
        ["-m", "sb3_policyopt", "record_video", "--env", "ALE/Pong-v5"],
        ["-m", "sb3_policyopt", "enjoy", "--env", "ALE/Pong-v5"],
        ["status"],
    ]
    with shims.our_children(["mine", "yours"]):
        subprocess.call(["python", "-m", "rl_zoo3.record_video", "--env", "Mine"])
        subprocess.call(["python", "enjoy.py", "--env", "Mine"])
    for words in calls[3:]:
        assert words[-3:] == ["--gym-packages", "mine", "yours"]


@pytest.mark.slow
def test_environments_of_ones_own_are_filmed_and_evaluated(
    tmp_path: Path, process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Only ``train`` and ``enjoy`` of rl-zoo3 take --gym-packages."""
    for command in ("record_video", "record_training", "benchmark"):
        assert "--gym-packages" not in shims.script_source(f"rl_zoo3.{command}"), GONE
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mine(CartPoleEnv): pass\n"
        "gymnasium.register('Mine', 'mine:Mine', max_episode_steps=20)\n"
    )
    agent = "--algo ppo --env Mine"
    small = "-n 64 --eval-freq -1 -params n_envs:1 n_steps:64 batch_size:64 policy:'\"MlpPolicy\"'"
    for command in (
        f"train {agent} {small}",
        f"record_video {agent} -n 5 -o video",
        f"record_video {agent} -n 5 -o two --n-envs 2",
        f"record_training {agent} -n 5 -o film",
        "benchmark --log-dir logs --no-hub -n 50 --benchmark-dir evaluations",
    ):
        options = shlex.split(f"{command} --gym-packages mine")
        result = process(["-m", "sb3_policyopt", *options], tmp_path, PYTHONPATH=os.pathsep.join([*sys.path, str(tmp_path)]))
        assert result.returncode == 0, command + result.stdout[-2000:] + result.stderr[-3000:]
    for folder, name in (("video", "final-model-ppo-Mine-step-0-to-step-5.mp4"), ("film", "training.mp4")):
        assert (tmp_path / folder / name).is_file()
    assert "|ppo" in (tmp_path / "benchmark.md").read_text()


def test_namespaced_environments(tmp_path: Path) -> None:
    """``benchmark`` builds the folder of a run from the raw id, and does not find ALE/Pong-v5 in ALE-Pong-v5_1."""
    assert 'f"{env_id}_{exp_id}"' in shims.script_source("rl_zoo3.benchmark"), GONE
    folder = tmp_path / "ppo" / "ALE-Pong-v5_1" / "ALE-Pong-v5"
    folder.mkdir(parents=True)
    (folder / "args.yml").write_text("env: ALE/Pong-v5\n")
    with shims.namespaced_environments():
        ((algo, env_id),) = utils.get_trained_models(str(tmp_path)).values()
    assert (algo, f"{env_id}_1", env_id.gym_id) == ("ppo", "ALE-Pong-v5_1", "ALE/Pong-v5")
    assert utils.get_trained_models(str(tmp_path)) == {"ppo-ALE-Pong-v5": ("ppo", "ALE/Pong-v5")}


def test_ffmpeg_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 'os.system(f"ffmpeg' in shims.script_source("rl_zoo3.record_training"), GONE
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("ffmpeg") is None
    with shims.ffmpeg_on_path():
        assert shutil.which("ffmpeg") is not None
        assert subprocess.run(["ffmpeg", "-version"], capture_output=True).returncode == 0
    assert os.environ["PATH"] == str(tmp_path)


def test_registration_keeps_the_other_algorithms() -> None:
    assert rl_zoo3.ALGOS["ppo"].__module__ == "sb3_policyopt.ppo"
    assert rl_zoo3.ALGOS["trpo"].__module__ == "sb3_policyopt.trpo"
    assert rl_zoo3.ALGOS["sac"].__module__.startswith("stable_baselines3")
    assert rl_zoo3.ALGOS["ppo_lstm"].__module__ == "sb3_policyopt.recurrent"


def test_a_trial_samples_on_the_joint_scale() -> None:
    """The ranges grow with the action dimensions, as the KL divergence of the whole action does."""
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    for dimensions, scale in ((0, 1), (1, 1), (17, 17)):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=dimensions))
        trials = [study.ask() for _ in range(50)]
        sampled = [HYPERPARAMS_SAMPLER["trpo"](trial, dimensions, 1, {}) for trial in trials]
        radii = np.array([parameters["target_kl"] for parameters in sampled])
        assert np.all((radii >= 0.001 * scale) & (radii <= 0.1 * scale))
        assert np.median(radii) == pytest.approx(0.01 * scale, rel=0.6), "log-uniform around the usual 0.01 per dimension"
        assert HYPERPARAMS_CONVERTER["trpo"](trials[0].params) == sampled[0], "what --trial-id loads is what was tried"


def test_a_search_without_a_finished_trial_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_policyopt.errors import NonFiniteError, UserError

    search = experiment(tmp_path, optimize_hyperparameters=True, n_trials=2, n_timesteps=64, n_startup_trials=1)
    search.setup_experiment()

    def not_finite(*args: Any, **kwargs: Any) -> None:
        raise NonFiniteError("the loss is nan")

    monkeypatch.setattr(rl_zoo3.ALGOS["ppo"], "learn", not_finite)
    with pytest.raises(UserError, match="no trial of the study came to its end"):
        search.hyperparameters_optimization()


def test_private_arguments_stay_out_of_the_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = experiment(tmp_path, n_timesteps=32)
    run.args = SimpleNamespace(storage="mysql://user:secret@host/db", env_kwargs=None, seed=3)
    prepared = run.setup_experiment()
    assert prepared is not None and run.recorder is not None
    assert run.recorder.facts["arguments"] == {"seed": 3}

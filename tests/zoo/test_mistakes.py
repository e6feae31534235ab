"""A mistake of the user is reported in one sentence with exit code 2, and leaves no files."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest

from sb3_policyopt import PPO
from sb3_policyopt.cli import main as command_line
from sb3_policyopt.cli.main import main
from sb3_policyopt.errors import UserError
from sb3_policyopt.zoo import evaluations, preflight, torchrun


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("trian", "no command trian, did you mean train?"),
        ("train --env CartPol-v1", "no environment CartPol-v1, did you mean CartPole-v1?"),
        ("train --algo trop", "no algorithm trop, did you mean trpo?"),
        ("train --algo ppo2 --env CartPole-v1", "no algorithm ppo2, did you mean ppo?"),
        ("train --gym-packages nosuchpackage", "No module named 'nosuchpackage'"),
        ("train -conf nosuch.yml", "-conf nosuch.yml: there is no such file"),
        ("train -conf nosuch.module", "-conf nosuch.module: neither"),
        ("train -conf sb3_policyopt.errors", "has no dictionary called hyperparams"),
        ("train --storage nosuch.log --study-name x --trial-id 0", "--storage nosuch.log: there is no such file"),
        (
            "train --storage sqlite:///x.db --study-name x --trial-id 0",
            "--study-name x: there is no such study in sqlite:///x.db",
        ),
        ("train -i nosuch.zip", "-i nosuch.zip: there is no such .zip file"),
        ("train --nosuchflag", "unrecognized arguments: --nosuchflag"),
        ("train --vec-env threads", "invalid choice: 'threads'"),
        ("train -params gama:0.9", "ppo has no hyperparameter gama, did you mean gamma?"),
        ("train --env-kwargs foo:1", "got an unexpected keyword argument 'foo'"),
        ('train -params "policy_kwargs:dict(foo=1)"', "ActorCriticPolicy.__init__() got an unexpected keyword argument 'foo'"),
        ("train --device gpu", "device must be 'auto', 'cpu', 'cuda'"),
        ("train --algo ppo_mask --env CartPole-v1 -n 100", "does not support action masking"),
        ("train -params gamma:2.0", "gamma must be at least 0 and at most 1, got 2.0"),
        ("train -params policy:MlpPolicy", "a string in quotes of its own"),
        ("train --env HumanoidStandup-v2", "mujoco"),  # Gymnasium's own sentence, of mujoco_py or of where it went
        ("train --seed 99999999999", "--seed must be at most 4294967295, got 99999999999"),
        ("train --n-eval-envs 0", "--n-eval-envs must be at least 1, got 0"),
        ("train -optimize --n-jobs 0", "--n-jobs must be at least 1, got 0"),
        ("train -optimize --n-evaluations 0", "--n-evaluations must be at least 1, got 0"),
        ("enjoy --algo trpo -f logs", "The logs/trpo folder was not found"),
        ("record_video --algo ppo -f logs --exp-id 3", "The logs/ppo/CartPole-v1_3 folder was not found"),
        ("record_training --algo ppo -f logs", "The logs/ppo folder was not found"),
        ("enjoy --algo trpo", "-f FOLDER names another folder than rl-trained-agents"),
        ("record_video --algo trpo", "The rl-trained-agents/trpo folder was not found"),
        ("benchmark --log-dir logs", "no run of the zoo in this folder"),
        ("plot_train -a ppo -e CartPole-v1 -f logs", "no run of ppo on CartPole-v1 in logs"),
        ("all_plots", "say what to draw"),
        ("plot_from_file", "say what to draw"),
        ("plot_from_file -i nosuch", "-i nosuch: there is no such .pkl file"),
    ],
)
def test_one_sentence(command: str, expected: str, capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sb3-policyopt: ") and expected in error
    assert not list(empty_folder.glob("logs/*/*")), "an empty run folder would be the next command's latest run"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("my.yml", "Pendulum-v1:\n  policy: MlpPolicy\n", "Hyperparameters not found for ppo-CartPole-v1"),
        ("my.yml", "CartPole-v1:\n  n_envs: [1\n", "ParserError"),
        ("my.yml", "", "it must be a dictionary of hyperparameters by environment"),
        ("my.yml", "CartPole-v1:\n", "it must be a dictionary of hyperparameters by environment"),
        ("my.yml", "CartPole-v1:\n  n_timesteps: 64\n", "my.yml has no policy for CartPole-v1"),
        ("my.yml", "CartPole-v1:\n  policy: MlpPolicy\n", "my.yml has no n_timesteps for CartPole-v1"),
        ("my.py", "hyperparams = {", "SyntaxError"),
        ("my.py", "parameters = {}", "it has no 'hyperparams'"),
    ],
)
def test_a_mistake_in_a_configuration_is_one_sentence(
    file: str, text: str, expected: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    (empty_folder / file).write_text(text)
    assert main(["train", "--env", "CartPole-v1", "-conf", file]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sb3-policyopt: ") and file in error and expected in error


def test_a_trial_that_is_not_there_or_of_another_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    optuna.create_study(study_name="mine", storage=storage).add_trial(optuna.trial.create_trial(value=1.0))
    for options, expected in (
        ("--study-name other --trial-id 0", "--study-name other: there is no such study in study.log"),
        ("--study-name mine --trial-id 1", "--trial-id 1: there is no such trial in the study mine"),
        ("--study-name mine --trial-id 0", "--study-name mine: it is no search of ppo"),
    ):
        assert main(shlex.split(f"train --env CartPole-v1 --storage study.log {options}")) == 2
        assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_zip_of_another_algorithm_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save("agent.zip")
    assert main(shlex.split("train --algo trpo --env CartPole-v1 -i agent.zip")) == 2
    assert "agent.zip was saved by PPO, and not by TRPO: target_kl" in capsys.readouterr().err


def test_abbreviated_options_are_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("logs/ppo/CartPole-v1_1").mkdir(parents=True)
    assert main(shlex.split("enjoy --algo ppo --env CartPole-v1 -f logs --load-bes --no-render")) == 2
    assert "No model found for ppo on CartPole-v1" in capsys.readouterr().err


def test_torchrun_knows_abbreviated_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "world_size", lambda: 2)
    for search in ("-optimize", "--optimize-hyperparameters", "--optimize"):
        with pytest.raises(UserError, match="runs in one process"), torchrun.training_options(["-n", "-1", search]):
            pass
    options = shlex.split("-n -1 -P --prog --track -params 'n_steps:64' -tb logs --env Pendulum-v1")
    assert torchrun.without_flags(options, *torchrun.SHOWN_ON_RANK_0) == shlex.split(
        "-n -1 -params 'n_steps:64' -tb logs --env Pendulum-v1"
    )


def test_folders_of_namespaced_environments_are_found() -> None:
    """rl-zoo3's plots look for the name of the environment in names of folders, which have - for /."""
    Path("logs/ppo/ALE-Pong-v5_1").mkdir(parents=True)
    given = shlex.split("-a PPO -e ALE/Pong-v5 -f logs")
    evaluations.check_runs(given)
    assert evaluations.with_folder_names(given) == [*given, "-a", "ppo", "-e", "ALE-Pong-v5"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("all_plots -a ppo -e CartPole-v1 -f a b -l one", "-l needs a label for each folder of -f: 2, not 1"),
        ("plot_from_file -i file --merge nosuch.pkl", "--merge nosuch.pkl: there is no such file"),
        ("plot_from_file -i file -iqm -l one", "-l needs a label for each method (a, b): 2, not 1"),
    ],
)
def test_what_plots_are_to_draw_is_there(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    several = {"last_evals": np.zeros(2)}
    Path("file.pkl").write_bytes(pickle.dumps({"CartPole-v1": {"a": several, "b": several}, "results_table": {}}))
    assert main(shlex.split(command)) == 2
    assert expected in capsys.readouterr().err
    evaluations.check_input(shlex.split("-i file -loc best -latex"))  # neither is -l


@pytest.mark.skipif(not hasattr(gym.vector, "AutoresetMode"), reason="Gymnasium 1.0 raises an error of its own in its place")
def test_a_bug_of_an_environment_keeps_its_traceback(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it looks like a wrong hyperparameter."""
    (empty_folder / "buggy.py").write_text(
        textwrap.dedent("""
        import gymnasium as gym
        from gymnasium.envs.classic_control import CartPoleEnv

        class Buggy(CartPoleEnv):
            def __init__(self, **options):
                super().__init__(size=3)

        gym.register("Buggy-v0", "buggy:Buggy")
        """)
    )
    monkeypatch.syspath_prepend(str(empty_folder))
    options = ["-params", "n_envs:1", "policy:'MlpPolicy'", "n_timesteps:64", "--eval-freq", "-1"]
    with pytest.raises(TypeError, match="size"):
        main(["train", "--env", "Buggy-v0", "--gym-packages", "buggy", *options])
    assert not list(empty_folder.glob("logs/*/*"))


@pytest.mark.parametrize(
    "option", ["-f", "--log-folder", "-tb", "--tensorboard-log", "-optimize --n-trials 1 --optimization-log-path"]
)
def test_a_folder_of_train_that_is_a_file(option: str, capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    Path("afile").touch()
    names = {"--log-folder": "-f", "-tb": "--tensorboard-log"}
    for folder in ("afile", "afile/logs"):
        assert main([*shlex.split(f"train --env CartPole-v1 -n 64 {option}"), folder]) == 2
        error = capsys.readouterr().err.strip()
        name = names.get(option, option.split()[-1])
        assert error == f"sb3-policyopt: {name} {folder}: afile is a file, not a folder; name a folder"
    assert [path.name for path in empty_folder.iterdir()] == ["afile"]


@pytest.mark.parametrize("broken", ["reset", "step"])
def test_a_training_that_fails_before_its_first_step_leaves_no_folder(
    broken: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails later leaves its logs, for whoever looks for the reason."""
    (empty_folder / f"broken_{broken}.py").write_text(
        textwrap.dedent(f"""
        import gymnasium as gym
        from gymnasium.envs.classic_control import CartPoleEnv

        class Broken(CartPoleEnv):
            steps = 0

            def reset(self, **options):
                if {broken == "reset"}:
                    raise RuntimeError("a bug")
                return super().reset(**options)

            def step(self, action):
                self.steps += 1
                if self.steps > 20:
                    raise RuntimeError("a bug")
                return super().step(action)

        gym.register("Broken-{broken}-v0", Broken)
        """)
    )
    monkeypatch.syspath_prepend(str(empty_folder))
    options = ["-params", "n_envs:1", "policy:'MlpPolicy'", "n_timesteps:64", "--eval-freq", "-1"]
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "--env", f"Broken-{broken}-v0", "--gym-packages", f"broken_{broken}", "-i", trained(), *options])
    assert bool(list(empty_folder.glob("logs/*/*"))) == (broken == "step")


def trained() -> str:
    """A model of which a training goes on, which has made more steps than the new training will."""
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(128).save("trained.zip")
    return "trained.zip"


def test_numbers_of_train_that_are_allowed() -> None:
    for options in ("--seed -1", "--seed 4294967295", "-optimize --n-jobs -1", "--n-jobs 2"):
        preflight.check_training(options.split())


def test_a_checkpoint_of_another_seed_is_one_sentence(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = "callback:[{'sb3_policyopt.callbacks.ResumableCheckpointCallback':{'path':'checkpoints','save_freq':64}}]"
    options = ["--algo", "ppo", "--env", "CartPole-v1", "--eval-freq", "-1", "-n", "128", "-params", callback]
    options += ["n_envs:1", "n_steps:64", "batch_size:64"]
    assert main(["train", *options, "--seed", "4"]) == 0
    assert main(["train", *options, "--seed", "5"]) == 2
    assert "its seed is 4" in capsys.readouterr().err
    assert [path.name for path in empty_folder.glob("logs/ppo/*")] == ["CartPole-v1_1"]


def test_a_process_exits_with_the_code_and_without_traceback(
    empty_folder: Path, process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    result = process(["-m", "sb3_policyopt", "train", "--env", "CartPol-v1"], empty_folder)
    assert result.returncode == 2
    assert result.stderr == (
        "sb3-policyopt: there is no environment CartPol-v1, did you mean CartPole-v1? "
        "(--gym-packages MODULE imports the module that registers one of your own)\n"
    )


MISSING = [
    "train --env NoSuchEnv-v0",
    "train -i nosuch.zip",
    "enjoy --algo ppo --env CartPole-v1 -f logs --no-render",
    "record_video --algo ppo --env CartPole-v1 -f logs",
    "record_training --algo ppo --env CartPole-v1 -f logs",
    "benchmark --log-dir logs --no-hub",
    "plot logs/ppo/CartPole-v1_1",
    "doctor logs/ppo/CartPole-v1_1",
    "plot_train -a ppo -e CartPole-v1 -f logs",
    "all_plots -a ppo -e CartPole-v1 -f logs -o results",
    "plot_from_file -i results",
    "push_to_hub --algo ppo --env CartPole-v1 -f logs -orga me",
    "load_from_hub --algo sac --env CartPole-v1 -orga me -f logs",
]
NOT_UNDERSTOOD = [f"{name} --nosuchflag" for name in command_line.COMMANDS]
UNREADABLE = ["plot damaged", "doctor damaged", "push_to_hub --algo ppo --env CartPole-v1 -f damaged_logs -orga me"]


def test_every_command_is_asked_for_what_is_missing() -> None:
    assert {command.split()[0] for command in MISSING} == set(command_line.COMMANDS)


@pytest.mark.parametrize("command", [*MISSING, *NOT_UNDERSTOOD, *UNREADABLE])
def test_one_policy_of_exit_codes(command: str, capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    """What is missing, not understood or unreadable is one sentence and 2, whatever the command."""
    (empty_folder / "damaged").mkdir()
    (empty_folder / "damaged" / "progress.csv").write_bytes(b"no log at all")
    run = empty_folder / "damaged_logs" / "ppo" / "CartPole-v1_1"
    run.mkdir(parents=True)
    (run / "CartPole-v1.zip").write_bytes(b"half a z")
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().splitlines()[-1].startswith("sb3-policyopt: ")
    assert captured.err.count("sb3-policyopt: ") == 1 and "Traceback" not in captured.err


@pytest.mark.parametrize(
    "command",
    ["plot nowhere", "doctor nowhere", "push_to_hub --algo ppo --env CartPole-v1 -f logs -orga me", "plot --nosuchflag x"],
)
def test_processes_exit_alike(
    command: str, empty_folder: Path, process: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    result = process(["-m", "sb3_policyopt", *command.split()], empty_folder)
    assert result.returncode == 2
    assert result.stderr.startswith("sb3-policyopt: ") and result.stderr.count("\n") == 1


def test_a_missing_extra_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    for name in [name for name in sys.modules if name.startswith("sb3_policyopt.zoo")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train"]) == 2
    assert "train needs rl_zoo3, which is not installed: pip install 'sb3-policyopt[zoo]'" in capsys.readouterr().err


def test_a_missing_environment_package_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    assert main(["train", "--env", "LunarLander-v3", "-n", "10"]) == 2
    assert "pip install 'sb3-policyopt[envs]'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(command_line, "resolve", lambda command: broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train"])


def test_an_interrupted_command_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "resolve", lambda command: interrupted)
    assert main(["train"]) == 130


def test_ctrl_c_ends_a_training_with_130_after_saving_it(tmp_path: Path) -> None:
    command = (
        "train --algo ppo --env Pendulum-v1 -n 10000000 --seed 0 --eval-freq -1 -params n_envs:1 n_steps:64 batch_size:64"
    )
    run = tmp_path / "logs" / "ppo" / "Pendulum-v1_1"
    with subprocess.Popen(
        [sys.executable, "-m", "sb3_policyopt", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not ((run / "progress.csv").is_file() and (run / "progress.csv").stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert (run / "Pendulum-v1.zip").is_file()
    assert json.loads((run / "provenance.json").read_text())["finished"] is False


def test_a_training_that_meets_nan_fails_with_1(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "nan_environment.py").write_text(
        "import gymnasium\n"
        "class NanReward(gymnasium.Wrapper):\n"
        "    def step(self, action):\n"
        "        observation, _, *rest = self.env.step(action)\n"
        "        return observation, float('nan'), *rest\n"
        "gymnasium.register('NanReward-v0', lambda: NanReward(gymnasium.make('CartPole-v1')))\n"
    )
    monkeypatch.syspath_prepend(str(empty_folder))
    options = "--env NanReward-v0 --gym-packages nan_environment -n 4096 --eval-freq -1"
    assert main(["train", *options.split()]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("sb3-policyopt: ")
    (provenance,) = empty_folder.rglob("provenance.json")
    assert json.loads(provenance.read_text())["finished"] is False

"""The commands of rl-zoo3 on real environments, each in a process of its own."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sb3_policyopt.cli.main import COMMANDS, main

Run = Callable[..., subprocess.CompletedProcess[str]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_train_leaves_a_whole_run_folder(workplace: Path) -> None:
    run = workplace / "logs" / "trpo" / "CartPole-v1_1"
    assert {path.name for path in run.iterdir()} >= {
        "CartPole-v1.zip",
        "best_model.zip",
        "rl_model_1024_steps.zip",
        "rl_model_2048_steps.zip",
        "evaluations.npz",
        "progress.csv",
        "provenance.json",
    }
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["algorithm"] == "sb3_policyopt.trpo.TRPO"
    assert provenance["finished"] and provenance["total_timesteps"] == provenance["requested_timesteps"] == 2048
    assert provenance["seed"] == provenance["arguments"]["seed"] == 1
    assert provenance["hyperparameters"]["cg_damping"] == 0.001, "from trpo.yml"
    assert provenance["hyperparameters"]["target_kl"] == 0.01, "the default of the class"
    assert provenance["git"] is None, "the folder is no git repository"
    # 2 environments of 512 steps: two iterations, each with its own row, and four evaluations between them.
    progress = rows(run / "progress.csv")
    iterations = [row for row in progress if row["time/iterations"]]
    assert [row["time/total_timesteps"] for row in iterations] == ["1024", "2048"]
    assert all(0 < float(row["train/kl_divergence_loss"]) <= 0.0101 for row in iterations)
    assert sum(bool(row["eval/mean_reward"]) for row in progress) == 4


def test_enjoy_finds_the_runs_of_train_without_a_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert main(["enjoy", "--algo", "trpo", "--env", "CartPole-v1", "--no-render", "-n", "100"]) == 0
    assert "Loading latest experiment, id=1" in capsys.readouterr().out


def test_enjoy_evaluates_the_agent(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    agent = ["--algo", "trpo", "--env", "CartPole-v1", "-f", "logs"]
    assert main(["enjoy", *agent, "--no-render", "-n", "600", "--load-best"]) == 0
    output = capsys.readouterr().out
    assert "best_model.zip" in output and "Mean reward:" in output


@pytest.mark.slow
def test_benchmark_evaluates_in_our_own_children(workplace: Path, cli: Run) -> None:
    """The stock command starts an ``enjoy.py`` of the current folder, which does not exist."""
    cli(workplace, "benchmark --log-dir logs --no-hub -n 400 --num-threads 1 --benchmark-dir evaluations")
    table = [line for line in (workplace / "benchmark.md").read_text().splitlines() if line.startswith("|trpo|CartPole-v1")]
    assert len(table) == 1


def test_figures_are_written_where_no_window_can_show_them(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = str(workplace / "logs")
    assert main(["plot_train", "-a", "TRPO", "-e", "CartPole-v1", "-f", logs, "-w", "5"]) == 0
    assert main(["all_plots", "-a", "trpo", "-e", "CartPole-v1", "-f", logs, "-o", "results", "--no-million"]) == 0
    for name in ("plot_train_1.png", "all_plots_1.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "results.pkl").is_file()
    assert main(["plot_from_file", "-i", "results"]) == 2, "it compares several runs, and there is one"


def test_plot_from_file_compares_two_runs(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = workplace / "logs" / "trpo" / "CartPole-v1_1"
    for number in (1, 2):
        copy = tmp_path / "logs" / "trpo" / f"CartPole-v1_{number}"
        copy.mkdir(parents=True)
        (copy / "evaluations.npz").write_bytes((run / "evaluations.npz").read_bytes())
    assert main(["all_plots", "-a", "trpo", "-e", "CartPole-v1", "-f", "logs", "-o", "results", "--no-display"]) == 0
    assert main(["plot_from_file", "-i", "results", "-b", "-o", "comparison", "--format", "png"]) == 0
    assert list(tmp_path.glob("*.png"))


KINDS = pytest.mark.parametrize(
    ("algo", "env_id", "options"),
    [
        ("ppo", "InvertedPendulum-v5", "-n 64"),
        ("trpo", "LunarLanderContinuous-v3", "-n 256 -params n_steps:128"),
        ("trpo", "ALE/Pong-v5", "-n 32 -params n_steps:16 n_envs:2 sub_sampling_factor:1"),
    ],
    ids=["MuJoCo", "Box2D", "Atari"],
)


@KINDS
def test_train_on_other_kinds_of_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, env_id: str, options: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(f"train --algo {algo} --env {env_id} --seed 0 --eval-freq -1 {options}".split()) == 0
    name = env_id.replace("/", "-")
    run = tmp_path / "logs" / algo / f"{name}_1"
    assert (run / f"{name}.zip").is_file()
    configuration = yaml.unsafe_load((run / name / "config.yml").read_text())
    assert (run / name / "vecnormalize.pkl").is_file() == configuration.get("normalize", False)


@pytest.mark.slow
@KINDS
def test_train_evaluate_film_and_tabulate(tmp_path: Path, cli: Run, algo: str, env_id: str, options: str) -> None:
    """All commands in turn, on a machine without a display."""
    agent = f"--algo {algo} --env {env_id}"
    name = env_id.replace("/", "-")
    without_display: dict[str, Any] = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "MUJOCO_GL": ""}
    cli(tmp_path, f"train {agent} --eval-freq 32 {options}")
    assert f"{name}.zip" in cli(tmp_path, f"enjoy {agent} -f logs --no-render -n 50").stdout
    cli(tmp_path, f"record_video {agent} -f logs -n 20", **without_display)
    (video,) = (tmp_path / "logs" / algo / f"{name}_1" / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000
    cli(tmp_path, "benchmark --log-dir logs --no-hub -n 1200 --num-threads 1 --benchmark-dir evaluations")
    assert f"|{algo}|{name}" in (tmp_path / "benchmark.md").read_text().replace(" ", "")


@pytest.mark.slow
def test_record_training_films_every_checkpoint(workplace: Path, cli: Run) -> None:
    """The stock command starts children without our registration, and an ffmpeg that need not be installed."""
    cli(workplace, "record_training --algo trpo --env CartPole-v1 -f logs -n 30 --gif")
    names = {path.name for path in (workplace / "logs" / "trpo" / "CartPole-v1_1" / "videos").iterdir()}
    assert {"training.mp4", "training.gif"} <= names
    assert sum(name.startswith("checkpoint") for name in names) == 2


@pytest.mark.slow
def test_training_goes_on_from_a_zip_in_subprocesses(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-i`` with VecNormalize, evaluation, and environments in processes of their own."""
    params = "-params normalize:True n_steps:128 target_kl:lin_0.02 cg_damping:lin_0.1"
    common = f"--algo trpo --env Pendulum-v1 -n 512 --seed 3 {params}"
    monkeypatch.chdir(tmp_path)
    assert main(f"train {common} --eval-freq -1".split()) == 0
    cli(tmp_path, f"train {common} -i logs/trpo/Pendulum-v1_1/Pendulum-v1.zip --vec-env subproc --eval-freq 256")
    run = tmp_path / "logs" / "trpo" / "Pendulum-v1_2"
    assert (run / "Pendulum-v1" / "vecnormalize.pkl").is_file() and (run / "evaluations.npz").is_file()
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["continued_from"] == "logs/trpo/Pendulum-v1_1/Pendulum-v1.zip"
    # Two iterations: the linear schedule of target_kl has lost half of its value at the first, and all at the end.
    radii = [float(row["train/target_kl"]) for row in rows(run / "progress.csv") if row["time/iterations"]]
    assert radii == pytest.approx([0.01, 0.0])


SEARCH = "-optimize --n-trials 1 --n-startup-trials 1 --eval-episodes 1 --no-optim-plots -n 128"


@pytest.mark.parametrize("storage", [pytest.param("study.log", marks=pytest.mark.slow), "sqlite:///study.db"])
def test_a_search_and_its_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.chdir(tmp_path)
    study = f"--algo trpo --env CartPole-v1 --storage {storage} --study-name study"
    assert main(f"train {study} {SEARCH} --seed 0".split()) == 0
    assert len(list(tmp_path.glob("logs/trpo/report_*.csv"))) == 1
    assert not list(tmp_path.glob("logs/trpo/CartPole-v1_*")), "an empty run folder would be the latest run"
    assert main(f"train {study} --trial-id 0 -n 64 --eval-freq -1".split()) == 0
    (path,) = tmp_path.glob("logs/trpo/CartPole-v1_1/provenance.json")
    used = json.loads(path.read_text())["hyperparameters"]
    (report,) = (rows(report)[0] for report in tmp_path.glob("logs/trpo/report_*.csv"))
    for name in ("target_kl", "cg_damping", "learning_rate", "n_critic_updates"):
        assert float(used[name]) == pytest.approx(float(report[f"params_{name}"])), name


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    command = f"-m sb3_policyopt train --algo trpo --env Pendulum-v1 --storage study.log --study-name study {SEARCH}"
    searches = [
        subprocess.Popen([sys.executable, *command.split(), "--seed", str(seed)], cwd=tmp_path, stdout=subprocess.DEVNULL)
        for seed in (0, 1)
    ]
    assert [search.wait(timeout=300) for search in searches] == [0, 0]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    assert len(optuna.load_study(study_name="study", storage=storage).trials) == 2


def test_the_stock_command_trains_our_class(tmp_path: Path, process: Run) -> None:
    command = "-m rl_zoo3.train --algo trpo --env CartPole-v1 -n 1024 --eval-freq -1 --gym-packages sb3_policyopt.zoo"
    result = process(command.split(), tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "logs" / "trpo" / "CartPole-v1_1"
    assert json.loads((run / "provenance.json").read_text())["algorithm"] == "sb3_policyopt.trpo.TRPO"
    with zipfile.ZipFile(run / "CartPole-v1.zip") as file:
        assert "sb3_policyopt" not in file.read("data").decode(), "the zip opens without this package"


@pytest.mark.slow
def test_the_stock_enjoy_loads_our_class(workplace: Path, process: Run) -> None:
    """It prints a mean only of whole episodes, and the longest takes 500 steps."""
    command = "-m rl_zoo3.enjoy --algo trpo --env CartPole-v1 -f logs -n 600 --no-render --gym-packages sb3_policyopt.zoo"
    result = process(command.split(), workplace)
    assert result.returncode == 0 and "Mean reward:" in result.stdout, result.stderr


@pytest.mark.parametrize("configuration", ["yaml", "python", "module"])
def test_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], configuration: str
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"CartPole-v1": {"policy": "MlpPolicy", "n_steps": 32, "batch_size": 32, "n_timesteps": 64, "gamma": 0.5}}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(entry))
    (tmp_path / "mine.py").write_text(f"hyperparams = {entry!r}")
    given = {"yaml": "mine.yml", "python": "mine.py", "module": "sb3_policyopt.hyperparams.ppo"}[configuration]
    for _ in range(2):  # twice in one process: rl-zoo3 empties the dictionary that it is given
        assert main(["train", "-n", "64", "--eval-freq", "-1", "-conf", given]) == 0
    assert f"Loading hyperparameters from: {given}" in capsys.readouterr().out
    gammas = {json.loads(path.read_text())["hyperparameters"]["gamma"] for path in tmp_path.glob("logs/ppo/*/provenance.json")}
    assert gammas == {0.98 if configuration == "module" else 0.5}
    assert len(list(tmp_path.glob("logs/ppo/*/provenance.json"))) == 2


@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].extra == "zoo"])
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert name in capsys.readouterr().out or name.startswith("plot") or name == "all_plots"


def test_help_and_version_import_no_library() -> None:
    """They answer at once, because neither torch nor the zoo is imported."""
    code = (
        "import sys; from sb3_policyopt.__main__ import main; main(['--help']); main(['--version']);"
        "assert not {'torch', 'rl_zoo3', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.slow
def test_training_in_shared_memory_by_one_flag(tmp_path: Path, cli: Run) -> None:
    """Everything but the time is what it is by default."""
    command = "train --algo ppo --env CartPole-v1 -n 512 --eval-freq 256 --eval-episodes 2 --seed 1 --num-threads 1"
    for vec_env in ("dummy", "shared"):
        cli(tmp_path, f"{command} --vec-env {vec_env} -f {vec_env}")
    runs = [tmp_path / vec_env / "ppo" / "CartPole-v1_1" for vec_env in ("dummy", "shared")]
    timed = {"time/fps", "time/time_elapsed"}
    tables = [[{k: v for k, v in row.items() if k not in timed} for row in rows(run / "progress.csv")] for run in runs]
    assert tables[0] == tables[1] and any(row["eval/mean_reward"] for row in tables[0])
    assert json.loads((runs[1] / "provenance.json").read_text())["arguments"]["vec_env"] == "shared"
    assert len(list(runs[1].glob("*.monitor.csv"))) == len(list(runs[0].glob("*.monitor.csv"))) > 1


@pytest.mark.slow
def test_training_on_envpool_by_one_flag(tmp_path: Path, cli: Run, process: Run) -> None:
    """The agent and its records are ordinary ones, and Gymnasium's environments run it."""
    pytest.importorskip("envpool")
    cli(tmp_path, "train --algo ppo --env CartPole-v1 --vec-env envpool -n 2048 --eval-freq 1024 --eval-episodes 2 --seed 1")
    run = tmp_path / "logs" / "ppo" / "CartPole-v1_1"
    assert json.loads((run / "provenance.json").read_text())["arguments"]["vec_env"] == "envpool"
    assert sum(bool(row["eval/mean_reward"]) for row in rows(run / "progress.csv")) == 2
    # One file of episodes for all environments, as EnvPool is one VecEnv: its comment line, its header, its episodes.
    assert len((run / "0.monitor.csv").read_text().splitlines()) > 10
    assert "Mean reward:" in cli(tmp_path, "enjoy --algo ppo --env CartPole-v1 -f logs --no-render -n 600").stdout
    refused = process(["-m", "sb3_policyopt", "train", "--env", "CarRacing-v3", "--vec-env", "envpool"], tmp_path)
    assert refused.returncode == 2 and "cannot be applied to EnvPool" in refused.stderr
    assert not list(tmp_path.glob("logs/ppo/CarRacing*"))

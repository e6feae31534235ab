"""Real trainings of a few updates through the harness: as the command line makes them, skipped, and resumed."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from stable_baselines3.common.save_util import load_from_zip_file

from benchmarks.scores import entries, runs, search, train
from benchmarks.scores.__main__ import main
from benchmarks.scores.runs import Run

ENV = "InvertedPendulum-v5"


def make_run(steps: int, entry_name: str = "shipped", implementation: str = "ours", algo: str = "trpo") -> Any:
    entry = entries.load(algo, ENV, entry_name)
    return Run(implementation, algo, ENV, entry_name, entries.identity(entry), steps, 0), entry


def parameters(folder: Path) -> Any:
    _, params, _ = load_from_zip_file(folder / f"{ENV}.zip")
    policy: Any = params["policy"]  # a state_dict, to SB3 a tensor
    weights = {name: values.tolist() for name, values in policy.items()}
    statistics = (folder / ENV / "vecnormalize.pkl").read_bytes()
    return weights, statistics


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("", []),
        ("callback=a.B", ["a.B"]),
        ('callback=[{"a.B":{"target":0.02}},"a.C"]', [{"a.B": {"target": 0.02}}, "a.C"]),
    ],
)
def test_the_checkpoints_come_before_the_callbacks_of_an_entry(changes: str, expected: list[Any]) -> None:
    entry = entries.load("ppo", ENV, f"shared {changes}")
    changed = train.with_callback(entry, {"x.Y": {}})
    assert changed.pop("callback") == [{"x.Y": {}}, *expected]
    entry.pop("callback", None)
    assert changed == entry


@pytest.mark.slow
def test_a_run_is_made_once_and_as_the_command_line_makes_it(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}

    def keep(run: Any, entry: Any, folder: Path, lock: int, train: Any = train.train) -> Any:
        result = train(run, entry, folder, lock)
        trained["harness"] = parameters(result)
        return result

    monkeypatch.setattr(train, "train", keep)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2048)
    monkeypatch.setattr(train, "N_EPISODES", 3)
    results = tmp_path / "scores.csv"
    command = ["train", "--algo", "trpo", "--env", ENV, "--seeds", "0", "-n", "4096"]
    command += ["--work", str(tmp_path / "work"), "--results", str(results)]
    assert main(command) == 0
    (row,) = runs.read(results)
    assert row["entry_hash"] == entries.identity(entries.load("trpo", ENV))
    assert int(row["n_episodes"]) == 3 and 0 < float(row["mean"]) <= 1000 and float(row["wall_seconds"]) > 0
    curve = [float(value) for value in row["curve"].split()]
    assert len(curve) == train.CURVE_POINTS and all(0 < value <= 1000 for value in curve)
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".lock"]

    cli(tmp_path, f"train --algo trpo --env {ENV} --seed 0 -n 4096 -f direct --eval-freq -1 --device cpu")
    weights, _ = parameters(tmp_path / "direct" / "trpo" / f"{ENV}_1")
    assert trained["harness"][0] == weights

    trained.clear()
    assert main(command) == 0
    assert trained == {} and len(runs.read(results)) == 1


def test_a_training_that_fails_says_so_and_has_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "scores.csv"
    assert train.train_all([make_run(512, "shipped gamma=2")], tmp_path / "work", results) == 1
    assert "gamma" in capsys.readouterr().err
    assert runs.read(results) == []


@pytest.mark.slow
def test_one_failure_leaves_the_other_runs_alone(tmp_path: Path) -> None:
    results = tmp_path / "scores.csv"
    good, entry = make_run(512, "shipped n_steps=128 batch_size=64")
    assert train.train_all([make_run(512, "shipped gamma=2"), (good, entry)], tmp_path / "work", results) == 1
    assert [row["entry"] for row in runs.read(results)] == [good.entry]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2048)
    run, entry = make_run(40_960)
    whole = parameters(train.train(run, entry, tmp_path / "whole"))

    def kill(module: Any, arguments: Any, folder: Path, lock: int | None) -> None:
        with subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=folder, stdout=subprocess.DEVNULL) as process:
            while not list((folder / "checkpoints").glob("*.zip")) and process.poll() is None:
                time.sleep(0.01)
            process.kill()
        raise RuntimeError("killed")

    with monkeypatch.context() as context, pytest.raises(RuntimeError, match="killed"):
        context.setattr(train, "child", kill)
        train.train(run, entry, tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob(f"{ENV}.zip"))
    resumed = train.train(run, entry, tmp_path / "killed")
    assert resumed.name == f"{ENV}_2"
    assert parameters(resumed)[0] == whole[0]


@pytest.mark.slow
def test_stock_trains_its_own_classes_on_its_own_scale(tmp_path: Path) -> None:
    run, entry = make_run(256, "shipped n_steps=64 batch_size=64 target_kl=0.02", "stock")
    train.train(run, entry, tmp_path / "work")
    written = yaml.safe_load((tmp_path / "work" / "entry.yml").read_text())[ENV]
    assert written["target_kl"] == entry["target_kl"]  # one dimension
    assert "sb3_contrib.trpo" in (tmp_path / "work" / "provenance.json").read_text()
    assert train.learning_curve(tmp_path / "work", 256)


def test_runs_that_stand_there_twice_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under two names of the same settings, too; in the order in which they are wanted, under the first name."""
    made: list[str] = []
    monkeypatch.setattr(train, "execute", lambda run, *others: made.append(f"{run.entry} {run.seed}"))
    run, entry = make_run(512)
    other = Run(**{**vars(run), "entry": "another name"})
    third = Run(**{**vars(run), "seed": 3})
    assert (
        train.train_all([(run, entry), (third, entry), (other, entry), (run, entry)], tmp_path, tmp_path / "scores.csv") == 0
    )
    assert made == ["shipped 0", "shipped 3"]


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, entry = make_run(512)
    with train.locked(tmp_path / f"{run.folder_name}.lock"):
        assert train.train_all([(run, entry)], tmp_path, tmp_path / "scores.csv") == 1
    assert "is being trained by another process" in capsys.readouterr().err
    assert not (tmp_path / run.folder_name).exists()


def test_a_child_keeps_the_lock_of_a_harness_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with train.locked(path) as lock:
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[lock]
        )
    try:
        with pytest.raises(RuntimeError, match="another process"), train.locked(path):
            pass
    finally:
        orphan.communicate()
    with train.locked(path):
        pass


def test_what_another_process_has_added_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, entry = make_run(512)
    runs.append(run, {"mean": 1.0}, tmp_path / "scores.csv")
    monkeypatch.delattr(train, "add_row")
    train.execute(run, entry, tmp_path, tmp_path / "scores.csv")


def test_stock_has_no_schedule_of_the_trust_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.train_all([make_run(512, "shared target_kl=lin_0.02", "stock")], tmp_path, tmp_path / "scores.csv") == 1
    assert "sb3-contrib's target_kl is a number, not a schedule such as 'lin_0.02'" in capsys.readouterr().err


def test_the_commit_of_a_run_is_that_with_which_it_began(tmp_path: Path) -> None:
    first = train.commit_of(tmp_path / "run")
    assert len(first.rstrip("+")) == 10 and train.commit_of(tmp_path / "run") == first
    (tmp_path / "run" / "commit").write_text("0123456789")
    assert train.commit_of(tmp_path / "run") == "0123456789+"


def test_rows_do_not_change_the_commit() -> None:
    """The harness itself appends to the CSV file; what trains is elsewhere."""
    listed = subprocess.run(["git", "ls-files", "--", *train.WHAT_TRAINS], cwd=train.ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines()
    assert "sb3_policyopt/trpo.py" in names and "hyperparams/trpo.yml" in names and "benchmarks/scores/train.py" in names
    assert "benchmarks/scores.csv" not in names


@pytest.mark.slow
def test_the_work_folder_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "N_EPISODES", 2)
    assert train.train_all([make_run(512, "shipped n_steps=64 batch_size=64")], Path("work"), Path("scores.csv")) == 0
    assert len(runs.read(Path("scores.csv"))) == 1


def test_a_search_is_taken_up_where_it_stood(tmp_path: Path) -> None:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), direction="maximize")
    drawn = search.suggest(study.ask())  # interrupted: without a result
    search.take_up(study)
    again = study.ask()
    assert search.suggest(again) == drawn
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING"]


def test_a_second_call_goes_on_with_the_study_and_draws_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a score that takes no training: the study, its storage and its sampler are real."""
    names: list[str] = []

    def score(name: str, options: Any) -> float:
        names.append(name)
        return float(len(names))

    monkeypatch.setattr(search, "score", score)
    command = ["search", "--algo", "trpo", "--env", ENV, "--trials", "2", "--work", str(tmp_path)]
    assert main(command) == 0
    assert main(command) == 0
    assert len(set(names)) == 4
    best, *_ = capsys.readouterr().out.splitlines()[-4:]
    assert best == f"       4.0  {names[3]}"


def test_the_name_of_a_trial_says_what_it_trains() -> None:
    values = {"one_minus_gamma": 0.005, "one_minus_lambda": 0.1, "log_std_init": -0.7, "learning_rate": 0.001, "rollout": 2048}
    entry = entries.load("trpo", ENV, search.entry_name("shared", entries.load("trpo", ENV, "shared"), values))
    expected: dict[str, Any] = {
        "gamma": 0.995,
        "gae_lambda": 0.9,
        "learning_rate": "lin_0.001",
        "n_steps": 512,
        "policy_kwargs": "dict(log_std_init=-0.7)",
    }
    assert entry == {**entries.load("trpo", ENV, "shared"), **expected}


def test_a_trial_keeps_what_else_the_policy_has() -> None:
    values = {"one_minus_gamma": 0.005, "one_minus_lambda": 0.1, "log_std_init": -0.7, "learning_rate": 0.001, "rollout": 2048}
    base = entries.load("ppo", "HalfCheetah-v5", "shipped policy_kwargs=dict(log_std_init=-2,net_arch=dict(pi=[8],vf=[9]))")
    text = search.entry_name("shipped", base, values).split()[-1]
    assert text == "policy_kwargs=dict(log_std_init=-0.7,net_arch=dict(pi=[8],vf=[9]))"
    without = {name: value for name, value in base.items() if name != "policy_kwargs"}
    assert search.entry_name("x", without, values).split()[-1] == "policy_kwargs=dict(log_std_init=-0.7)"


def test_the_objective_does_not_forgive_a_stalled_seed() -> None:
    assert search.lower_quartile([1800.0, 6000.0, 6000.0]) == 3900.0


@pytest.mark.slow
def test_a_search_of_two_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In two calls, the second of which does not draw the first one's trial again."""
    command = ["search", "--algo", "trpo", "--env", ENV, "--trials", "1", "--n-seeds", "2", "-n", "4096"]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "scores.csv")]
    assert main(command) == 0
    assert main(command) == 0
    rows = runs.read(tmp_path / "scores.csv")
    assert sorted(row["seed"] for row in rows) == ["1000", "1000", "1001", "1001"]
    printed = capsys.readouterr().out
    for name in {row["entry"] for row in rows}:
        returns = [float(row["mean"]) for row in rows if row["entry"] == name]
        assert f"{search.lower_quartile(returns):10.1f}  {name}" in printed

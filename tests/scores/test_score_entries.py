"""Entries, their identity, and which runs have been made."""

import re
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.scores import entries, runs
from benchmarks.scores.groups import group, is_shipped
from benchmarks.scores.runs import Run
from sb3_policyopt import PPO, TRPO, hyperparams

RUN = Run("ours", "trpo", "HalfCheetah-v5", "shared", "0123456789", 1_000_000, 3)


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_shipped_is_what_the_command_line_reads(algo: str) -> None:
    assert entries.load(algo, "Hopper-v5") == hyperparams.load(algo)["Hopper-v5"]


def test_atari_games_have_one_entry_and_a_version_that_nobody_tuned_has_none() -> None:
    pytest.importorskip("ale_py")
    assert entries.load("trpo", "PongNoFrameskip-v4") == hyperparams.load("trpo")["atari"]
    assert entries.is_listed("ppo", "PongNoFrameskip-v4")
    assert not entries.is_listed("ppo", "Hopper-v3")


def test_every_candidate_is_one_that_the_algorithms_take() -> None:
    """Their keys are those of shipped entries and arguments of the algorithm; trainings test the values."""
    for algo, candidates in yaml.safe_load(entries.CANDIDATES.read_text()).items():
        known = {key for entry in hyperparams.load(algo).values() for key in entry}
        known |= set(signature({"ppo": PPO, "trpo": TRPO}[algo]).parameters)
        for name, entry in candidates.items():
            assert set(entry) <= known, name


def test_changes_follow_the_name() -> None:
    plain = entries.load("trpo", "Hopper-v5")
    text = "gamma=0.98 n_steps=256 learning_rate=lin_1e-3 target_kl=1e-2 normalize=False policy_kwargs=dict(log_std_init=-1)"
    text += " log_std_bounds=[-1.6,2.0]"
    changes: dict[str, Any] = {
        "gamma": 0.98,
        "n_steps": 256,
        "learning_rate": "lin_1e-3",
        "target_kl": 0.01,
        "normalize": False,
        "policy_kwargs": "dict(log_std_init=-1)",
        "log_std_bounds": [-1.6, 2.0],
    }
    assert entries.load("trpo", "Hopper-v5", f"shipped {text}") == {**plain, **changes}


@pytest.mark.parametrize("text", ["shipped gamma", "shipped =1", "shipped gamma="])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"key=value.*{re.escape(text.split()[1])}"):
        entries.load("trpo", "Hopper-v5", text)


def test_unknown_entries_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no entry 'sharde' for ppo; it has .*shared"):
        entries.load("ppo", "Hopper-v5", "sharde")


def test_identity_is_of_the_settings_alone() -> None:
    entry: dict[str, Any] = {
        "gamma": 0.9,
        "normalize": True,
        "policy_kwargs": "dict(log_std_init=-2,\n  ortho_init=False)",
        "n_timesteps": 1e6,
    }
    same = {"policy_kwargs": "dict(log_std_init=-2, ortho_init=False)", "normalize": True, "gamma": 0.9, "n_timesteps": 3e6}
    assert entries.identity(entry) == entries.identity(same)
    for different in ({**entry, "gamma": 0.91}, {**entry, "n_steps": 8}, {**entry, "policy_kwargs": "dict(log_std_init=-1)"}):
        assert entries.identity(different) != entries.identity(entry)


def test_contrib_gets_the_settings_divided_by_the_dimensions() -> None:
    converted = entries.on_the_scale_of_contrib({"target_kl": 0.12, "gamma": 0.9}, 6)
    assert converted == pytest.approx({"target_kl": 0.02, "gamma": 0.9, "cg_damping": 0.1 / 6})


@pytest.mark.parametrize("algo", ["ppo", "trpo"])
def test_stock_is_not_given_what_it_does_not_have(algo: str) -> None:
    with pytest.raises(ValueError, match=f"stock {algo.upper()} has no engine, log_std_bounds"):
        entries.check_stock(algo, {"log_std_bounds": [-1.6, 2.0], "engine": "autograd", "gamma": 0.9, "normalize": True})
    entries.check_stock(algo, {"gamma": 0.9, "normalize": True, "n_envs": 4, "target_kl": 0.02})


def test_a_row_is_read_as_it_was_written_and_its_run_is_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    other = Run(**{**vars(RUN), "seed": 4})
    renamed = Run(**{**vars(RUN), "entry": "another name of the same settings"})
    assert runs.read(path) == [] and runs.missing([RUN, other], path) == [RUN, other]
    written = runs.append(RUN, {"mean": 5.5, "std": 1.0, "n_episodes": 100, "wall_seconds": 3.2, "curve": "1 2 3"}, path)
    assert runs.read(path) == [written]
    assert runs.missing([RUN, other, renamed], path) == [other]


@pytest.mark.parametrize(
    ("column", "value"),
    [("implementation", "stock"), ("algo", "ppo"), ("env_id", "Ant-v5"), ("entry_hash", "9"), ("n_timesteps", 5), ("seed", 9)],
)
def test_a_run_that_differs_in_anything_else_is_missing(tmp_path: Path, column: str, value: Any) -> None:
    path = tmp_path / "scores.csv"
    runs.append(RUN, {}, path)
    other = Run(**{**vars(RUN), column: value})
    assert runs.missing([other], path) == [other]


def test_the_csv_of_the_repository_has_each_run_once() -> None:
    rows = runs.read()
    assert len(rows) > 0
    assert len({runs.key(row) for row in rows}) == len(rows)


def tuned_here(algo: str) -> list[Any]:
    """The entries whose numbers come from trainings here; version 4 of HalfCheetah was trained as version 5."""
    lines = hyperparams.path(algo).read_text().splitlines()
    found = [line.split(":")[0] for before, line in pairwise(lines) if before.startswith("# tuned here")]
    return [env_id for env_id in found if env_id != "HalfCheetah-v4"]


@pytest.mark.parametrize(("algo", "env_id"), [(algo, env_id) for algo in ("ppo", "trpo") for env_id in tuned_here(algo)])
def test_every_entry_tuned_here_has_its_trainings_in_the_csv(algo: str, env_id: str) -> None:
    """An entry that is changed without new trainings has no rows, for its identity or its number of steps is another."""
    shipped = [found for found in group(runs.read()) if is_shipped(found)]
    assert (algo, env_id) in {(found.algo, found.env_id) for found in shipped}

"""Search an environment's entry around a candidate with Optuna; interrupted at any time, the next call goes on."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from benchmarks.scores import entries, runs
from benchmarks.scores.runs import OURS, SEARCH_SEEDS, Run
from benchmarks.scores.train import train_all

ROLLOUTS = [512, 1024, 2048, 4096]


def suggest(trial: optuna.Trial) -> dict[str, float]:
    """
    Draw the five parameters that matter most, to two digits.

    :param trial: of the study
    :return: by name
    """
    return {
        "one_minus_gamma": _two_digits(trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True)),
        "one_minus_lambda": _two_digits(trial.suggest_float("one_minus_lambda", 0.01, 0.3, log=True)),
        "log_std_init": round(trial.suggest_float("log_std_init", -2.0, 0.5), 1),
        "learning_rate": _two_digits(trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True)),
        "rollout": trial.suggest_categorical("rollout", ROLLOUTS),
    }


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def entry_name(name: str, base: entries.Entry, values: Mapping[str, float]) -> str:
    """
    The name of an entry that has these values, as ``entries.load`` reads it.

    :param name: of the candidate
    :param base: the candidate; what else its ``policy_kwargs`` have stays
    :param values: of :func:`suggest`
    :return: from which the entry can be trained again
    """
    others = re.sub(r"\blog_std_init=[^,)]*,?|\s", "", str(base.get("policy_kwargs", "dict()"))).removeprefix("dict(")
    log_std_init = f"log_std_init={values['log_std_init']}"
    changes: dict[str, Any] = {
        "gamma": round(1 - values["one_minus_gamma"], 6),
        "gae_lambda": round(1 - values["one_minus_lambda"], 6),
        "learning_rate": f"lin_{values['learning_rate']}",
        "n_steps": int(values["rollout"]) // int(base.get("n_envs", 1)),
        "policy_kwargs": f"dict({log_std_init}{')' if others == ')' else ',' + others}",
    }
    return " ".join([name, *(f"{key}={value}" for key, value in changes.items())])


def lower_quartile(returns: list[float]) -> float:
    """The objective: the 25th percentile over seeds, so that an entry with a stalled seed does not win."""
    return float(np.percentile(returns, 25))


def score(name: str, options: argparse.Namespace) -> float:
    """
    Train an entry with the seeds of the search, as far as it has no rows yet.

    :param name: of the entry
    :param options: of the command line
    :return: the objective
    :raises RuntimeError: if a training failed
    """
    entry = entries.load(options.algo, options.env, name, options.candidates)
    steps = int(options.n_timesteps or float(entry["n_timesteps"]))
    identity = entries.identity(entry)
    seeds = range(SEARCH_SEEDS, SEARCH_SEEDS + options.n_seeds)
    wanted = [Run(OURS, options.algo, options.env, name, identity, steps, seed) for seed in seeds]
    if train_all([(run, entry) for run in wanted], options.work, options.results, options.jobs):
        raise RuntimeError(f"a training of {name} failed")
    returns = {runs.key(row): float(row["mean"]) for row in runs.read(options.results)}
    return lower_quartile([returns[run.key] for run in wanted])


def take_up(study: optuna.Study) -> None:
    """
    Enqueue the trials that an interruption left unfinished; their rows are there, so that only the rest is trained.

    :param study: of this process alone
    """
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def search(options: argparse.Namespace) -> optuna.Study:
    """
    Make a number of trials, and print those that came to their end, the best first.

    :param options: of the command line
    :return: the study
    """
    base = entries.load(options.algo, options.env, options.entry, options.candidates)
    storage: Path = options.storage or options.work / "search.db"
    storage.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=" ".join(
            [options.algo, options.env, entries.identity(base), str(options.n_timesteps), f"{options.n_seeds} seeds"]
        ),
        storage=f"sqlite:///{storage}",
        direction="maximize",
        load_if_exists=True,
    )
    take_up(study)
    # A seed of its own for each call: the same one would draw the first trials again.
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=8, seed=len(study.trials))

    def objective(trial: optuna.Trial) -> float:
        name = entry_name(options.entry, base, suggest(trial))
        trial.set_user_attr("entry", name)
        return score(name, options)

    study.optimize(objective, n_trials=options.trials, catch=(RuntimeError,))
    for trial in sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: -trial.value):
        print(f"{trial.value:10.1f}  {trial.user_attrs['entry']}")
    return study


def has_results(study: optuna.Study) -> bool:
    """Whether a trial of a study, of this call or of an earlier one, came to its end."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

"""Checks of ``all_plots`` and ``plot_train`` for what they would draw wrongly or report with a traceback."""

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sb3_policyopt.errors import UserError
from sb3_policyopt.zoo import preflight

Evaluations = Mapping[str, np.ndarray]
"""What an ``evaluations.npz`` holds, by name."""


def check_training_curves(argv: list[str]) -> None:
    """
    Check what ``plot_train`` is to draw.

    :param argv: the command line
    :raises UserError: if there are no runs, or the window has no episode
    """
    preflight.check_runs(argv)
    preflight.check_number(argv, ("-w", "--episode-window"), 1)


def check_evaluations(argv: list[str]) -> None:
    """
    Check that ``all_plots`` has evaluations to draw; name the cells of its table that have none.

    :param argv: the command line
    :raises UserError: if an environment has none, or an option does not fit them
    """
    preflight.check_runs(argv)
    options = preflight.runs_to_draw(argv)
    given = preflight.parse(argv, ("-k", "--key"), ("-max", "--max-timesteps"), ("-o", "--output"))
    if given.output is not None and not Path(given.output).parent.is_dir():
        raise UserError(f"-o {given.output}: there is no folder {Path(given.output).parent}")
    for env in options.env:
        places = [(folder, algo) for algo in options.algo for folder in options.exp_folder]
        found = {place: read_evaluations(*place, env) for place in places}
        if not any(found.values()):
            where = f"{' or '.join(options.algo)} on {env} in {' or '.join(options.exp_folder)}"
            raise UserError(
                f"there is no evaluation of {where} that can be drawn (train with --eval-freq, for two evaluations or more)"
            )
        for (folder, algo), runs in found.items():
            if not runs:
                missing = f"there is no evaluation of {algo} on {env} in {folder} that can be drawn"
                print(f"sb3-policyopt: {missing}; the table has 0.0 +/- 0.0 there", file=sys.stderr)
            for path, evaluations in runs.items():
                _check_key(path, evaluations, given.key)
                _check_last_step(path, evaluations, given.max_timesteps)


def read_evaluations(folder: str, algo: str, env_id: str) -> dict[Path, Evaluations]:
    """
    Read the evaluations that ``all_plots`` draws; it leaves out runs that were evaluated once.

    :param folder: folder of the logs
    :param algo: key of the algorithm
    :param env_id: id of the environment
    :return: by file
    :raises UserError: if a file cannot be read
    """
    files = sorted(Path(folder, algo.lower()).glob(f"*{env_id.replace('/', '-')}*/evaluations.npz"))
    evaluations = {path: _read(path) for path in files}
    return {path: held for path, held in evaluations.items() if len(held["timesteps"]) > 1}


def _read(path: Path) -> Evaluations:
    try:
        with np.load(path) as archive:
            evaluations = {name: archive[name] for name in archive.files}
        for name in ("timesteps", "results"):
            evaluations[name]
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    return evaluations


def _check_key(path: Path, evaluations: Evaluations, key: str | None) -> None:
    if key is not None and key not in evaluations:
        raise UserError(f"-k {key}: {path} has no such entry (it has {', '.join(sorted(evaluations))})")


def _check_last_step(path: Path, evaluations: Evaluations, last: str | None) -> None:
    first = int(evaluations["timesteps"][0])
    if last is not None and last.lstrip("-").isdigit() and int(last) < first:  # rl-zoo3's parser reports other text
        raise UserError(f"-max {last}: the first evaluation in {path} is at {first} steps; give at least that number")

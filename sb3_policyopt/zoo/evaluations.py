"""Checks of rl-zoo3's plots for what they would draw wrongly or report with a traceback."""

import argparse
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sb3_policyopt.errors import UserError
from sb3_policyopt.zoo import preflight

Evaluations = Mapping[str, np.ndarray]
"""What an ``evaluations.npz`` holds, by name."""


def runs_to_draw(argv: list[str]) -> argparse.Namespace:
    """
    Read which runs ``plot_train`` or ``all_plots`` draws.

    :param argv: the command line
    :return: lists by option
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-a", "--algo", "--algos", nargs="+", default=[])
    parser.add_argument("-e", "--env", nargs="+", default=[])
    parser.add_argument("-f", "--exp-folder", "--exp-folders", nargs="+", default=[])
    parser.add_argument("-l", "--labels", nargs="+", default=[])
    return parser.parse_known_args(argv)[0]


def with_folder_names(argv: list[str]) -> list[str]:
    """
    Let ``plot_train`` and ``all_plots`` look for algorithms and environments by the names that their folders have.

    :param argv: the command line
    :return: with ``ppo`` for ``PPO`` and ``ALE-Pong-v5`` for ``ALE/Pong-v5``
    """
    options = runs_to_draw(argv)
    if not (options.algo and options.env):
        return argv
    return [*argv, "-a", *(algo.lower() for algo in options.algo), "-e", *(env.replace("/", "-") for env in options.env)]


def check_runs(argv: list[str]) -> None:
    """
    Check that there are runs for ``plot_train`` or ``all_plots``, and a label for each folder.

    :param argv: the command line
    :raises UserError: if there are none
    """
    options = runs_to_draw(argv)
    if options.labels and len(options.labels) != len(options.exp_folder):
        raise UserError(f"-l needs a label for each folder of -f: {len(options.exp_folder)}, not {len(options.labels)}")
    if not (options.algo and options.env and options.exp_folder):
        raise UserError("say what to draw with -a ALGORITHM, -e ENVIRONMENT and -f FOLDER")
    for env in options.env:
        name = env.replace("/", "-")
        if not any(
            list(Path(folder, algo.lower()).glob(f"*{name}*")) for folder in options.exp_folder for algo in options.algo
        ):
            raise UserError(f"there is no run of {' or '.join(options.algo)} on {env} in {' or '.join(options.exp_folder)}")


def check_input(argv: list[str]) -> None:
    """
    Check that the file of ``plot_from_file`` exists, holds several runs of each method, and that each has a label.

    :param argv: the command line
    :raises UserError: if it does not
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--input")
    for name in ("-iqm", "-latex", "-loc"):  # else -iqm would be -i qm
        parser.add_argument(name, action="store_true")
    for names in (("-l", "--labels"), ("--skip-keys",), ("--keep-keys",), ("--merge",)):
        parser.add_argument(*names, nargs="+", default=[])
    options = parser.parse_known_args(argv)[0]
    given = options.input
    if given is None:
        raise UserError("say what to draw with -i FILE, the output of all_plots -o FILE")
    path = Path(given if given.endswith(".pkl") else f"{given}.pkl")
    if not path.is_file():
        raise UserError(f"-i {given}: there is no such .pkl file")
    for other in options.merge:
        if not Path(other).is_file():
            raise UserError(f"--merge {other}: there is no such file")
    with path.open("rb") as file:
        results = pickle.load(file)
    results.pop("results_table", None)
    if any(np.ndim(method["last_evals"]) == 0 for methods in results.values() for method in methods.values()):
        raise UserError(f"-i {given}: plot_from_file compares distributions and needs at least two runs of each method")
    methods = [name for name in next(iter(results.values()), {}) if name not in options.skip_keys]
    drawn = [name for name in methods if name in options.keep_keys] if options.keep_keys else methods
    if options.labels and not options.merge and len(options.labels) != len(drawn):
        raise UserError(f"-l needs a label for each method ({', '.join(drawn)}): {len(drawn)}, not {len(options.labels)}")


def check_training_curves(argv: list[str]) -> None:
    """
    Check what ``plot_train`` is to draw.

    :param argv: the command line
    :raises UserError: if there are no runs, or the window has no episode
    """
    check_runs(argv)
    preflight.check_number(argv, ("-w", "--episode-window"), 1)


def check_evaluations(argv: list[str]) -> None:
    """
    Check that ``all_plots`` has evaluations to draw; name the cells of its table that have none.

    :param argv: the command line
    :raises UserError: if an environment has none, or an option does not fit them
    """
    check_runs(argv)
    options = runs_to_draw(argv)
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

"""
Corrections of faults in rl-zoo3 2.9 that affect every algorithm, applied to its classes at run time.

Each function corrects one fault, which its docstring describes. It is applied only if ``needed`` finds the fault in the
installed version; a newer rl-zoo3 without the fault stays unchanged. ``tests/zoo/test_shims.py`` has a test for each that
fails when the function can be deleted.
"""

import argparse
import contextlib
import copy
import importlib.util
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, cast

import optuna
from huggingface_sb3 import EnvironmentName
from rl_zoo3 import exp_manager, utils
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import StoreDict
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.callbacks.evaluation import EvalCallback, EvaluatesWithMasks
from sb3_policyopt.process import replaced

Arguments = dict[str, object]
"""Arguments of an algorithm or a policy, by name."""

_SHIMS: dict[str, tuple[Callable[[], bool], Callable[[], None]]] = {}


def shim(needed: Callable[[], bool]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """
    Register a function that corrects a fault.

    :param needed: whether the installed rl-zoo3 has the fault
    :return: the decorator
    """

    def register(correct: Callable[[], None]) -> Callable[[], None]:
        _SHIMS[correct.__name__] = (needed, correct)
        return correct

    return register


@cache
def apply() -> tuple[str, ...]:
    """
    Correct the faults that the installed rl-zoo3 has, once.

    :return: the names of the functions that were needed
    """
    wanted = tuple(name for name, (needed, _) in _SHIMS.items() if needed())
    for name in wanted:
        _SHIMS[name][1]()
    return wanted


def source(function: Callable[..., object]) -> str:
    """
    Read the source of a function of rl-zoo3, of the original one if it has been wrapped.

    :param function: the function
    :return: its text, empty where there is none
    """
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def script_source(name: str) -> str:
    """
    Read the source of a command that can be run but not imported.

    :param name: module name
    :return: its text, empty where there is none
    """
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin is not None else ""


class _TrialId(int):
    """A trial number whose truth value is True, also for 0."""

    def __bool__(self) -> bool:
        return True


@shim(needed=lambda: "and self.trial_id:" in source(ExperimentManager.read_hyperparameters))
def trial_zero() -> None:
    """``--trial-id 0`` means "no trial", so the first trial of a study cannot be loaded."""
    original = ExperimentManager.read_hyperparameters

    @wraps(original)
    def read_hyperparameters(self: ExperimentManager) -> tuple[Arguments, Arguments]:
        if self.trial_id is not None:
            self.trial_id = _TrialId(self.trial_id)
        return cast(tuple[Arguments, Arguments], original(self))

    ExperimentManager.read_hyperparameters = read_hyperparameters


@shim(
    needed=lambda: (
        "        self.create_log_folder()\n        self.create_callbacks()" in source(ExperimentManager.setup_experiment)
    )
)
def no_folder_for_a_search() -> None:
    """``-optimize`` leaves an empty run folder, which ``enjoy`` then loads as the latest run."""
    create_log_folder, create_envs = ExperimentManager.create_log_folder, ExperimentManager.create_envs

    @wraps(create_log_folder)
    def create_log_folder_of_a_run(self: ExperimentManager) -> None:
        if not self.optimize_hyperparameters:
            create_log_folder(self)

    @wraps(create_envs)
    def create_envs_without_log(self: ExperimentManager, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        no_log = no_log or self.optimize_hyperparameters
        return cast(VecEnv, create_envs(self, n_envs, eval_env=eval_env, no_log=no_log))

    ExperimentManager.create_log_folder = create_log_folder_of_a_run
    ExperimentManager.create_envs = create_envs_without_log


@shim(needed=lambda: "normalize_kwargs" not in source(ExperimentManager.objective))
def trial_normalises_with_its_own_gamma() -> None:
    """A trial's VecNormalize discounts with the gamma of the configuration instead of the sampled one."""
    objective, maybe_normalize = ExperimentManager.objective, ExperimentManager._maybe_normalize

    @wraps(objective)
    def objective_of_one_trial(self: ExperimentManager, trial: optuna.Trial) -> float:
        manager = copy.copy(self)  # trials may run in separate threads
        manager.trial = trial
        return float(objective(manager, trial))

    @wraps(maybe_normalize)
    def maybe_normalize_with_sampled_gamma(self: ExperimentManager, env: VecEnv, eval_env: bool) -> VecEnv:
        trial = getattr(self, "trial", None)
        if trial is not None and "gamma" in trial.user_attrs:
            self.normalize_kwargs = {**self.normalize_kwargs, "gamma": trial.user_attrs["gamma"]}
        return cast(VecEnv, maybe_normalize(self, env, eval_env))

    ExperimentManager.objective = objective_of_one_trial
    ExperimentManager._maybe_normalize = maybe_normalize_with_sampled_gamma


class _Merging(Arguments):
    """Hyperparameters whose ``policy_kwargs`` an update completes instead of replacing them."""

    def copy(self) -> "_Merging":
        return _Merging(self)

    def update(self, other: object = (), /, **kwargs: object) -> None:
        new: Arguments = dict(cast(Arguments, other), **kwargs)
        if "policy_kwargs" in new:
            new["policy_kwargs"] = merged_policy_kwargs(self.get("policy_kwargs"), new["policy_kwargs"])
        super().update(new)


def merged_policy_kwargs(of_file: object, of_trial: object) -> Arguments:
    """
    Complete a trial's arguments of the policy by those of the configuration.

    :param of_file: of the configuration: a dictionary, its text, or None
    :param of_trial: the dictionary that the trial sampled, whose entries override those of the configuration
    :return: both
    """
    if isinstance(of_file, str):
        of_file = eval(of_file, dict(vars(exp_manager)))  # as rl-zoo3 does, with the names of its module
    return {**cast(Arguments, of_file or {}), **cast(Arguments, of_trial)}


@shim(needed=lambda: "policy_kwargs" not in source(ExperimentManager.objective))
def trial_keeps_policy_kwargs() -> None:
    """A trial's ``policy_kwargs`` replace those of the configuration, in ``-optimize`` and with ``--trial-id``."""
    objective, read = ExperimentManager.objective, ExperimentManager.read_hyperparameters

    @wraps(objective)
    def objective_with_policy_kwargs(self: ExperimentManager, trial: optuna.Trial) -> float:
        manager = copy.copy(self)  # trials may run in separate threads
        manager._hyperparams = _Merging(self._hyperparams)
        return float(objective(manager, trial))

    @wraps(read)
    def read_hyperparameters(self: ExperimentManager) -> tuple[Arguments, Arguments]:
        given = "policy_kwargs" in (self.custom_hyperparams or {})
        if self.trial_id is None or not (self.storage and self.study_name) or given:
            return cast(tuple[Arguments, Arguments], read(self))
        without_trial = copy.copy(self)
        without_trial.trial_id = None
        with contextlib.redirect_stdout(io.StringIO()):
            of_file = read(without_trial)[0].get("policy_kwargs")
        hyperparams, saved = read(self)
        for result in (hyperparams, saved):
            if "policy_kwargs" in result:
                result["policy_kwargs"] = merged_policy_kwargs(of_file, result["policy_kwargs"])
        return hyperparams, saved

    ExperimentManager.objective = objective_with_policy_kwargs
    ExperimentManager.read_hyperparameters = read_hyperparameters


@shim(needed=lambda: "except" not in source(StoreDict.__call__))
def values_that_are_not_python() -> None:
    """``-params policy:MlpPolicy`` raises a NameError, and a schedule has to be quoted twice."""
    original = StoreDict.__call__

    @wraps(original)
    def call(
        self: StoreDict,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        quoted = [re.sub(r"^(\w+):(lin_[\d.eE+-]+)$", r"\1:'\2'", value) for value in values]
        try:
            original(self, parser, namespace, quoted, option_string)
        except Exception as error:
            rule = "write name:value with a value in Python, a string in quotes of its own as in name:\"'text'\""
            raise argparse.ArgumentError(self, f"{' '.join(values)}: {error}; {rule}") from error

    StoreDict.__call__ = call


def _download_misses_hub_errors() -> bool:
    try:
        from huggingface_hub.errors import EntryNotFoundError
        from rl_zoo3 import load_from_hub
    except ImportError:  # `requests` is missing: `enjoy` reports it
        return False
    return not issubclass(EntryNotFoundError, load_from_hub.HTTPError)


@shim(needed=_download_misses_hub_errors)
def agents_without_normalisation() -> None:
    """Downloading an agent without VecNormalize statistics fails: huggingface_hub no longer raises an error of requests."""
    from huggingface_hub.errors import EntryNotFoundError
    from rl_zoo3 import load_from_hub

    load_from_hub.HTTPError = (load_from_hub.HTTPError, EntryNotFoundError)


@shim(needed=lambda: "Maskable" not in source(ExperimentManager.create_callbacks))
def evaluations_with_masks() -> None:
    """Evaluations during training, and those of a search, take no masks, so that an agent with masks acts without them."""

    class EvaluatedTrial(EvaluatesWithMasks, exp_manager.TrialEvalCallback):  # type: ignore[misc]
        """rl-zoo3's evaluation of a trial, with masks."""

    exp_manager.EvalCallback = EvalCallback
    exp_manager.TrialEvalCallback = EvaluatedTrial


def children_are_stock(command: str) -> bool:
    """
    Test whether a command starts other commands of rl-zoo3 in a way that fails with this package.

    ``record_training`` starts ``python -m rl_zoo3.record_video``, a process in which this package's algorithms are not
    registered; ``benchmark`` starts an ``enjoy.py`` of the current folder, which a pip installation does not have.

    :param command: name of the command
    :return: True if :func:`our_children` is needed
    """
    text = script_source(f"rl_zoo3.{command}")
    return '["python", "-m", "rl_zoo3.record_video"' in text or '["python", "enjoy.py"' in text


def own_command(arguments: str | list[str], packages: Sequence[str] = ()) -> str | list[str]:
    """
    Rewrite the command line of a child process to the same command of this package.

    :param arguments: the command line that ``subprocess.call`` was given
    :param packages: modules that register environments, which the child is to import too
    :return: the command line to run instead, or the same one if it is not one of rl-zoo3's
    """
    if not isinstance(arguments, list):
        return arguments
    # A normalised name (ALE-Pong-v5) becomes the registered id again (ALE/Pong-v5).
    words = [word.gym_id if isinstance(word, EnvironmentName) else word for word in arguments]
    ours = [sys.executable, "-m", "sb3_policyopt"]
    modules = ["--gym-packages", *packages] if packages else []
    if words[:3] == ["python", "-m", "rl_zoo3.record_video"]:
        return [*ours, "record_video", *words[3:], *modules]
    if words[:2] == ["python", "enjoy.py"]:
        return [*ours, "enjoy", *words[2:], *modules]
    return words


def our_children(packages: Sequence[str] = ()) -> AbstractContextManager[None]:
    """
    Within the context, the commands that rl-zoo3 starts as child processes are those of this package.

    :param packages: modules that register environments, which the children are to import too
    :return: the context
    """
    original = subprocess.call

    def call(arguments: str | list[str], *rest: Any, **options: Any) -> int:
        return original(own_command(arguments, packages), *rest, **options)

    return replaced(subprocess, "call", call)


def gym_packages_everywhere() -> AbstractContextManager[None]:
    """
    Within the context, the parser of any command takes ``--gym-packages``, also where rl-zoo3's has no such option.

    The modules are imported by :mod:`sb3_policyopt.zoo.preflight`; the command itself ignores the value.

    :return: the context
    """
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *arguments: Any, **named: Any) -> Any:
        with contextlib.suppress(argparse.ArgumentError):  # it has the option
            self.add_argument("--gym-packages", nargs="+", default=[], help="modules to import that register environments")
        return original(self, *arguments, **named)

    return replaced(argparse.ArgumentParser, "parse_args", parse_args)


@contextmanager
def ffmpeg_on_path() -> Iterator[None]:
    """Within this context, ``ffmpeg`` is found on the path: that of imageio-ffmpeg, if there is no other."""
    if shutil.which("ffmpeg") is not None:
        yield
        return
    import imageio_ffmpeg

    path = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory() as folder:
        name = "ffmpeg.exe" if os.name == "nt" else "ffmpeg"
        executable = Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve()
        try:
            (Path(folder) / name).symlink_to(executable)
        except OSError:  # Windows, without the right to create links
            shutil.copy(executable, Path(folder) / name)
        os.environ["PATH"] = folder + os.pathsep + path
        try:
            yield
        finally:
            os.environ["PATH"] = path


def namespaced_environments() -> AbstractContextManager[None]:
    """
    Within the context, ``benchmark`` reads the run of ``ALE/Pong-v5`` from its folder ``ALE-Pong-v5_1``.

    :return: the context
    """
    original = utils.get_trained_models

    def get_trained_models(log_folder: str) -> dict[str, tuple[str, EnvironmentName]]:
        return {name: (algo, EnvironmentName(env_id)) for name, (algo, env_id) in original(log_folder).items()}

    return replaced(utils, "get_trained_models", get_trained_models)

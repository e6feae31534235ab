"""One training or search of rl-zoo3, with this package's hyperparameters, records of the run, and one-sentence errors."""

import contextlib
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt import hyperparams, registry
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.errors import NonFiniteError, UserError, did_you_mean
from sb3_policyopt.hub.plain_yaml import EVALUATED
from sb3_policyopt.recording import RunRecorder
from sb3_policyopt.saving.constructors import parameters_of
from sb3_policyopt.zoo.entry import check_entry, normalization
from sb3_policyopt.zoo.torchrun import given_seed

#: Command-line arguments that may contain a password, or belong to a service.
PRIVATE_ARGUMENTS = ("command", "storage", "track", "wandb_project_name", "wandb_entity", "wandb_group", "wandb_tags")

#: Choices of ``--vec-env`` in addition to those of rl-zoo3.
VEC_ENVS = ("envpool", "shared")

#: A ValueError or TypeError raised in these packages is about a hyperparameter.
LIBRARIES = ("sb3_policyopt", "stable_baselines3", "sb3_contrib")

#: A TypeError about an unknown argument that is raised in these packages is about one of an environment or a wrapper.
MAKERS_OF_ENVIRONMENTS = ("gymnasium", "rl_zoo3")


class Experiment(ExperimentManager):
    """
    rl-zoo3's experiment with four additions.

    Without ``-conf``, the algorithms of this package read its own hyperparameters (in which TRPO's ``target_kl`` bounds the
    joint KL divergence, and which have entries for Atari and for the MuJoCo environments of version 5). The run folder
    contains ``progress.csv`` and ``provenance.json`` too. If a training fails before it starts, its run folder is removed.
    With ``vec_env_type="envpool"`` the environments are EnvPool's, with "shared" a
    :class:`sb3_policyopt.envs.SharedMemoryVecEnv`.
    """

    #: Whether the user gave a seed; None to look at the command line. Ranks of torchrun all get one there.
    seed_is_given: bool | None = None

    def __init__(self, *args: object, config: str | None = None, vec_env_type: str = "dummy", **kwargs: object) -> None:
        self.on_envpool = vec_env_type == "envpool"
        self.wrapper_entry: object = None
        known = "dummy" if vec_env_type in VEC_ENVS else vec_env_type
        super().__init__(*args, config=config, vec_env_type=known, **kwargs)
        if vec_env_type == "shared":
            from sb3_policyopt.envs import SharedMemoryVecEnv

            self.vec_env_class = SharedMemoryVecEnv
        self.has_own_configuration = config is not None
        if config is None and self.algo in registry.ALGORITHMS:
            self.config = str(hyperparams.path(self.algo))
        self.recorder: RunRecorder | None = None
        self.interrupted = False

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, object]] | None:
        """
        Read the hyperparameters and create the environment and the model.

        :return: the model and its hyperparameters, None for a search
        :raises UserError: if a hyperparameter is unknown or has an invalid value
        """
        try:
            prepared: tuple[BaseAlgorithm, dict[str, object]] | None = super().setup_experiment()
            return prepared
        except BaseException as error:
            self._discard_run_folder()
            sentence = self._mistake(error)
            if sentence is None:
                raise
            raise UserError(sentence) from error

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the entry of the environment, and what the command line changes of it.

        :return: the entry, and the same in the order of the names
        :raises UserError: if the user's own configuration cannot be read, or its entry lacks what every training needs
        """
        try:
            entry, in_order = super().read_hyperparameters()
        except UserError:
            raise
        except Exception as error:  # a file of Python can raise anything
            if not self.has_own_configuration:
                raise
            raise UserError(f"-conf {self.config}: {_why_unreadable(error)}") from error
        needed = ["policy"] if self.n_timesteps > 0 else ["policy", "n_timesteps"]
        for name in needed:
            if name not in entry:
                raise UserError(f"{self.config} has no {name} for {self.env_name.gym_id}")
        return entry, in_order

    def load_trial(
        self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True
    ) -> dict[str, object]:
        """
        Read the hyperparameters of a trial.

        :param storage: of the study
        :param study_name: name of the study
        :param trial_id: number of the trial, None for the best one
        :param convert: whether to turn what was sampled into arguments of the algorithm
        :return: the hyperparameters
        :raises UserError: if there is no such trial, or another algorithm was searched
        """
        if storage.endswith(".log") and not Path(storage).is_file():
            raise UserError(f"--storage {storage}: there is no such file")
        try:
            sampled: dict[str, object] = super().load_trial(storage, study_name, trial_id, convert=False)
        except KeyError as error:
            raise UserError(f"--study-name {study_name}: there is no such study in {storage}") from error
        except IndexError as error:
            raise UserError(f"--trial-id {trial_id}: there is no such trial in the study {study_name}") from error
        try:
            return HYPERPARAMS_CONVERTER[self.algo](sampled) if convert else sampled
        except KeyError as error:
            raise UserError(
                f"--study-name {study_name}: it is no search of {self.algo}, as nothing sampled {error}"
            ) from error

    def _preprocess_hyperparams(self, hyperparams: Mapping[str, object]) -> object:
        """Store the configuration's entry of wrappers, which rl-zoo3 then replaces by functions, as it evaluates strings."""
        self.wrapper_entry = hyperparams.get("env_wrapper")
        check_entry(hyperparams, self.n_timesteps > 0)
        try:
            return super()._preprocess_hyperparams(hyperparams)
        except (NameError, AttributeError, SyntaxError) as error:
            if not _raised_in(error, ("rl_zoo3",)):
                raise
            name = next((name for name in EVALUATED if isinstance(hyperparams.get(name), str)), "policy")
            raise UserError(
                f"{name} of {self.env_name.gym_id} cannot be evaluated ({type(error).__name__}: {error}): write a class as "
                "nn.ReLU, th.optim.Adam or get_class_by_name('module.Class')"
            ) from error

    def _preprocess_normalization(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """As rl-zoo3, with one sentence for a text that it cannot evaluate."""

        def read() -> dict[str, Any]:
            result: dict[str, Any] = super(Experiment, self)._preprocess_normalization(hyperparams)
            if not isinstance(self.normalize_kwargs, dict):
                raise TypeError(f"{self.normalize_kwargs!r} is no dictionary")
            return result

        return normalization(read, self.env_name.gym_id, hyperparams.get("normalize"))

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create the environments for training or evaluation.

        :param n_envs: how many
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor files
        :return: with the wrappers of the configuration
        """
        if not self.on_envpool:
            return super().create_envs(n_envs, eval_env=eval_env, no_log=no_log)
        from sb3_policyopt.envs import envpool_vec_env

        unlogged = eval_env or no_log or self.optimize_hyperparameters
        env: VecEnv = envpool_vec_env(
            self.env_name.gym_id,
            n_envs,
            self.seed,
            env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
            env_wrapper=self.wrapper_entry,
            frame_stack=self.frame_stack,
            monitor_dir=None if unlogged else self.save_path,
            info_keywords=tuple(self.monitor_kwargs.get("info_keywords", ())),
        )
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        return self._maybe_normalize(env, eval_env)

    def _mistake(self, error: BaseException) -> str | None:
        """Describe a mistake in the hyperparameters in one sentence; None if the error has another cause."""
        known = parameters_of(ALGOS[self.algo])
        unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown is not None:
            if unknown[1] in {kind.__name__ for kind in ALGOS[self.algo].__mro__}:
                return f"{self.algo} has no hyperparameter {unknown[2]}{did_you_mean(unknown[2], known)}"
            return unknown_argument(error, (*LIBRARIES, *MAKERS_OF_ENVIRONMENTS))
        if isinstance(error, (ValueError, TypeError)) and _raised_in(error, LIBRARIES):
            return str(error)
        return None

    def _discard_run_folder(self) -> None:
        """Remove the folder of a run that did not train, which ``enjoy`` would otherwise load as the latest one."""
        files = [path for path in Path(self.save_path).rglob("*") if path.is_file()]
        if all(path.name.endswith(".monitor.csv") for path in files):
            self._remove_run_folder()

    def _remove_run_folder(self) -> None:
        """Remove the folder of this run, and that of the algorithm if it holds no other."""
        shutil.rmtree(self.save_path, ignore_errors=True)
        with contextlib.suppress(OSError):  # it contains other runs
            Path(self.log_path).rmdir()

    def _save_config(self, saved_hyperparams: dict[str, object]) -> None:
        super()._save_config(saved_hyperparams)
        # Entries that describe the environment are not arguments of the algorithm.
        given = {key: value for key, value in saved_hyperparams.items() if key in self._hyperparams}
        arguments = {
            key: value for key, value in vars(self.args).items() if value is not None and key not in PRIVATE_ARGUMENTS
        }
        facts = {
            "algo": self.algo,
            "env_id": self.env_name.gym_id,
            "arguments": arguments,
            "zoo_hyperparameters": dict(saved_hyperparams),
            "continued_from": self.trained_agent if self.continue_training else None,
        }
        self.recorder = RunRecorder(Path(self.save_path), given, facts)
        self.callbacks.append(self.recorder)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train, and update the records, also if the training ends by an exception. Ctrl-C ends it here without one.

        :param model: the model
        :raises UserError: if it cannot be trained with its hyperparameters or environments; its run folder is then removed,
            as it is after any error before the first step
        """
        given = given_seed(sys.argv[1:]) is not None if self.seed_is_given is None else self.seed_is_given
        for callback in self.callbacks:
            if isinstance(callback, ResumableCheckpointCallback):
                callback.any_seed = not given
        updates, steps = getattr(model, "_n_updates", None), model.num_timesteps
        try:
            with self._noticing_interrupts():
                super().learn(model)
        except BaseException as error:
            has_begun = updates is None or getattr(model, "_n_updates", None) != updates or isinstance(error, NonFiniteError)
            sentence = None if has_begun else self._mistake(error)
            if sentence is not None or model.num_timesteps in (0, steps):  # learn() sets it to 0 before the first step
                self._remove_run_folder()
                self.recorder = None
            if sentence is None:
                raise
            raise UserError(sentence) from error
        finally:
            if self.recorder is not None:
                self.recorder.save()

    @contextlib.contextmanager
    def _noticing_interrupts(self) -> Iterator[None]:
        """Within this context, a signal of Ctrl-C is noted before it takes effect."""
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            handler(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model, its statistics and its configuration, also of a training that Ctrl-C has ended.

        :param model: the model
        :raises KeyboardInterrupt: after that, if Ctrl-C has ended the training
        """
        super().save_trained_model(_SavedAsZip(model))
        if self.interrupted:
            raise KeyboardInterrupt

    def hyperparameters_optimization(self) -> None:
        """
        Search for hyperparameters; a trial is never continued from a checkpoint, which would be another trial's.

        :raises UserError: if no trial was completed
        """
        self.specified_callbacks: list[object] = without_resuming(self.specified_callbacks)
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            raise UserError(f"no trial of the study came to its end: {error}") from error


class _SavedAsZip:
    """
    A model that is saved with the ending .zip, which SB3 leaves out where the name has a dot, as that of ns/Cart.Pole-v0.

    :param model: the model
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def save(self, path: str) -> None:
        """
        Save the model.

        :param path: where, without the ending
        """
        self._model.save(f"{path}.zip")


def without_resuming(callbacks: object) -> list[object]:
    """
    Leave out the callback that continues a training.

    :param callbacks: the entry ``callback`` of rl-zoo3's hyperparameters: a name, a dictionary with one, or a list of them
    :return: a list without :class:`ResumableCheckpointCallback`
    """
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    names = [str(next(iter(callback)) if isinstance(callback, dict) else callback) for callback in listed]
    unwanted = ResumableCheckpointCallback.__name__
    return [callback for callback, name in zip(listed, names, strict=True) if name.rpartition(".")[2] != unwanted]


def unknown_argument(error: TypeError, packages: tuple[str, ...] = MAKERS_OF_ENVIRONMENTS) -> str | None:
    """
    Describe an argument that the class of an environment does not have.

    :param error: what was raised where environments were made
    :param packages: in which such an error is about an argument that the user gave
    :return: a sentence, None if the error has another cause
    """
    if "got an unexpected keyword argument" not in str(error):
        return None
    first = error.__cause__ or error  # Gymnasium repeats what an environment raises
    return str(error) if _raised_in(first, packages) else None


def _why_unreadable(error: Exception) -> str:
    """What is wrong with a configuration, in one sentence."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, (AttributeError, TypeError)):
        return f"it must be a dictionary of hyperparameters by environment ({type(error).__name__}: {error})"
    return " ".join(f"{type(error).__name__}: {error}".split())


def _raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Test whether the line that raised an error belongs to one of some packages."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").split(".")[0] in packages

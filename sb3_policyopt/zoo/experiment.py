"""One training or search of rl-zoo3, with our hyperparameters, records of the run, and errors in one sentence."""

import contextlib
import difflib
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt import hyperparams
from sb3_policyopt.errors import UserError
from sb3_policyopt.recording import RunRecorder

#: Command-line arguments that may hold a password, or belong to a service.
PRIVATE_ARGUMENTS = ("storage", "track", "wandb_project_name", "wandb_entity", "wandb_group", "wandb_tags")

#: What ``--vec-env`` takes beside the zoo's own choices.
VEC_ENVS = ("envpool", "shared")

#: A ValueError raised by these is about an argument.
LIBRARIES = ("sb3_policyopt", "stable_baselines3", "sb3_contrib")


class Experiment(ExperimentManager):
    """
    rl-zoo3's experiment with four additions.

    Without ``-conf``, PPO and TRPO read the hyperparameters of this package (in which TRPO's ``target_kl`` is on its own
    scale, and which know Atari and the MuJoCo environments of version 5). The run folder gets ``progress.csv`` and
    ``provenance.json``. A training that fails before it starts leaves no run folder behind. With ``vec_env_type="envpool"``
    the environments are EnvPool's, with "shared" a :class:`sb3_policyopt.envs.SharedMemoryVecEnv`.
    """

    def __init__(self, *args: Any, config: str | None = None, vec_env_type: str = "dummy", **kwargs: Any) -> None:
        self.on_envpool = vec_env_type == "envpool"
        self.wrapper_in_words: Any = None
        known = "dummy" if vec_env_type in VEC_ENVS else vec_env_type
        super().__init__(*args, config=config, vec_env_type=known, **kwargs)
        if vec_env_type == "shared":
            from sb3_policyopt.envs import SharedMemoryVecEnv

            self.vec_env_class = SharedMemoryVecEnv
        if config is None and self.algo in hyperparams.ALGORITHMS:
            self.config = str(hyperparams.path(self.algo))
        self.recorder: RunRecorder | None = None

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Read the hyperparameters and create the environment and the model.

        :return: the model and its hyperparameters, None for a search
        """
        try:
            prepared: tuple[BaseAlgorithm, dict[str, Any]] | None = super().setup_experiment()
            return prepared
        except BaseException as error:
            self._discard_run_folder()
            sentence = self._mistake(error)
            if sentence is None:
                raise
            raise UserError(sentence) from error

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """Keep what the configuration says of wrappers, before the zoo makes functions of it."""
        self.wrapper_in_words = hyperparams.get("env_wrapper")
        return super()._preprocess_hyperparams(hyperparams)

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
            env_wrapper=self.wrapper_in_words,
            frame_stack=self.frame_stack,
            monitor_dir=None if unlogged else self.save_path,
            info_keywords=tuple(self.monitor_kwargs.get("info_keywords", ())),
        )
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        return self._maybe_normalize(env, eval_env)

    def _mistake(self, error: BaseException) -> str | None:
        """Put a mistake in the hyperparameters into one sentence; None if the error is something else."""
        known = inspect.signature(ALGOS[self.algo].__init__).parameters
        unknown = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown is not None:
            nearest = difflib.get_close_matches(unknown[1], known, n=1)
            hint = f", did you mean {nearest[0]}?" if nearest else ""
            return f"{self.algo} has no hyperparameter {unknown[1]}{hint}"
        if isinstance(error, (ValueError, TypeError)) and _raised_in(error, LIBRARIES):
            return str(error)
        return None

    def _discard_run_folder(self) -> None:
        """Remove the folder of a run that never trained, which ``enjoy`` would take for the latest one."""
        files = [path for path in Path(self.save_path).rglob("*") if path.is_file()]
        if all(path.name.endswith(".monitor.csv") for path in files):
            shutil.rmtree(self.save_path, ignore_errors=True)
            with contextlib.suppress(OSError):  # other runs are in it
                Path(self.log_path).rmdir()

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        super()._save_config(saved_hyperparams)
        # What describes the environment is no argument of the algorithm.
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
        Train, and bring the records up to date however the training ends.

        :param model: the model
        """
        try:
            super().learn(model)
        finally:
            if self.recorder is not None:
                self.recorder.save()

    def hyperparameters_optimization(self) -> None:
        """Search for hyperparameters."""
        try:
            super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            raise UserError(f"no trial of the study came to its end: {error}") from error


def _raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Tell whether the line that raised an error belongs to one of some packages."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").split(".")[0] in packages

"""A saved agent: its files, its hyperparameters, and the arguments of its training."""

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_policyopt import registry
from sb3_policyopt.errors import HubUserError, PickleRequiredError
from sb3_policyopt.hub.environments import split_id
from sb3_policyopt.hub.named_classes import dotted_name, python_source
from sb3_policyopt.hub.plain_yaml import check_config, wrappers_in
from sb3_policyopt.hub.wrappers import is_plain, plain
from sb3_policyopt.hyperparams.zoo_yaml import load_plain
from sb3_policyopt.saving.constructors import parameters_of
from sb3_policyopt.saving.safe_zip import policy_alias, without_pickles


@dataclass(frozen=True)
class Agent:
    """
    A saved agent.

    :param algo: name of a registered algorithm, such as "ppo"
    :param env_id: Gymnasium id of the environment it was trained on
    :param zip_path: the file that ``model.save()`` wrote
    :param config: hyperparameters as in rl-zoo3's ``config.yml``
    :param arguments: command line of the training as in rl-zoo3's ``args.yml``
    :param env_kwargs: arguments of the environment
    :param statistics_path: pickle of the ``VecNormalize``, if there was one
    :param run_folder: folder with the logs of the training, if there are any
    :param zip_name: name of the zip in the repository, if not the zoo's
    :param tensorboard_folder: folder with TensorBoard files to publish, if there are any
    """

    algo: str
    env_id: str
    zip_path: Path
    config: dict[str, object]
    arguments: dict[str, object]
    env_kwargs: dict[str, object] = field(default_factory=dict)
    statistics_path: "Path | None" = None
    run_folder: "Path | None" = None
    zip_name: "str | None" = None
    tensorboard_folder: "Path | None" = None

    @property
    def class_name(self) -> str:
        """Name of the algorithm's class."""
        return registry.title(self.algo)

    @property
    def name(self) -> str:
        """The zoo's name of the model, and the default name of its repository."""
        return f"{self.algo}-{file_name_of(self.env_id)}"

    @property
    def file_name(self) -> str:
        """Name of the zip in the repository."""
        return self.zip_name or f"{self.name}.zip"

    def stored(self) -> dict[str, int | float | str]:
        """
        Read the numbers and strings among the attributes in the zip; nothing is unpickled.

        :return: attributes of the saved model, by name
        :raises HubUserError: if the file holds none
        """
        try:
            with zipfile.ZipFile(self.zip_path) as archive:
                data = dict(json.loads(archive.read("data")))
        except (KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise HubUserError(
                f"{self.zip_path} is damaged, or was not saved by model.save() ({type(error).__name__}: {error})"
            ) from error
        return {name: value for name, value in data.items() if isinstance(value, (int, float, str))}

    @property
    def is_safe(self) -> bool:
        """Whether the zip can be loaded without unpickling."""
        try:
            without_pickles(self.zip_path)
        except PickleRequiredError:
            return False
        return True

    @property
    def needs_trust(self) -> bool:
        """Whether the command ``load_from_hub`` takes the agent only with ``--trust``, for its zip or its configuration."""
        try:
            check_config(self.config, "config.yml")
        except ValueError:
            return True
        return not self.is_safe


def file_name_of(env_id: str) -> str:
    """
    Convert an environment's id to a file name, as rl-zoo3 does.

    :param env_id: Gymnasium id, such as "ALE/Pong-v5" or "package:Name-v0"
    :return: the name, such as "ALE-Pong-v5" or "Name-v0"
    """
    return split_id(env_id)[1].replace("/", "-")


def find_run(folder: Path, algo: str, env_id: str, exp_id: int) -> Path:
    """
    Find the folder of a zoo run.

    :param folder: the log folder
    :param algo: name of the algorithm
    :param env_id: Gymnasium id
    :param exp_id: number of the run; 0 for the latest, -1 for a log folder without numbers
    :return: ``folder/algo/env_n``
    :raises HubError: if there is none
    """
    if exp_id < 0:
        run = folder / algo
    else:
        run = folder / algo / f"{file_name_of(env_id)}_{exp_id or latest_run(folder, algo, env_id)}"
    if not run.is_dir():
        raise HubUserError(f"there is no run folder {run}: train first, or check --folder, --algo, --env and --exp-id")
    return run


def latest_run(folder: Path, algo: str, env_id: str) -> int:
    """
    Find the number of the latest run.

    :param folder: the log folder
    :param algo: name of the algorithm
    :param env_id: Gymnasium id
    :return: the number, 0 if there is no run
    """
    pattern = re.compile(re.escape(file_name_of(env_id)) + r"_(\d+)")
    matches = (pattern.fullmatch(path.name) for path in (folder / algo).glob("*"))
    return max((int(match.group(1)) for match in matches if match), default=0)


def agent_of_run(run: Path, algo: str, env_id: str, checkpoint: str = "last") -> Agent:
    """
    Read the folder of a zoo run.

    :param run: the folder
    :param algo: name of the algorithm
    :param env_id: Gymnasium id
    :param checkpoint: "last" (end of the training), "best" (of the evaluations), "last checkpoint", or a number of steps
    :return: the agent
    :raises HubError: if a file is missing or not plain
    """
    name = file_name_of(env_id)
    zip_path = _checkpoint(run, name, checkpoint)
    config = _read_yaml(run / name / "config.yml")
    try:
        for key in ("env_wrapper", "vec_env_wrapper"):
            wrappers_in(config, key, str(run / name / "config.yml"))
    except ValueError as error:
        raise HubUserError(str(error)) from error
    arguments = _read_yaml(run / name / "args.yml")
    env_kwargs = arguments.get("env_kwargs") or config.get("env_kwargs")
    statistics = run / name / "vecnormalize.pkl"
    if config.get("normalize") and not statistics.is_file():
        raise HubUserError(f"the run normalised its observations or rewards, but {statistics} is missing")
    agent = Agent(
        algo,
        split_id(env_id)[1],
        zip_path,
        config,
        arguments,
        env_kwargs=dict(env_kwargs) if isinstance(env_kwargs, dict) else {},
        statistics_path=statistics if config.get("normalize") else None,
        run_folder=run,
    )
    agent.stored()
    return agent


def _checkpoint(run: Path, name: str, checkpoint: str) -> Path:
    if checkpoint == "best":
        path = run / "best_model.zip"
    elif checkpoint == "last checkpoint":
        checkpoints = list(run.glob("rl_model_*_steps.zip"))
        if not checkpoints:
            raise HubUserError(f"{run} has no checkpoint: train with --save-freq, or leave out --load-last-checkpoint")
        path = max(checkpoints, key=lambda candidate: int(candidate.stem.split("_")[-2]))
    elif checkpoint == "last":
        path = run / f"{name}.zip"
    else:
        path = run / f"rl_model_{checkpoint}_steps.zip"
    if not path.is_file():
        raise HubUserError(f"{path} is missing: the training has not saved it")
    if not zipfile.is_zipfile(path):
        raise HubUserError(f"{path} is not a zip file: it is damaged")
    return path


def _read_yaml(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise HubUserError(f"{path} is missing: it is written by `sb3-policyopt train`")
    try:
        return load_plain(path.read_text(encoding="utf-8"), str(path))
    except ValueError as error:
        raise HubUserError(str(error)) from error


def config_of_model(model: BaseAlgorithm, algorithm_class: type | None = None) -> dict[str, object]:
    """
    List the hyperparameters of a model that differ from the defaults of a class, as in rl-zoo3's ``config.yml``.

    :param model: the agent
    :param algorithm_class: the class with which such an agent can be trained again; that of the model by default
    :return: value by name; of a coefficient with a schedule the schedule, unless rl-zoo3's YAML cannot express it
    """
    config: dict[str, object] = {"n_envs": model.n_envs, "n_timesteps": model.num_timesteps}
    config["policy"] = policy_alias(model) or dotted_name(model.policy_class)
    if model.policy_kwargs:
        config["policy_kwargs"] = python_source(model.policy_kwargs)
    elsewhere = {"policy", "env", "policy_kwargs", "verbose", "seed", "device", "tensorboard_log", "stats_window_size"}
    for name, parameter in parameters_of(algorithm_class or type(model)).items():
        if name not in elsewhere and hasattr(model, name) and parameter.default is not parameter.empty:
            value = _zoo_value(_as_given(model, name))
            if value is not None and value != _zoo_value(parameter.default):
                config[name] = value
    return config


def _as_given(model: BaseAlgorithm, name: str) -> object:
    """The schedule of a coefficient, whose attribute has the value of the moment; any other hyperparameter as it is."""
    value = getattr(model, name)
    schedules: Mapping[str, object] = getattr(model, "schedules", {})  # stock's algorithms have none
    values: Mapping[str, object] = getattr(model, "scheduled_values", {})
    scheduled = name in schedules and value == values.get(name)  # another number was assigned, and holds from then on
    return schedules[name] if scheduled else value


def _zoo_value(value: object) -> bool | int | float | str | list[object] | None:
    """Numbers, strings, lists, and rl-zoo3's ``lin_x`` for a schedule from x to 0; None for what its YAML cannot express."""
    while isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule) and value.end == 0 and value.end_fraction == 1:
        return f"lin_{value.start}"
    if isinstance(value, (list, tuple)) and is_plain(value):
        return [plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else None

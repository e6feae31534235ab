"""Checks of a command line for mistakes that rl-zoo3 would report with a traceback."""

import argparse
import contextlib
import importlib
import io
import os
import re
from pathlib import Path

import gymnasium as gym
import rl_zoo3
import rl_zoo3.import_envs
import torch as th
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_model_path

from sb3_policyopt import registry
from sb3_policyopt.errors import UserError, did_you_mean
from sb3_policyopt.zoo.entry import check_storage
from sb3_policyopt.zoo.registration import register

#: Where rl-zoo3's commands look for agents, and where its ``train`` puts them.
ZOO_FOLDER, LOGS = "rl-trained-agents", "logs"

#: NumPy takes no larger seed.
LARGEST_SEED = 2**32 - 1

#: What to do where an environment or an algorithm is not registered.
OWN = "(--gym-packages MODULE imports the module that registers one of your own)"

#: What to install for environments that are not registered, by a part of their id.
PACKAGES = {
    "NoFrameskip": "'sb3-policyopt[envs]'",
    "ALE/": "'sb3-policyopt[envs]'",
    "BulletEnv": "pybullet-envs-gymnasium",
    "MiniGrid": "minigrid",
}


def parse(
    argv: list[str], *options: tuple[str, ...], flags: tuple[tuple[str, ...], ...] = (), **defaults: str
) -> argparse.Namespace:
    """
    Read some options of a command line and ignore the rest.

    :param argv: the command line
    :param options: the spellings of each option that takes one value
    :param flags: the spellings of each option that takes none
    :param defaults: default by option name
    :return: the values, None for an option without value and default
    """
    parser = argparse.ArgumentParser(add_help=False)
    for names in options:
        parser.add_argument(*names)
    for names in flags:
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.set_defaults(**defaults)
    return parser.parse_known_args(argv)[0]


def check_number(argv: list[str], names: tuple[str, ...], least: int | None = None, most: int | None = None) -> None:
    """
    Check the number that an option has.

    :param argv: the command line
    :param names: the spellings of the option; a value that is no whole number is left to rl-zoo3's parser
    :param least: the smallest number allowed, None for any
    :param most: the largest number allowed, None for any
    :raises UserError: if it is smaller or larger
    """
    text = getattr(parse(argv, names), names[-1].lstrip("-").replace("-", "_"))
    if text is None or re.fullmatch(r"-?\d+", text) is None:
        return
    if (least is not None and int(text) < least) or (most is not None and int(text) > most):
        limit = f"at most {most}" if least is None else f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{names[-1]} must be {limit}, got {text}")


def check_folder(option: str, folder: str) -> None:
    """
    Check that a folder exists or can be made.

    :param option: that names it
    :param folder: the folder
    :raises UserError: if it, or a folder that should contain it, is a file
    """
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{option} {folder}: {nearest.name} is a file, not a folder; name a folder")


def requests_help(argv: list[str]) -> bool:
    """
    Test whether a command line requests help, for which no checks are made.

    :param argv: the command line
    :return: True if it has ``-h`` or ``--help``
    """
    return "-h" in argv or "--help" in argv


def check_algorithm(algo: str) -> None:
    """
    Check that an algorithm is registered with rl-zoo3.

    :param algo: its key
    :raises UserError: if it is not
    """
    if algo not in rl_zoo3.ALGOS:
        known = f" (there are {', '.join(sorted(rl_zoo3.ALGOS))})"
        raise UserError(f"there is no algorithm {algo}{did_you_mean(algo.lower(), rl_zoo3.ALGOS, known)} {OWN}")


def import_packages(packages: list[str]) -> None:
    """
    Import the modules of ``--gym-packages``, and register the algorithms that they add with rl-zoo3.

    :param packages: modules that register environments or algorithms
    :raises UserError: if there is none of that name, or an algorithm's class or functions cannot be imported
    """
    registry.import_packages(packages)
    try:
        register()
    except (ImportError, AttributeError) as error:
        raise UserError(f"--gym-packages {' '.join(packages)}: an algorithm cannot be imported: {error}") from error


def check_environment(env_id: str) -> None:
    """
    Check that an environment is registered.

    :param env_id: its id
    :raises UserError: if it is not
    """
    if env_id in gym.envs.registry:
        return
    for part, distribution in PACKAGES.items():
        if part in env_id and not any(part in known for known in gym.envs.registry):
            raise UserError(f"{env_id} is not registered: pip install {distribution}")
    raise UserError(f"there is no environment {env_id}{did_you_mean(env_id, gym.envs.registry)} {OWN}")


def check_configuration(config: str | None) -> None:
    """
    Check that a configuration is a file or a module.

    :param config: the value of ``-conf``, None if it was not given
    :raises UserError: if it is neither
    """
    if config is None:
        return
    if config.endswith((".yml", ".yaml", ".py")):
        if not Path(config).is_file():
            raise UserError(f"-conf {config}: there is no such file")
        return
    try:
        module = importlib.import_module(config)
    except ImportError as error:
        raise UserError(f"-conf {config}: neither a .yml, .yaml or .py file nor a module ({error})") from error
    if not hasattr(module, "hyperparams"):
        raise UserError(f"-conf {config}: the module has no dictionary called hyperparams")


def check_training(argv: list[str]) -> None:
    """
    Check the options of ``train``.

    :param argv: the command line
    :raises UserError: if one of them names what is missing
    """
    names: list[tuple[str, ...]] = [
        ("--algo",),
        ("--env",),
        ("-conf", "--conf-file"),
        ("-i", "--trained-agent"),
        ("--n-jobs",),
    ]
    names += [("--storage",), ("-f", "--log-folder"), ("-tb", "--tensorboard-log"), ("--optimization-log-path",)]
    options = parse(argv, *names, algo="ppo", env="CartPole-v1", log_folder=LOGS)
    import_packages(options.gym_packages)
    check_algorithm(options.algo)
    check_environment(options.env)
    check_configuration(options.conf_file)
    check_storage(options.storage)
    if options.trained_agent and not (options.trained_agent.endswith(".zip") and Path(options.trained_agent).is_file()):
        raise UserError(f"-i {options.trained_agent}: there is no such .zip file")
    check_folder("-f", options.log_folder)
    check_folder("--tensorboard-log", options.tensorboard_log or ".")
    check_folder("--optimization-log-path", options.optimization_log_path or ".")
    check_number(argv, ("--seed",), most=LARGEST_SEED)  # a negative one is drawn
    check_number(argv, ("--n-eval-envs",), 1)
    check_number(argv, ("--n-evaluations",), 1)
    if options.n_jobs != "-1":  # one for each core
        check_number(argv, ("--n-jobs",), 1)


def with_own_runs(argv: list[str]) -> list[str]:
    """
    Let a command that loads an agent look where ``train`` puts it, if no folder is given and there is a run.

    :param argv: the command line
    :return: the same, or with ``-f logs``
    """
    options = parse(argv, ("--algo",), ("--env",), ("-f", "--folder"), algo="ppo", env="CartPole-v1")
    own = any(Path(LOGS, options.algo).glob(f"{EnvironmentName(options.env)}_*"))
    return [*argv, "-f", LOGS] if options.folder is None and own else argv


def check_acting(argv: list[str]) -> None:
    """
    Check what ``enjoy`` and ``benchmark`` need to let an agent act.

    :param argv: the command line
    :raises UserError: if a number is out of range
    """
    check_number(argv, ("--n-envs",), 1)
    check_number(argv, ("--seed",), 0, LARGEST_SEED)


def check_playing(argv: list[str]) -> None:
    """
    Check the options of ``enjoy``.

    :param argv: the command line
    :raises UserError: if there is no such agent, or an option has an impossible value
    """
    check_agent(argv)
    check_acting(argv)
    device = parse(argv, ("--device",), device="auto").device
    try:
        th.device("cpu" if device == "auto" else device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: torch has no such device; write auto, cpu, cuda or cuda:0") from error


def check_filming(argv: list[str]) -> None:
    """
    Check the options of ``record_video`` and ``record_training``.

    :param argv: the command line
    :raises UserError: if there is no such agent, or an option has an impossible value
    """
    check_agent(argv)
    check_acting(argv)
    check_number(argv, ("-n", "--n-timesteps"), 1)
    folder = parse(argv, ("-o", "--output-folder")).output_folder
    if folder is not None:
        check_folder("-o", folder)


def agent_options(argv: list[str]) -> argparse.Namespace:
    """
    Read which agent ``enjoy``, ``record_video`` or ``record_training`` will load.

    :param argv: the command line
    :return: the values by option
    """
    return parse(
        argv,
        ("--algo",),
        ("--env",),
        ("-f", "--folder"),
        ("--exp-id",),
        ("--load-checkpoint",),
        flags=(("--load-best",), ("--load-last-checkpoint",)),
        algo="ppo",
        env="CartPole-v1",
        folder=ZOO_FOLDER,
        exp_id="0",
    )


def check_agent(argv: list[str]) -> None:
    """
    Check that the agent exists which ``enjoy``, ``record_video`` or ``record_training`` will load.

    :param argv: the command line
    :raises UserError: if it does not
    """
    options = agent_options(argv)
    import_packages(options.gym_packages)
    check_algorithm(options.algo)
    check_environment(options.env)
    if not options.exp_id.lstrip("-").isdigit():
        return  # rl-zoo3's parser reports it
    if ZOO_FOLDER in options.folder and os.environ.get("TRUST_REMOTE_CODE"):
        return  # enjoy downloads the agent of the zoo
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            get_model_path(
                int(options.exp_id),
                options.folder,
                options.algo,
                EnvironmentName(options.env),
                options.load_best,
                options.load_checkpoint,
                options.load_last_checkpoint,
            )
    except (AssertionError, ValueError) as error:
        runs = sorted(path.name for path in Path(options.folder, options.algo).glob(f"{EnvironmentName(options.env)}_*"))
        way = f"; -f FOLDER names another folder than {ZOO_FOLDER}, the zoo's default" if options.folder == ZOO_FOLDER else ""
        raise UserError(f"{error} (runs there: {', '.join(runs) or 'none'}{way})") from error


def check_benchmark(argv: list[str]) -> None:
    """
    Check that there are agents to evaluate.

    :param argv: the command line
    :raises UserError: if there are none
    """
    options = parse(argv, ("--log-dir",), log_dir="rl-trained-agents/")
    import_packages(options.gym_packages)
    check_acting(argv)
    folder = Path(options.log_dir)
    if not any(folder.glob("*/*/*/args.yml")):
        raise UserError(f"--log-dir {folder}: there is no run of the zoo in this folder")

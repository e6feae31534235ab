"""Which environment an agent was trained in: its id, its specification, and the modules that register it."""

import importlib
import sys
from collections.abc import Iterable

import gymnasium
from gymnasium.envs.registration import EnvSpec, registry
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.errors import HubUserError

_FAMILIES = {
    "ALE/": "ale_py",
    "NoFrameskip-v": "ale_py",
    "MiniGrid-": "minigrid",
    "BulletEnv-v": "pybullet_envs_gymnasium",
    "NoVel-v": "rl_zoo3.import_envs",
    "MaskedRoute-v": "sb3_policyopt.envs",
    "MaskedWorkshop-v": "sb3_policyopt.envs",
}
"""Modules that register environments, by a part of their ids."""


NO_TIME_LIMIT = -1
"""The ``max_episode_steps`` with which ``gymnasium.make`` leaves out the time limit that an environment is registered with."""


def split_id(env_id: str) -> tuple[str, str]:
    """
    Split an id as ``gymnasium.make`` takes it.

    :param env_id: such as "package:Name-v0" or "Name-v0"
    :return: the module that Gymnasium imports first, "" for none, and the id under which the environment is registered
    """
    module, _, name = env_id.rpartition(":")
    return module, name


def spec_of(env: "VecEnv | None") -> "EnvSpec | None":
    """
    Read the specification of an environment.

    :param env: of a script
    :return: what ``gymnasium.make`` made it from; None if it was made in another way
    """
    if env is None:
        return None
    try:
        spec = env.get_attr("spec")[0]
    except AttributeError:  # not made of environments of Gymnasium
        return None
    return spec if isinstance(spec, EnvSpec) else None


def register(spec: EnvSpec, module: str) -> None:
    """
    Register an environment in this process, where worker processes (``SubprocVecEnv``) alone have made it.

    :param spec: of the environment
    :param module: that registers it; "" for the one that defines it
    :raises HubUserError: if it does not
    """
    if spec.id in registry:
        return
    module = module or _module_of(spec)
    try:
        importlib.import_module(module)
    except (ImportError, ValueError) as error:  # of "" the latter
        raise _unregistered(spec.id, module) from error
    if spec.id not in registry:
        raise _unregistered(spec.id, module)


def _unregistered(env_id: str, module: str) -> HubUserError:
    return HubUserError(
        f"{env_id} is not registered in this process, also after an import of {module!r}: pass env_id='module:{env_id}' with "
        "the module that registers it"
    )


def check_registered(env_id: str, modules: Iterable[str]) -> None:
    """
    Import the modules that register an environment, and check that one of them does.

    :param env_id: Gymnasium id, without a module
    :param modules: their names
    :raises HubUserError: if a module cannot be imported, or the environment is not registered
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module can raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise HubUserError(
                f"{module}, which is to register {env_id}, cannot be imported ({reason}): install it, or name another module "
                f"with --gym-packages (of a function env_id='module:{env_id}')"
            ) from error
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise HubUserError(
            f"there is no environment {env_id}: name the module that registers it with --gym-packages (of a function "
            f"env_id='module:{env_id}')"
        ) from error


def registering_modules(env_id: str) -> tuple[str, ...]:
    """
    Name the modules that must be imported before an environment can be made.

    :param env_id: Gymnasium id, with a module before it or without
    :return: the module of the id; without one that of a known family, or that in which the environment is defined; none for
        Gymnasium's own environments, and for what is defined in a script or a notebook
    """
    module, name = split_id(env_id)
    if module:
        return (module,)
    family = next((package for part, package in _FAMILIES.items() if part in name), "")
    if family:
        return (family,)
    module = _defining_module(name)
    package = module.partition(".")[0]
    return (module,) if package in sys.modules and package not in ("gymnasium", "__main__") else ()


def acts_at_random(env_id: str) -> bool:
    """
    Whether ``enjoy`` of rl-zoo3 samples actions: in Atari and MiniGrid, where a deterministic agent may not move.

    :param env_id: Gymnasium id
    :return: True for these two
    """
    return env_id.startswith(("ALE/", "MiniGrid-")) or "NoFrameskip" in env_id


def is_of_a_script(env_id: str) -> bool:
    """
    Whether an environment is defined where nobody can import it from.

    :param env_id: Gymnasium id without a module
    :return: True for a class of a script or a notebook
    """
    return _defining_module(env_id) == "__main__"


def _defining_module(name: str) -> str:
    """The module that defines an environment; "" if it is not registered here."""
    return _module_of(registry[name]) if name in registry else ""


def _module_of(spec: EnvSpec) -> str:
    """The module of an environment's entry point; "" if there is none."""
    if isinstance(spec.entry_point, str):
        return spec.entry_point.partition(":")[0]
    return str(getattr(spec.entry_point, "__module__", None) or "")

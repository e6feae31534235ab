"""The objects whose attributes a checkpoint keeps, and those to which an environment may refer."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_policyopt.callbacks.tree import numbered
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.saving import policy_state
from sb3_policyopt.saving.env_state import IGNORED, layers
from sb3_policyopt.saving.environments import VecEnvState
from sb3_policyopt.saving.places import placed

_LIBRARIES = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "sb3_policyopt")
"""Packages whose buffers and VecEnvs have no state beside what is kept of each."""

_OF_ROLLOUT = (
    *("observations", "actions", "rewards", "advantages", "returns", "episode_starts", "log_probs", "values"),
    *("pos", "full", "generator_ready", "action_masks", "episodes", "resets"),
    *("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf"),
)
"""Attributes of rollout buffers that begin anew with every rollout."""

_OF_VENV = ("envs", "actions", "waiting", "closed", "remotes", "work_remotes", "processes", "_seeds", "_options")
"""Attributes of a ``DummyVecEnv`` or a ``SubprocVecEnv`` that are kept in other ways, or belong to a process."""


def _has_own_class(thing: object) -> bool:
    return type(thing).__module__.partition(".")[0] not in _LIBRARIES


def own_venv(venv: VecEnv) -> list[VecEnv]:
    """
    A VecEnv whose attributes may hold state.

    :param venv: behind all wrappers
    :return: a list of it if its class derives from ``DummyVecEnv`` or ``SubprocVecEnv`` outside of known packages
    """
    ours = any(base.__module__.startswith("sb3_policyopt") for base in type(venv).__mro__)
    return [venv] if isinstance(venv, (DummyVecEnv, SubprocVecEnv)) and _has_own_class(venv) and not ours else []


def left_out_of_venvs(objects: Mapping[str, object]) -> set[tuple[str, str]]:
    """
    Attributes of VecEnvs that are kept in other ways.

    :param objects: by the names under which they are kept
    :return: the name of each VecEnv among them, with each of these attributes
    """
    venvs = {name: thing for name, thing in objects.items() if isinstance(thing, (DummyVecEnv, SubprocVecEnv))}
    return {(name, key) for name, venv in venvs.items() for key in vars(venv) if key in _OF_VENV or key.startswith("buf_")}


def trained(model: PolicyOptimization, environments: VecEnvState) -> tuple[dict[str, object], set[str | tuple[str, str]]]:
    """
    What training changes beside parameters, environments and callbacks.

    :param model: the algorithm
    :param environments: its VecEnv
    :return: objects by name, and attributes to leave out, of all or of one of them
    """
    buffer, venvs = model.rollout_buffer, own_venv(environments.venv)
    objects = {
        "model": model,
        **policy_state.views(model.policy),
        **({"rollout_buffer": buffer} if _has_own_class(buffer) else {}),
        **({"venv": venvs[0]} if venvs else {}),
        **numbered(environments.wrappers),
    }
    return objects, {
        *model._excluded_save_params(),
        *VecEnvState.wrapper_attributes,
        "start_time",
        *policy_state.left_out(model.policy),
        *(("rollout_buffer", key) for key in _OF_ROLLOUT),
        *left_out_of_venvs(objects),
    }


def names_of_wrappers(names: Sequence[str]) -> list[str]:
    """
    The wrappers among the names of :func:`trained`.

    :param names: of objects
    :return: class and number of each wrapper
    """
    return [name for name in names if " " in name and not name.startswith("policy.")]


def shared(venvs: Sequence[VecEnvState]) -> dict[str, object]:
    """
    Objects that environments of several VecEnvs in this process hold.

    :param venvs: the VecEnvs of the model and of the callbacks
    :return: one object with all of them as attributes, by its name; nothing if there are none
    """
    seen: dict[int, object] = {}
    found: dict[int, object] = {}
    for venv in {id(state.venv): state.venv for state in venvs if isinstance(state.venv, DummyVecEnv)}.values():
        stack = [layer for env in venv.envs for layer in layers(env)]
        things = placed({str(number): layer for number, layer in enumerate(stack)}, IGNORED).values()
        found.update({id(thing): thing for thing in things if id(thing) in seen})
        seen.update({id(thing): thing for thing in things})
    holder = SimpleNamespace(**{str(number): thing for number, thing in enumerate(found.values())})
    return {"objects that VecEnvs share": holder} if found else {}


def standing(model: PolicyOptimization, callbacks: Sequence[BaseCallback], venvs: Sequence[VecEnvState]) -> dict[str, object]:
    """
    The objects to which an environment in this process may refer, and which are not copied with it.

    :param model: the algorithm
    :param callbacks: all callbacks
    :param venvs: the VecEnvs of the model and of the callbacks
    :return: the objects by a name that is the same in every run of the script
    """
    layers = {f"venv {i} {j}": layer for i, venv in enumerate(venvs) for j, layer in enumerate((*venv.wrappers, venv.venv))}
    return {
        "model": model,
        "logger": model.logger,
        "rollout buffer": model.rollout_buffer,
        "optimizer": model.policy.optimizer,
        **policy_state.named_parts(model.policy),
        **layers,
        **{f"callback {name}": callback for name, callback in numbered(callbacks).items()},
    }

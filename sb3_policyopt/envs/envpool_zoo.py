"""EnvPool with the options of the zoo's YAML files: among them Atari as SB3 configures it."""

import os
import re
from typing import Any, TypeAlias

from sb3_policyopt.envs.envpool import EnvPoolVecEnv, make_envpool

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
NO_FRAMESKIP = re.compile(r"(?P<game>\w+)NoFrameskip-v4")

# AtariWrapper's arguments with its defaults, and what EnvPool calls them.
Settings: TypeAlias = dict[str, Any]
"""Options of ``make_envpool`` or of a wrapper, by name."""

_ATARI_WRAPPER_DEFAULTS: Settings = {
    "noop_max": 30,
    "frame_skip": 4,
    "screen_size": 84,
    "terminal_on_life_loss": True,
    "clip_reward": True,
    "action_repeat_probability": 0.0,
}
_ENVPOOL_NAMES: dict[str, tuple[str, ...]] = {
    "noop_max": ("noop_max",),
    "frame_skip": ("frame_skip",),
    "screen_size": ("img_height", "img_width"),
    "terminal_on_life_loss": ("episodic_life",),
    "clip_reward": ("reward_clip",),
    "action_repeat_probability": ("repeat_action_probability",),
}


def _wrapper_arguments(env_wrapper: object) -> Settings | None:
    """
    :param env_wrapper: the zoo's ``env_wrapper``: ``None``, a dotted name, ``{name: arguments}`` or a list of these
    :return: AtariWrapper's arguments, or None without a wrapper
    :raises ValueError: if there is a wrapper other than AtariWrapper
    """
    wrappers = env_wrapper if isinstance(env_wrapper, (list, tuple)) else [env_wrapper]
    arguments: Settings | None = None
    for wrapper in wrappers:
        if wrapper is None:
            continue
        name, given = next(iter(wrapper.items())) if isinstance(wrapper, dict) else (wrapper, {})
        if name != ATARI_WRAPPER:
            raise ValueError(
                f"env_wrapper={name!r} cannot be applied to EnvPool, whose environments are not Python objects. "
                "Use a VecEnv wrapper around make_envpool(...), or train without EnvPool."
            )
        unknown = set(given) - set(_ATARI_WRAPPER_DEFAULTS)
        if unknown:
            raise ValueError(f"env_wrapper: AtariWrapper has no argument {sorted(unknown)}")
        arguments = {**_ATARI_WRAPPER_DEFAULTS, **given}
    return arguments


def envpool_task(env_id: str, env_wrapper: object = None, frame_stack: int | None = None) -> tuple[str, Settings]:
    """
    Translate an environment of the zoo's YAML files to EnvPool's name and settings.

    ``PongNoFrameskip-v4`` with SB3's ``AtariWrapper`` and ``frame_stack: 4`` becomes EnvPool's ``Pong-v5`` with the same
    no-ops, frame skip, image, lives, reward signs and stack; any other id is not changed.

    :param env_id: the id in Gymnasium
    :param env_wrapper: as in the zoo's YAML
    :param frame_stack: number of frames stacked, as in the zoo's YAML
    :return: EnvPool's id and settings for ``make_envpool``
    :raises ValueError: if a wrapper, or frame stacking outside Atari, is not possible with EnvPool
    """
    arguments = _wrapper_arguments(env_wrapper)
    atari = NO_FRAMESKIP.fullmatch(env_id)
    if atari is None:
        if arguments is not None:
            raise ValueError(f"env_wrapper: AtariWrapper on EnvPool needs a ...NoFrameskip-v4 environment, got {env_id!r}")
        if frame_stack is not None:
            raise ValueError(
                f"frame_stack={frame_stack}: EnvPool stacks frames of Atari only: wrap {env_id!r} in VecFrameStack"
            )
        return env_id, {}
    if arguments is None:
        raise ValueError(f"{env_id!r} without AtariWrapper has raw frames, which EnvPool does not have: add {ATARI_WRAPPER!r}")
    settings = {setting: arguments[argument] for argument, names in _ENVPOOL_NAMES.items() for setting in names}
    return f"{atari['game']}-v5", {**settings, "use_fire_reset": True, "stack_num": frame_stack or 1}


def envpool_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    env_kwargs: Settings | None = None,
    env_wrapper: object = None,
    frame_stack: int | None = None,
    monitor_dir: str | None = None,
    info_keywords: tuple[str, ...] = (),
) -> EnvPoolVecEnv:
    """
    ``make_envpool`` with the options of the zoo's YAML files.

    :param env_id: the id in Gymnasium, as in the YAML; ``...NoFrameskip-v4`` is translated to EnvPool's Atari
    :param n_envs: number of environments
    :param seed: seed of the first environment
    :param env_kwargs: settings for ``make_envpool``
    :param env_wrapper: as in the YAML; only SB3's ``AtariWrapper`` can be translated
    :param frame_stack: as in the YAML; only for Atari. The environment returned has it applied.
    :param monitor_dir: folder for ``0.monitor.csv``
    :param info_keywords: values of the last ``info`` to add to the statistics of an episode
    :return: the environments, with episode statistics
    :raises ValueError: if EnvPool cannot do what the options say
    """
    task, settings = envpool_task(env_id, env_wrapper, frame_stack)
    if NO_FRAMESKIP.fullmatch(env_id):
        # Monitor is inside of AtariWrapper, and so counts emulator frames.
        settings["frames_per_step"] = settings["frame_skip"]
    monitor_file = None
    if monitor_dir is not None:
        os.makedirs(monitor_dir, exist_ok=True)
        monitor_file = os.path.join(monitor_dir, "0")
    settings.update(env_kwargs or {})
    return make_envpool(task, n_envs, seed, monitor_file=monitor_file, info_keywords=info_keywords, **settings)

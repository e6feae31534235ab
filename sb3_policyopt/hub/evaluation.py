"""The evaluation of an agent: a function that runs it, and the same as code for the model card."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_policyopt import registry
from sb3_policyopt.errors import HubUserError
from sb3_policyopt.evaluation import evaluate_policy
from sb3_policyopt.hub.environments import NO_TIME_LIMIT, check_registered, is_of_a_script, registering_modules, split_id
from sb3_policyopt.hub.normalization import freeze
from sb3_policyopt.hub.plain_yaml import Wrappers, wrappers_in

if TYPE_CHECKING:
    from typing_extensions import Unpack

Env = gym.Env[object, object]
AnyEnv = TypeVar("AnyEnv", Env, VecEnv)

#: Steps after which an episode without time limit is taken for one that never ends.
LONGEST_EPISODE = 100_000


class Settings(TypedDict, total=False):
    """The fields of a :class:`Protocol` that rl-zoo3's ``config.yml`` does not contain."""

    env_kwargs: dict[str, object]
    imports: tuple[str, ...]
    n_envs: int
    n_episodes: int
    deterministic: bool
    seed: int


@dataclass(frozen=True)
class Protocol:
    """
    The environment of an evaluation, and its settings.

    :param env_id: Gymnasium id
    :param env_kwargs: arguments of the environment
    :param env_wrappers: dotted names of wrappers of one environment, with arguments, innermost first
    :param vec_env_wrappers: the same for the vectorised environment
    :param frame_stack: how many observations are stacked; 0 for none
    :param imports: modules that register the environment
    :param n_envs: how many copies of the environment run in parallel
    :param n_episodes: how many episodes are counted
    :param deterministic: whether actions are the mode of the policy, or sampled
    :param seed: seed of the environments, and of sampled actions
    """

    env_id: str
    env_kwargs: dict[str, object] = field(default_factory=dict)
    env_wrappers: Wrappers = field(default_factory=list)
    vec_env_wrappers: Wrappers = field(default_factory=list)
    frame_stack: int = 0
    imports: tuple[str, ...] = ()
    n_envs: int = 1
    n_episodes: int = 10
    deterministic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("n_eval_episodes", self.n_episodes, 1),
            ("n_envs", self.n_envs, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    @classmethod
    def from_config(cls, env_id: str, config: Mapping[str, object], **settings: "Unpack[Settings]") -> "Protocol":
        """
        Read the wrappers of the environment from hyperparameters in rl-zoo3's form.

        :param env_id: Gymnasium id; a module before it is one of the ``imports``
        :param config: contents of ``config.yml``
        :param settings: the other fields
        :return: the protocol
        """
        frame_stack = config.get("frame_stack")
        module, name = split_id(env_id)
        given = settings.get("imports", ())
        modules = registering_modules(env_id) if module or not given else ()
        settings["imports"] = tuple(dict.fromkeys((*given, *modules)))
        return cls(
            name,
            env_wrappers=wrappers_in(config, "env_wrapper"),
            vec_env_wrappers=wrappers_in(config, "vec_env_wrapper"),
            frame_stack=frame_stack if isinstance(frame_stack, int) else 0,
            **settings,
        )

    def make_env(self, statistics: "VecNormalize | None" = None, n_envs: "int | None" = None) -> VecEnv:
        """
        Make the environment, in rl-zoo3's order: wrappers, normalisation, frame stack.

        :param statistics: a ``VecNormalize`` attached to no environment, whose statistics are to be used
        :param n_envs: another number of copies
        :return: the environment, seeded
        :raises HubUserError: if the environment is not registered, or has no such arguments
        """
        check_registered(self.env_id, self.imports)
        try:
            env: VecEnv = make_vec_env(
                self.env_id,
                n_envs=n_envs or self.n_envs,
                seed=self.seed,
                env_kwargs=self.env_kwargs,
                wrapper_class=self._wrap if self.env_wrappers else None,
            )
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in self.env_kwargs:
                raise
            raise HubUserError(
                f"{self.env_id} has no argument {unknown[1]}: correct --env-kwargs (of a function env_kwargs=)"
            ) from error
        for name, arguments in self.vec_env_wrappers:
            env = _wrapped(env, name, arguments)
        if statistics is not None:
            statistics.set_venv(env)
            env = freeze(statistics)
        return VecFrameStack(env, self.frame_stack) if self.frame_stack else env

    def _wrap(self, env: Env) -> Env:
        for name, arguments in self.env_wrappers:
            env = _wrapped(env, name, arguments)
        return env

    def evaluate(self, model: BaseAlgorithm, env: VecEnv) -> "Score":
        """
        Evaluate an agent, with its masks and its memory if it has them.

        :param model: the agent
        :param env: what :meth:`make_env` returned, not used before
        :return: its returns, without normalisation
        :raises HubUserError: if an environment without time limit does not end
        """
        set_random_seed(self.seed)
        returns, lengths = evaluate_policy(
            model,
            env,
            n_eval_episodes=self.n_episodes,
            deterministic=self.deterministic,
            return_episode_rewards=True,
            callback=self._check_length if self.env_kwargs.get("max_episode_steps") == NO_TIME_LIMIT else None,
        )
        return Score([float(value) for value in np.asarray(returns)], [int(value) for value in np.asarray(lengths)])

    def _check_length(self, local: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        """Refuse an episode that is too long; SB3 passes the local variables of its evaluation."""
        if local["current_lengths"].max() >= LONGEST_EPISODE:
            raise HubUserError(
                f"an episode of {self.env_id} without time limit has not ended after {LONGEST_EPISODE} steps: name a limit "
                "for the evaluation with --env-kwargs max_episode_steps:NUMBER (of a function env_kwargs=)"
            )

    def code(self, normalize: list[str]) -> tuple[list[str], list[str]]:
        """
        Write :meth:`make_env` as Python code for a model card.

        :param normalize: lines that wrap ``env`` in its ``VecNormalize``, if there is one
        :return: the import lines, and the lines that define ``env``
        """
        imports = [f"import {module}  # registers the environment" for module in self.imports]
        if not imports and is_of_a_script(self.env_id):
            imports.append(f"# register {self.env_id} first: its author did so in a script")
        imports.append("from stable_baselines3.common.env_util import make_vec_env")
        imports += sorted({_import(name) for name, _ in self.env_wrappers + self.vec_env_wrappers})
        arguments = [f'"{self.env_id}"', f"n_envs={self.n_envs}", f"seed={self.seed}"]
        if self.env_kwargs:
            arguments.append(f"env_kwargs={self.env_kwargs!r}")
        if self.env_wrappers:
            calls = "env"
            for name, keywords in self.env_wrappers:
                calls = _call(calls, name, keywords)
            arguments.append(f"wrapper_class=lambda env: {calls}")
        lines = [f"env = make_vec_env({', '.join(arguments)})"]
        lines += [f"env = {_call('env', name, keywords)}" for name, keywords in self.vec_env_wrappers]
        lines += normalize
        if self.frame_stack:
            imports.append("from stable_baselines3.common.vec_env import VecFrameStack")
            lines.append(f"env = VecFrameStack(env, {self.frame_stack})")
        return imports, lines


@dataclass(frozen=True)
class Score:
    """
    The result of an evaluation.

    :param returns: undiscounted return of each episode
    :param lengths: number of steps of each episode
    """

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns (over the episodes, not of the mean)."""
        return float(np.std(self.returns))

    def __str__(self) -> str:
        """The form that leaderboards on the Hub parse."""
        return f"{self.mean:.2f} +/- {self.std:.2f}"


def requirement(env_id: str) -> str:
    """
    Name the package that an environment needs.

    :param env_id: Gymnasium id, registered
    :return: a requirement for pip, or "" if Gymnasium alone suffices or the package is not known
    """
    entry_point = str(gym.spec(split_id(env_id)[1]).entry_point)
    families = {
        "gymnasium.envs.classic_control": "gymnasium[classic-control]",
        "gymnasium.envs.box2d": "gymnasium[box2d]",
        "gymnasium.envs.mujoco": "gymnasium[mujoco]",
        "ale_py": "ale-py",
        "minigrid": "minigrid",
        "pybullet_envs_gymnasium": "pybullet_envs_gymnasium",
        "sb3_policyopt.envs": "sb3-policyopt",
        "<function create_no_vel_env": "rl-zoo3",
    }
    return next((name for module, name in families.items() if entry_point.startswith(module)), "")


def _wrapped(env: AnyEnv, name: str, arguments: Mapping[str, object]) -> AnyEnv:
    wrapper = cast(Callable[..., AnyEnv], registry.resolve(":".join(name.rsplit(".", 1))))
    return wrapper(env, **arguments)


def _import(name: str) -> str:
    module, _, attribute = name.rpartition(".")
    return f"from {module} import {attribute}"


def _call(inner: str, name: str, arguments: Mapping[str, object]) -> str:
    return f"{name.rpartition('.')[2]}({', '.join([inner, *(f'{key}={value!r}' for key, value in arguments.items())])})"

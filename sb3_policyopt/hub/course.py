"""``package_to_hub`` as in the package huggingface_sb3, which the Hugging Face Deep Reinforcement Learning Course calls."""

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from sb3_policyopt.hub.agent import Agent
from sb3_policyopt.hub.environments import spec_of, split_id
from sb3_policyopt.hub.evaluation import Protocol
from sb3_policyopt.hub.push import agent_of_model, push_agent
from sb3_policyopt.hub.wrappers import normalization_of


def package_to_hub(
    model: BaseAlgorithm,
    model_name: str,
    model_architecture: str,
    env_id: str,
    eval_env: GymEnv,
    repo_id: str,
    commit_message: "str | None" = None,
    is_deterministic: bool = True,
    n_eval_episodes: int = 10,
    token: "str | None" = None,
    video_length: int = 1000,
    logs: "str | Path | None" = None,
    *,
    use_auth_token: "bool | str | None" = None,
    local_repo_path: "str | Path | None" = None,
    dry_run: "str | Path | None" = None,
) -> str:
    """
    Evaluate an agent, film it, write its model card and publish everything, with the arguments of huggingface_sb3.

    It is :func:`sb3_policyopt.hub.push_to_hub` with other names: one commit is sent after everything is built and checked.
    The environment is made again as ``eval_env`` was made (arguments, wrappers, ``VecNormalize``, frame stack), so that the
    code on the card finds the same score. ``eval_env`` itself is neither stepped nor changed.

    :param model: a trained agent of this package
    :param model_name: name of the agent's zip in the repository, with or without ``.zip``. rl-zoo3 finds only the name
        ``"{algo}-{env_id}"``
    :param model_architecture: name of the algorithm: that of the model's class
    :param env_id: Gymnasium id of the environment
    :param eval_env: an environment or a ``VecEnv``. The statistics of its ``VecNormalize`` are published; without one, those
        of the model's own environment, if there are any
    :param repo_id: where to publish, ``"name/repository"``
    :param commit_message: message of the commit; by default "Upload agent"
    :param is_deterministic: whether actions are the mode of the policy, or sampled. Unlike huggingface_sb3 this is also done
        as said in Atari games
    :param n_eval_episodes: how many episodes are counted
    :param token: access token; by default the one stored by ``hf auth login``, or ``HF_TOKEN``
    :param video_length: length of the video in steps, 0 for no video
    :param logs: folder with the logs of the training: ``progress.csv``, monitor files and evaluations, drawn on the card, and
        TensorBoard files, published in the folder ``logs``
    :param use_auth_token: the name of ``token`` in older versions; True is the stored token
    :param local_repo_path: an argument of older versions, not used, because nothing is cloned
    :param dry_run: build everything in this folder, and send nothing
    :return: address of the commit, or the folder of the dry run
    :raises ValueError: if an argument is not as described, or ``eval_env`` has a wrapper that cannot be made again
    :raises HubError: if anything else fails; the message is one sentence
    """
    if local_repo_path is not None:
        warnings.warn("local_repo_path is not used: nothing is cloned", stacklevel=2)
    _check(model, model_name, model_architecture, logs)
    env = eval_env if isinstance(eval_env, VecEnv) else _vectorised(eval_env)
    _check_id(env, env_id)
    with tempfile.TemporaryDirectory() as scratch:
        agent = agent_of_model(model, Path(scratch), env=env, env_id=env_id, run_folder=logs)
        agent = _with_own_statistics(agent, model, Path(scratch))
        agent = replace(
            agent,
            zip_name=f"{model_name.removesuffix('.zip')}.zip",
            tensorboard_folder=agent.run_folder,
        )
        protocol = Protocol.from_config(
            env_id,
            agent.config,
            env_kwargs=agent.env_kwargs,
            n_episodes=n_eval_episodes,
            deterministic=is_deterministic,
        )
        return push_agent(
            agent,
            repo_id,
            protocol,
            video_length=video_length,
            token=token or (use_auth_token if isinstance(use_auth_token, str) else None),
            commit_message=commit_message or "Upload agent",
            dry_run=dry_run,
        )


def _check(
    model: BaseAlgorithm,
    model_name: str,
    model_architecture: str,
    logs: "str | Path | None",
) -> None:
    if not model_name or Path(model_name).name != model_name:
        raise ValueError(f"model_name must be the name of a file without folders, not {model_name!r}")
    class_name = type(model).__name__
    if model_architecture.lower() != class_name.lower():
        raise ValueError(f"model_architecture must be {class_name!r}, the class of the model, not {model_architecture!r}")
    if logs is not None and not Path(logs).is_dir():
        raise ValueError(f"logs must be a folder, and {str(logs)!r} is none")


def _vectorised(env: GymEnv) -> VecEnv:
    """A ``VecEnv`` of one environment, to read its attributes by the same calls."""
    if not isinstance(env, gym.Env):
        raise ValueError(f"eval_env must be an environment of Gymnasium or a VecEnv, not {type(env).__name__}")
    return DummyVecEnv([lambda: env])


def _check_id(env: VecEnv, env_id: str) -> None:
    spec = spec_of(env)
    if spec is not None and spec.id != split_id(env_id)[1]:
        raise ValueError(f"eval_env is {spec.id}, and env_id is {env_id}: pass an environment of this id")


def _with_own_statistics(agent: Agent, model: BaseAlgorithm, scratch: Path) -> Agent:
    """The agent, with the statistics of the training if ``eval_env`` had none."""
    env = model.get_env()
    own = unwrap_vec_normalize(env) if env is not None and agent.statistics_path is None else None
    if own is None:
        return agent
    own.save(str(scratch / "vecnormalize.pkl"))
    return replace(
        agent,
        config=agent.config | {"normalize": normalization_of(own, agent.config)},
        statistics_path=scratch / "vecnormalize.pkl",
    )

"""Publish an agent: build the repository in a folder, check it, and send it in one commit."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from huggingface_hub import HfApi
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_policyopt import registry
from sb3_policyopt.errors import HubUserError
from sb3_policyopt.hub.agent import Agent, config_of_model
from sb3_policyopt.hub.environments import NO_TIME_LIMIT, register, spec_of, split_id
from sb3_policyopt.hub.evaluation import Protocol
from sb3_policyopt.hub.repository import Report, build, check, without_training_state
from sb3_policyopt.hub.upload import check_repository, send
from sb3_policyopt.hub.wrappers import is_same, normalization_of, plain_arguments, wrappers_of
from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.saving import generators
from sb3_policyopt.setup.devices import check_name


def push_to_hub(
    model: BaseAlgorithm,
    repo_id: str,
    env_id: "str | None" = None,
    *,
    env_kwargs: "Mapping[str, object] | None" = None,
    config: "Mapping[str, object] | None" = None,
    zip_path: "str | Path | None" = None,
    run_folder: "str | Path | None" = None,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    seed: int = 0,
    video_length: int = 1000,
    private: bool = False,
    revision: "str | None" = None,
    token: "str | None" = None,
    commit_message: str = "Upload agent",
    license: str = "mit",
    dry_run: "str | Path | None" = None,
) -> str:
    """
    Evaluate an agent, film it, write its model card, and publish everything on the Hugging Face Hub in one commit.

    The files are sent after all of them are built and checked. If the upload fails, a repository that it created is deleted.

    :param model: a trained agent of this package
    :param repo_id: where to publish, ``"name/repository"``
    :param env_id: Gymnasium id of the environment; by default that of the model's environment. Write ``"module:id"`` if
        another module registers it than the one that defines it
    :param env_kwargs: arguments of the environment; by default those of the model's environment
    :param config: hyperparameters in rl-zoo3's form, with ``env_wrapper`` and ``frame_stack`` if there are any; by default
        taken from the model
    :param zip_path: the zip to publish, if the model is saved already; it is uploaded byte for byte, except
        that the state of the training is left out of a checkpoint of ``ResumableCheckpointCallback``
    :param run_folder: folder with the logs of the training (``progress.csv``, monitor files, ``provenance.json``), if any
    :param n_eval_episodes: how many episodes are counted
    :param deterministic: whether actions are the mode of the policy, or sampled
    :param seed: seed of the evaluation
    :param video_length: length of the video in steps, 0 for no video
    :param private: whether a repository that is created now is private
    :param revision: branch to commit to; by default the main one
    :param token: access token; by default the one stored by ``hf auth login``, or ``HF_TOKEN``
    :param commit_message: message of the commit
    :param license: licence of the agent, as the Hub abbreviates it
    :param dry_run: build everything in this folder, and send nothing
    :return: address of the commit, or the folder of the dry run
    :raises TypeError: if ``model`` is no model
    :raises ValueError: if a number is out of its range, or ``config`` is not given and the model's environment has a wrapper
        that cannot be made again
    :raises HubError: if anything else fails; the message is one sentence
    """
    if not isinstance(model, BaseAlgorithm):
        raise TypeError(f"model must be a trained agent, such as PPO.load(path, env=env), got {model!r}")
    with tempfile.TemporaryDirectory() as scratch:
        agent = agent_of_model(
            model,
            Path(scratch),
            env=model.get_env(),
            env_id=env_id,
            env_kwargs=env_kwargs,
            config=config,
            zip_path=zip_path,
            run_folder=run_folder,
        )
        protocol = Protocol.from_config(
            env_id or agent.env_id,
            agent.config,
            env_kwargs=agent.env_kwargs,
            n_episodes=n_eval_episodes,
            deterministic=deterministic,
            seed=seed,
        )
        return push_agent(
            agent,
            repo_id,
            protocol,
            video_length=video_length,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
            license=license,
            dry_run=dry_run,
        )


def push_agent(
    agent: Agent,
    repo_id: str,
    protocol: Protocol,
    *,
    video_length: int = 1000,
    private: bool = False,
    revision: "str | None" = None,
    token: "str | None" = None,
    commit_message: str = "Upload agent",
    license: str = "mit",
    dry_run: "str | Path | None" = None,
    device: str = "auto",
    report: Report = print,
) -> str:
    """
    Publish a saved agent; see :func:`push_to_hub` for the other parameters.

    :param agent: the agent
    :param repo_id: where to publish, ``"name/repository"``
    :param protocol: how to evaluate it
    :param device: where PyTorch evaluates the agent
    :param report: called with each message about the progress
    :return: address of the commit, or the folder of the dry run
    :raises ValueError: if ``video_length`` is negative, or ``device`` is none
    :raises HubError: if anything else fails; the message is one sentence
    """
    if video_length < 0:
        raise ValueError(f"video_length must be at least 0, not {video_length}")
    check_name(device)
    if repo_id.count("/") != 1:
        raise HubUserError(f"{repo_id!r} is not of the form name/repository")
    api = HfApi(token=token)
    if dry_run is None:
        check_repository(api, repo_id, agent, private, revision)
    target = None if dry_run is None else _empty_folder(Path(dry_run))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        folder.mkdir()
        agent = without_training_state(agent, Path(scratch), report)
        with _generators_kept():
            build(agent, protocol, folder, repo_id, revision, license, video_length, device, report)
        check(folder, agent)
        if target is not None:
            shutil.copytree(folder, target, dirs_exist_ok=True)
            report(f"Built in {target}; nothing was sent")
            return str(target)
        report(f"Uploading to {repo_id}")
        return send(api, folder, repo_id, private, revision, commit_message)


def agent_of_model(
    model: BaseAlgorithm,
    scratch: Path,
    *,
    env: "VecEnv | None",
    env_id: "str | None" = None,
    env_kwargs: "Mapping[str, object] | None" = None,
    config: "Mapping[str, object] | None" = None,
    zip_path: "str | Path | None" = None,
    run_folder: "str | Path | None" = None,
) -> Agent:
    """
    Save a model, and describe it by what is given; what is None is taken from the model and the environment.

    See :func:`push_to_hub` for the other parameters.

    :param model: the agent
    :param scratch: where to save it, with the statistics of the ``VecNormalize``
    :param env: the environment, if there is one
    :return: the agent
    :raises ValueError: if an argument or a wrapper of the environment cannot be written down
    :raises HubError: if the algorithm is not of this package, or the environment has no id
    """
    entry = registry.of_class(type(model).__name__)
    if entry is None:
        raise HubUserError(f"only {registry.class_names()} can be published, not {type(model).__name__}")
    kind = kind_of(model.policy)
    entry = registry.of_policy(entry, kind.masks, kind.memory)
    spec = spec_of(env)
    if env_id is None:
        if spec is None:
            raise HubUserError("the model has no environment that is registered in Gymnasium: pass env_id")
        env_id = spec.id
    module, env_id = split_id(env_id)
    if spec is not None and spec.id == env_id:
        register(spec, module)
    if env_kwargs is None:
        env_kwargs = _changed_arguments(spec) if spec is not None and spec.id == env_id else {}
    env_kwargs = plain_arguments(env_kwargs)
    if zip_path is None:
        zip_path = scratch / "agent.zip"
        model.save(zip_path)
    vec_normalize = unwrap_vec_normalize(env) if env is not None else None
    if vec_normalize is not None:
        vec_normalize.save(str(scratch / "vecnormalize.pkl"))
    if config is None:
        config = of_model = config_of_model(model, entry.load_class())
        stacked = unwrap_vec_wrapper(env, VecFrameStack) if env is not None else None
        if isinstance(stacked, VecFrameStack):
            of_model["frame_stack"] = stacked.stacked_obs.n_stack
        if vec_normalize is not None:
            of_model["normalize"] = normalization_of(vec_normalize, of_model)
        if spec is not None and env is not None and spec.id == env_id:
            wrappers = wrappers_of(env)
            if wrappers:
                of_model["env_wrapper"] = wrappers
    return Agent(
        entry.name,
        env_id,
        Path(zip_path),
        dict(config),
        {"algo": entry.name, "env": env_id, "env_kwargs": env_kwargs, "seed": model.seed},
        env_kwargs=dict(env_kwargs),
        statistics_path=scratch / "vecnormalize.pkl" if vec_normalize is not None else None,
        run_folder=None if run_folder is None else Path(run_folder),
    )


@contextmanager
def _generators_kept() -> Iterator[None]:
    """A context that seeds random generators for itself: at its end they go on where they were, and so does a training."""
    state = generators.capture()
    try:
        yield
    finally:
        generators.restore(state)


def _changed_arguments(spec: EnvSpec) -> dict[str, object]:
    """The arguments of an environment that differ from those with which it is registered."""
    registered = gym.spec(spec.id).kwargs | {"render_mode": spec.kwargs.get("render_mode")}
    changed = {
        name: value for name, value in spec.kwargs.items() if name not in registered or not is_same(registered[name], value)
    }
    if spec.max_episode_steps != gym.spec(spec.id).max_episode_steps:
        changed["max_episode_steps"] = NO_TIME_LIMIT if spec.max_episode_steps is None else spec.max_episode_steps
    return changed


def _empty_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubUserError(f"{folder} exists and is not an empty folder: choose another one for the dry run")
    return folder

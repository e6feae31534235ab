"""Publish an agent: build the repository in a folder, check it, and send it in one commit."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import gymnasium as gym
from huggingface_hub import HfApi, RepoCard, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, unwrap_vec_normalize, unwrap_vec_wrapper

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.hub.agent import Agent, config_of_model
from sb3_policyopt.hub.card import Card
from sb3_policyopt.hub.errors import HubError, one_sentence
from sb3_policyopt.hub.evaluation import Protocol, Score
from sb3_policyopt.hub.normalization import save_statistics
from sb3_policyopt.hub.plain_yaml import PUBLIC_ARGUMENTS, dump_plain, without_private_facts
from sb3_policyopt.hub.video import record_video, render_without_display
from sb3_policyopt.safe_zip import read_description

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "trpo": TRPO}
# Files of an earlier upload that the new one may lack; the Hub's other files (a .gitattributes, a LICENSE) stay.
_OPTIONAL_FILES = ["replay.mp4", "training.png", "vec_normalize.pkl", "vec_normalize.npz", "train_eval_metrics.zip"]
Report = Callable[[str], None]


def push_to_hub(
    model: BaseAlgorithm,
    repo_id: str,
    env_id: "str | None" = None,
    *,
    env_kwargs: "dict[str, Any] | None" = None,
    config: "dict[str, Any] | None" = None,
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

    Nothing is sent before all of it is built and checked; a failure leaves no empty repository.

    :param model: a trained PPO or TRPO
    :param repo_id: where to publish, ``"name/repository"``
    :param env_id: Gymnasium id of the environment; by default that of the model's environment
    :param env_kwargs: arguments of the environment; by default those of the model's environment
    :param config: hyperparameters in the zoo's form, with ``env_wrapper`` and ``frame_stack`` if there are any; by default
        read off the model
    :param zip_path: the zip to publish, if the model is saved already; it goes up byte for byte
    :param run_folder: what the training wrote (``progress.csv``, monitor files, ``provenance.json``), if it wrote any
    :param n_eval_episodes: how many episodes are counted
    :param deterministic: whether actions are the mode of the policy, or sampled
    :param seed: seed of the evaluation
    :param video_length: length of the video in steps, 0 for no video
    :param private: whether only you can see a repository that is created now
    :param revision: branch to commit to; by default the main one
    :param token: access token; by default the one stored by ``hf auth login``, or ``HF_TOKEN``
    :param commit_message: message of the commit
    :param license: licence of the agent, as the Hub abbreviates it
    :param dry_run: build everything in this folder, and send nothing
    :return: address of the commit, or the folder of the dry run
    :raises HubError: if anything fails; the message is one sentence
    """
    algo = type(model).__name__.lower()
    if algo not in ALGORITHMS:
        raise HubError(f"only PPO and TRPO can be published, not {type(model).__name__}")
    with tempfile.TemporaryDirectory() as scratch:
        agent = _agent_of_model(model, algo, env_id, env_kwargs, config, zip_path, run_folder, Path(scratch))
        protocol = Protocol.from_config(
            agent.env_id,
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
    :param report: where to tell what is going on
    :return: address of the commit, or the folder of the dry run
    :raises HubError: if anything fails; the message is one sentence
    """
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} is not of the form name/repository")
    api = HfApi(token=token)
    if dry_run is None:
        _check_repository(api, repo_id, agent, private)
    target = None if dry_run is None else _empty_folder(Path(dry_run))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository"
        folder.mkdir()
        build(agent, protocol, folder, repo_id, revision, license, video_length, device, report)
        check(folder, agent)
        if target is not None:
            shutil.copytree(folder, target, dirs_exist_ok=True)
            report(f"Built in {target}; nothing was sent")
            return str(target)
        report(f"Uploading to {repo_id}")
        return _send(api, folder, repo_id, private, revision, commit_message)


def build(
    agent: Agent,
    protocol: Protocol,
    folder: Path,
    repo_id: str,
    revision: "str | None",
    license: str,
    video_length: int,
    device: str,
    report: Report,
) -> None:
    """
    Write all files of the repository.

    :param agent: the agent
    :param protocol: how to evaluate it
    :param folder: where to write, empty
    :param repo_id: where it will stand
    :param revision: the branch, if not the main one
    :param license: licence of the agent
    :param video_length: length of the video in steps, 0 for no video
    :param device: where PyTorch evaluates the agent
    :param report: where to tell what is going on
    :raises HubError: if the agent does not run in its environment
    """
    render_without_display()
    shutil.copyfile(agent.zip_path, folder / f"{agent.name}.zip")
    if agent.stored().get("tensorboard_log"):
        report("The zip, which goes up as it is, tells where your TensorBoard logs are: " + agent.stored()["tensorboard_log"])
    provenance = _write_records(agent, folder)
    try:
        model = ALGORITHMS[agent.algo].load(agent.zip_path, device=device)
        env = protocol.make_env(_statistics(agent))
        report(f"Evaluating {protocol.n_episodes} episodes of {agent.env_id}")
        score = protocol.evaluate(model, env)
        env.close()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise HubError(f"the agent does not run in {agent.env_id} ({type(error).__name__}: {reason})") from error
    report(f"mean_reward: {score}")
    _write_results(protocol, score, folder)
    if video_length:
        _film(agent, model, protocol, folder / "replay.mp4", video_length, report)
    has_picture = _draw(agent, folder / "training.png", report)
    card = Card(
        replace(agent, config=without_private_facts(agent.config), zip_path=folder / f"{agent.name}.zip"),
        replace(protocol, env_kwargs=without_private_facts(protocol.env_kwargs)),
        score,
        repo_id,
        revision,
        constants.ENDPOINT,
        license,
        provenance,
        has_video=(folder / "replay.mp4").is_file(),
        has_picture=has_picture,
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def check(folder: Path, agent: Agent) -> None:
    """
    Check the built repository before anything of it is sent.

    :param folder: the repository
    :param agent: the agent
    :raises HubError: if the zip differs from the trained one, the card is not one, or it names a file that is missing
    """
    published = folder / f"{agent.name}.zip"
    if sha256(published.read_bytes()).digest() != sha256(agent.zip_path.read_bytes()).digest():
        raise HubError(f"{agent.zip_path} changed while it was being published: try again when the training has ended")
    card = RepoCard((folder / "README.md").read_text(encoding="utf-8"))
    if not card.data.to_dict().get("model-index"):
        raise HubError("the model card has no evaluation results")
    missing = [name for name in ("config.yml", "args.yml", "results.json", "provenance.json") if not (folder / name).is_file()]
    if missing:
        raise HubError(f"the repository lacks {', '.join(missing)}")


def _agent_of_model(
    model: BaseAlgorithm,
    algo: str,
    env_id: "str | None",
    env_kwargs: "dict[str, Any] | None",
    config: "dict[str, Any] | None",
    zip_path: "str | Path | None",
    run_folder: "str | Path | None",
    scratch: Path,
) -> Agent:
    """Save what is in memory into ``scratch``, and read off the model what was not told."""
    env = model.get_env()
    spec = env.get_attr("spec")[0] if env is not None else None
    if env_id is None:
        if spec is None:
            raise HubError("the model has no environment that is registered in Gymnasium: pass env_id")
        env_id = str(spec.id)
    if env_kwargs is None:
        env_kwargs = _changed_arguments(spec) if spec is not None and spec.id == env_id else {}
    if zip_path is None:
        zip_path = scratch / "agent.zip"
        model.save(zip_path)
    vec_normalize = unwrap_vec_normalize(env) if env is not None else None
    if vec_normalize is not None:
        vec_normalize.save(str(scratch / "vecnormalize.pkl"))
    if config is None:
        config = config_of_model(model)
        stacked = unwrap_vec_wrapper(env, VecFrameStack) if env is not None else None
        if isinstance(stacked, VecFrameStack):
            config["frame_stack"] = stacked.stacked_obs.n_stack
        if vec_normalize is not None:
            config["normalize"] = {"norm_obs": vec_normalize.norm_obs, "norm_reward": vec_normalize.norm_reward}
    return Agent(
        algo,
        env_id,
        Path(zip_path),
        config,
        {"algo": algo, "env": env_id, "env_kwargs": env_kwargs, "seed": model.seed},
        env_kwargs=env_kwargs,
        statistics_path=scratch / "vecnormalize.pkl" if vec_normalize is not None else None,
        run_folder=None if run_folder is None else Path(run_folder),
    )


def _changed_arguments(spec: Any) -> dict[str, Any]:
    """The arguments of an environment, but for those with which it is registered."""
    registered = gym.spec(spec.id).kwargs | {"render_mode": spec.kwargs.get("render_mode")}
    return {name: value for name, value in spec.kwargs.items() if name not in registered or registered[name] != value}


def _statistics(agent: Agent) -> "VecNormalize | None":
    """The statistics of the user's own training: their pickle is opened as the training left it."""
    if agent.statistics_path is None:
        return None
    import pickle

    with agent.statistics_path.open("rb") as file:
        statistics = pickle.load(file)
    if not isinstance(statistics, VecNormalize):
        raise HubError(f"{agent.statistics_path} does not hold a VecNormalize")
    return statistics


def _write_records(agent: Agent, folder: Path) -> dict[str, Any]:
    """Write configuration, arguments, statistics, metrics and provenance; return the provenance."""
    arguments = {"algo": agent.algo, "env": agent.env_id, "env_kwargs": None} | _public(agent.arguments)
    for name, content in (("config.yml", agent.config), ("args.yml", arguments), ("env_kwargs.yml", agent.env_kwargs)):
        (folder / name).write_text(dump_plain(without_private_facts(content)), encoding="utf-8")
    if agent.is_described:
        _write_json(folder / "config.json", read_description(agent.zip_path))
    statistics = _statistics(agent)
    if statistics is not None and agent.statistics_path is not None:
        shutil.copyfile(agent.statistics_path, folder / "vec_normalize.pkl")
        save_statistics(statistics, folder / "vec_normalize.npz")
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _metrics(agent):
            archive.write(path, path.name)
    provenance = _provenance(agent)
    _write_json(folder / "provenance.json", provenance)
    return provenance


def _metrics(agent: Agent) -> list[Path]:
    """The logs of the training: what it recorded, monitor files, evaluations."""
    files = sorted(agent.run_folder.iterdir()) if agent.run_folder else []
    return [path for path in files if path.suffix == ".csv" or path.name == "evaluations.npz"]


def _public(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in PUBLIC_ARGUMENTS if name in arguments}


def _provenance(agent: Agent) -> dict[str, Any]:
    """What the training recorded, or else what the zip says of the versions it was saved with."""
    recorded = agent.run_folder / "provenance.json" if agent.run_folder else None
    if recorded is not None and recorded.is_file():
        facts = dict(json.loads(recorded.read_text(encoding="utf-8")))
        facts["arguments"] = _public(facts.get("arguments") or {})
    else:
        stored = agent.stored()
        facts = {name: stored.get(key) for name, key in (("seed", "seed"), ("n_timesteps", "num_timesteps"))}
        with zipfile.ZipFile(agent.zip_path) as archive:
            lines = archive.read("system_info.txt").decode().splitlines()
        facts["versions"] = dict(line.removeprefix("- ").split(": ", 1) for line in lines if ": " in line)
    facts["zip_sha256"] = sha256(agent.zip_path.read_bytes()).hexdigest()
    return dict(without_private_facts(facts))


def _write_results(protocol: Protocol, score: Score, folder: Path) -> None:
    results = {
        "mean_reward": score.mean,
        "std_reward": score.std,
        "is_deterministic": protocol.deterministic,
        "n_eval_episodes": protocol.n_episodes,
        "seed": protocol.seed,
        "returns": score.returns,
        "lengths": score.lengths,
    }
    _write_json(folder / "results.json", results)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _film(agent: Agent, model: BaseAlgorithm, protocol: Protocol, path: Path, n_steps: int, report: Report) -> None:
    env = protocol.make_env(_statistics(agent), n_envs=1)
    problem = record_video(model, env, path, n_steps, protocol.deterministic)
    env.close()
    report("No video, and the card shows none: " + problem if problem else f"Recorded {n_steps} steps")


def _draw(agent: Agent, path: Path, report: Report) -> bool:
    """Draw the page of the training, if it left anything to draw."""
    if agent.run_folder is None or not _metrics(agent):
        report("No picture of the training, which left no logs")
        return False
    from sb3_policyopt.plots import plot_run

    try:
        plot_run(agent.run_folder, path)
    except (ValueError, ModuleNotFoundError) as error:
        report(f"No picture of the training: {error}")
        return False
    return True


def _check_repository(api: HfApi, repo_id: str, agent: Agent, private: bool) -> None:
    """Refuse early what the Hub or common sense would refuse after the work is done."""
    with one_sentence(repo_id):
        api.whoami()
        try:
            existing = api.repo_info(repo_id)
        except RepositoryNotFoundError:
            return
    if private and not existing.private:
        raise HubError(f"{repo_id} exists and is public: choose another name with --repo-name, or leave out --private")
    zips = {file.rfilename for file in existing.siblings or [] if file.rfilename.endswith(".zip")}
    others = zips - {f"{agent.name}.zip", "train_eval_metrics.zip"}
    if others:
        raise HubError(f"{repo_id} holds another agent ({', '.join(sorted(others))}): choose another name with --repo-name")


def _send(api: HfApi, folder: Path, repo_id: str, private: bool, revision: "str | None", commit_message: str) -> str:
    created = False
    with one_sentence(repo_id, revision=revision):
        try:
            created = _create(api, repo_id, private)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=_OPTIONAL_FILES,
            )
        except BaseException as error:  # Ctrl-C as well: nobody wants half a repository
            if created:
                _delete(api, repo_id, error)
            raise
    return str(commit.commit_url)


def _create(api: HfApi, repo_id: str, private: bool) -> bool:
    """Create the repository; False if it exists."""
    try:
        api.create_repo(repo_id, private=private)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 409:
            return False
        raise
    return True


def _delete(api: HfApi, repo_id: str, cause: BaseException) -> None:
    try:
        api.delete_repo(repo_id, missing_ok=True)
    except Exception:
        raise HubError(
            f"the upload failed ({type(cause).__name__}), and so did the removal of the repository it had created: "
            f"delete {api.endpoint}/{repo_id} yourself"
        ) from cause


def _empty_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubError(f"{folder} exists and is not an empty folder: choose another one for the dry run")
    return folder

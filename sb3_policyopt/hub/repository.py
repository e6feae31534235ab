"""The files of a published agent: built in a folder, and checked before anything of it is sent."""

import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from huggingface_hub import RepoCard, constants
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt import registry
from sb3_policyopt.errors import HubError, HubUserError
from sb3_policyopt.hub.agent import Agent
from sb3_policyopt.hub.card import Card
from sb3_policyopt.hub.evaluation import Protocol, Score
from sb3_policyopt.hub.normalization import save_statistics
from sb3_policyopt.hub.plain_yaml import PUBLIC_ARGUMENTS, without_private_facts
from sb3_policyopt.hub.video import record_video
from sb3_policyopt.hyperparams.zoo_yaml import dump_plain
from sb3_policyopt.process import render_without_display
from sb3_policyopt.saving.checkpoint_file import STATE_ENTRY
from sb3_policyopt.saving.safe_zip import read_description

Report = Callable[[str], None]


def without_training_state(agent: Agent, scratch: Path, report: Report) -> Agent:
    """
    Leave out what a checkpoint of ``ResumableCheckpointCallback`` holds of the training.

    These are attributes of callbacks, log files and states of environments, which may contain secrets.

    :param agent: the agent
    :param scratch: where to write the zip without it
    :param report: called with a message if there is something to leave out
    :return: the agent with the zip to publish, which is its own if that holds nothing of the kind
    :raises HubUserError: if the zip is damaged
    """
    agent.stored()
    with zipfile.ZipFile(agent.zip_path) as archive:
        if STATE_ENTRY not in archive.namelist():
            return agent
    path = scratch / "without_training_state.zip"
    try:
        _copy_zip(agent.zip_path, path, without=STATE_ENTRY)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise HubUserError(f"{agent.zip_path} is damaged ({error})") from error
    report(f"{STATE_ENTRY} of {agent.zip_path} is not published: it is there to resume the training, and may hold secrets")
    return replace(agent, zip_path=path)


def _copy_zip(source: Path, target: Path, without: str) -> None:
    """Copy all entries of a zip but those of one name."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            if entry.filename != without:
                copy.writestr(entry, archive.read(entry))


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
    :param repo_id: the repository, ``"name/repository"``
    :param revision: the branch, if not the main one
    :param license: licence of the agent
    :param video_length: length of the video in steps, 0 for no video
    :param device: where PyTorch evaluates the agent
    :param report: called with each message about the progress
    :raises HubError: if the agent does not run in its environment
    """
    render_without_display()
    shutil.copyfile(agent.zip_path, folder / agent.file_name)
    tensorboard_log = agent.stored().get("tensorboard_log")
    if tensorboard_log:
        report(f"The zip contains, also as it is published, the path of your TensorBoard logs: {tensorboard_log}")
    provenance = _write_records(agent, protocol, folder)
    try:
        statistics = _statistics(agent)
        norm_reward = None if statistics is None else statistics.norm_reward
        env = protocol.make_env(statistics)
        model = registry.find(agent.algo).load_class().load(agent.zip_path, device=device)
        report(f"Evaluating {protocol.n_episodes} episodes of {agent.env_id}")
        score = protocol.evaluate(model, env)
        env.close()
    except HubError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise HubError(f"the agent does not run in {agent.env_id} ({type(error).__name__}: {reason})") from error
    report(f"mean_reward: {score}")
    _write_results(protocol, score, folder)
    if video_length:
        _film(agent, model, protocol, folder / "replay.mp4", video_length, report)
    has_picture = _draw(agent, folder / "training.png", report)
    card = Card(
        replace(
            agent,
            config=without_private_facts(agent.config),
            env_kwargs=without_private_facts(agent.env_kwargs),
            zip_path=folder / agent.file_name,
        ),
        replace(protocol, env_kwargs=without_private_facts(protocol.env_kwargs)),
        score,
        repo_id,
        revision,
        constants.ENDPOINT,
        license,
        provenance,
        has_video=(folder / "replay.mp4").is_file(),
        has_picture=has_picture,
        policy_class=type(model.policy),
        norm_reward=norm_reward,
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def check(folder: Path, agent: Agent) -> None:
    """
    Check the built repository before anything of it is sent.

    :param folder: the repository
    :param agent: the agent
    :raises HubError: if the zip differs from the trained one, the card has no results, or a file is missing
    """
    published = folder / agent.file_name
    if sha256(published.read_bytes()).digest() != sha256(agent.zip_path.read_bytes()).digest():
        raise HubError(f"{agent.zip_path} changed while it was being published: try again when the training has ended")
    card = RepoCard((folder / "README.md").read_text(encoding="utf-8"))
    if not card.data.to_dict().get("model-index"):
        raise HubError("the model card has no evaluation results")
    missing = [name for name in ("config.yml", "args.yml", "results.json", "provenance.json") if not (folder / name).is_file()]
    if missing:
        raise HubError(f"the repository lacks {', '.join(missing)}")


def _statistics(agent: Agent) -> "VecNormalize | None":
    """The statistics of the user's own training, read from the pickle that the training wrote."""
    if agent.statistics_path is None:
        return None
    try:
        statistics = pickle.loads(agent.statistics_path.read_bytes())
    except Exception as error:  # a damaged pickle raises anything
        raise HubUserError(f"{agent.statistics_path} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(statistics, VecNormalize):
        raise HubUserError(f"{agent.statistics_path} does not hold a VecNormalize")
    return statistics


def _write_records(agent: Agent, protocol: Protocol, folder: Path) -> dict[str, object]:
    """
    Write configuration, arguments, statistics, metrics and provenance; return the provenance.

    The arguments of the environment are those of the evaluation, in which ``enjoy`` is to run the agent.
    """
    arguments = {"algo": agent.algo, "env": agent.env_id} | _public(agent.arguments)
    arguments["env_kwargs"] = protocol.env_kwargs or None
    for name, content in (("config.yml", agent.config), ("args.yml", arguments), ("env_kwargs.yml", protocol.env_kwargs)):
        (folder / name).write_text(dump_plain(without_private_facts(content)), encoding="utf-8")
    if agent.is_safe:
        _write_json(folder / "config.json", read_description(agent.zip_path))
    statistics = _statistics(agent)
    if statistics is not None and agent.statistics_path is not None:
        shutil.copyfile(agent.statistics_path, folder / "vec_normalize.pkl")
        save_statistics(statistics, folder / "vec_normalize.npz")
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _metrics(agent):
            archive.write(path, path.name)
    _copy_tensorboard(agent, folder / "logs")
    provenance = _provenance(agent)
    _write_json(folder / "provenance.json", provenance)
    return provenance


def _metrics(agent: Agent) -> list[Path]:
    """The logs of the training: ``progress.csv``, monitor files, evaluations."""
    files = sorted(agent.run_folder.iterdir()) if agent.run_folder else []
    return [path for path in files if path.suffix == ".csv" or path.name == "evaluations.npz"]


def _copy_tensorboard(agent: Agent, target: Path) -> None:
    """Copy TensorBoard files; their names are cut after the time, because the name of the machine follows it."""
    folder = agent.tensorboard_folder
    for path in sorted(folder.rglob("events.out.tfevents.*")) if folder is not None else []:
        run = target / path.parent.relative_to(folder or path)
        run.mkdir(parents=True, exist_ok=True)
        name = ".".join(path.name.split(".")[:4])
        n_others = len(list(run.glob(f"{name}*")))
        shutil.copyfile(path, run / (f"{name}.{n_others}" if n_others else name))


def _public(arguments: Mapping[str, object]) -> dict[str, object]:
    return {name: arguments[name] for name in PUBLIC_ARGUMENTS if name in arguments}


def _provenance(agent: Agent) -> dict[str, object]:
    """The record of the training, or without one the versions that the zip names."""
    recorded = agent.run_folder / "provenance.json" if agent.run_folder else None
    if recorded is not None and recorded.is_file():
        facts = _read_json(recorded)
        arguments = facts.get("arguments")
        facts["arguments"] = _public(arguments) if isinstance(arguments, dict) else {}
    else:
        stored = agent.stored()
        facts = {name: stored.get(key) for name, key in (("seed", "seed"), ("n_timesteps", "num_timesteps"))}
        with zipfile.ZipFile(agent.zip_path) as archive:
            has_versions = "system_info.txt" in archive.namelist()
            lines = archive.read("system_info.txt").decode().splitlines() if has_versions else []
        facts["versions"] = dict(line.removeprefix("- ").split(": ", 1) for line in lines if ": " in line)
    facts["zip_sha256"] = sha256(agent.zip_path.read_bytes()).hexdigest()
    return without_private_facts(facts)


def _read_json(path: Path) -> dict[str, object]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HubUserError(f"{path} is damaged ({error}): remove it to publish the agent without it") from error


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


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _film(agent: Agent, model: BaseAlgorithm, protocol: Protocol, path: Path, n_steps: int, report: Report) -> None:
    env = protocol.make_env(_statistics(agent), n_envs=1)
    problem = record_video(model, env, path, n_steps, protocol.deterministic)
    env.close()
    report("No video: " + problem if problem else f"Recorded {n_steps} steps")


def _draw(agent: Agent, path: Path, report: Report) -> bool:
    """Draw the page of the training, if it has logs."""
    if agent.run_folder is None or not _metrics(agent):
        report("No picture of the training, which has no logs")
        return False
    from sb3_policyopt.plots import plot_run

    try:
        plot_run(agent.run_folder, path)
    except (ValueError, ModuleNotFoundError) as error:
        report(f"No picture of the training: {error}")
        return False
    return True

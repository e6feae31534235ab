"""Load an agent from the Hub, by default without running code that it contains."""

import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, overload

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt import registry
from sb3_policyopt.errors import HubUserError, PickleRequiredError
from sb3_policyopt.hub.agent import file_name_of, latest_run
from sb3_policyopt.hub.errors import is_network_error, one_sentence
from sb3_policyopt.hub.normalization import attached, freeze, load_statistics, statistics_to_pickle
from sb3_policyopt.hub.plain_yaml import check_config
from sb3_policyopt.hyperparams.zoo_yaml import dump_plain, load_plain
from sb3_policyopt.saving.safe_zip import SelfDescribing, read_description

_METRICS = "train_eval_metrics.zip"


@overload
def load_from_hub(repo_id: str, env: str, *, revision: "str | None" = None, token: "str | None" = None) -> str: ...


@overload
def load_from_hub(repo_id: str, *, filename: str, revision: "str | None" = None, token: "str | None" = None) -> str: ...


@overload
def load_from_hub(
    repo_id: str,
    env: "GymEnv | None" = None,
    *,
    zip_name: "str | None" = None,
    revision: "str | None" = None,
    token: "str | None" = None,
    device: str = "auto",
    safe: bool = True,
    **kwargs: Any,
) -> "tuple[BaseAlgorithm, VecNormalize | None]": ...


def load_from_hub(
    repo_id: str,
    env: "GymEnv | str | None" = None,
    *,
    filename: "str | None" = None,
    zip_name: "str | None" = None,
    revision: "str | None" = None,
    token: "str | None" = None,
    device: str = "auto",
    safe: bool = True,
    **kwargs: Any,
) -> "tuple[BaseAlgorithm, VecNormalize | None] | str":
    """
    Load an agent from the Hugging Face Hub; or, called as in huggingface_sb3, download one file of it.

    By default nothing is unpickled: the agent is rebuilt from tensors and plain JSON, its normalisation statistics from plain
    arrays. Agents published by other tools have no such data, and raise a PickleRequiredError.

    ``load_from_hub(repo_id, filename)`` and ``load_from_hub(repo_id=…, filename=…)`` return the path of the file in the local
    cache. ``PPO.load(path, safe=True)`` then loads an agent without unpickling.

    :param repo_id: the repository, ``"name/repository"``
    :param env: the environment to run or train in. With statistics it is wrapped in them, and in the frame stack that was
        around them, which may be there already. A string is the ``filename``
    :param filename: a file to download; nothing is loaded
    :param zip_name: the agent's zip, if the repository holds several
    :param revision: branch, tag or commit; by default the main branch
    :param token: access token; by default the one stored by ``hf auth login``, or ``HF_TOKEN``
    :param device: where PyTorch runs the agent
    :param safe: pass False to unpickle, which runs any code that the files contain; only for authors you trust
    :param kwargs: further arguments of the algorithm's ``load``
    :return: the agent, and its normalisation (or None). Without ``env`` the normalisation is attached to no environment:
        ``normalize_obs()`` works, ``set_venv(venv)`` attaches it. It is set as an evaluation needs it, with ``training=False``
        (the statistics are frozen) and ``norm_reward=False`` (rewards are the environment's own). Before training further, set
        ``vec_normalize.training = True``, and ``vec_normalize.norm_reward = True`` if rewards were normalised in the training,
        as the model card says. With ``filename``, the path of the file
    :raises ValueError: if ``filename`` is combined with an argument of the loading, or ``env`` has other observations
        or a ``VecNormalize`` although the agent brings its own
    :raises HubError: if there is no such repository or file, or the Hub cannot be reached
    :raises PickleRequiredError: if the agent cannot be loaded without unpickling, and ``safe`` is True
    """
    if isinstance(env, str):
        env, filename = None, env
    if filename is not None:
        if env is not None or zip_name is not None or device != "auto" or not safe or kwargs:
            raise ValueError("filename= downloads a file without loading it: to load the agent of this file, pass zip_name=")
        return _download(repo_id, filename, revision, token)
    files = _files(repo_id, revision, token)
    zip_name = zip_name or _only_zip(repo_id, files)

    def download(name: str) -> str:
        return _download(repo_id, name, revision, token)

    path = download(zip_name)
    algorithm_class = _class_of(path, zip_name, safe)
    statistics = _load_statistics(download, files, repo_id, safe)
    if env is not None and statistics is not None:
        agent = algorithm_class.load(path, device="cpu", safe=safe, **kwargs)
        env = attached(statistics, env, agent.observation_space)
    return algorithm_class.load(path, env=env, device=device, safe=safe, **kwargs), statistics


def download_run(
    repo_id: str,
    algo: str,
    env_id: str,
    folder: Path,
    *,
    exp_id: int = 0,
    force: bool = False,
    revision: "str | None" = None,
    safe: bool = True,
) -> Path:
    """
    Download an agent as a run folder of rl-zoo3.

    rl-zoo3 unpickles the files of a run folder. So by default every file is made anew from plain data: the zip and the
    statistics are loaded without unpickling and saved again, the YAML is checked and written again.

    :param repo_id: the repository, ``"name/repository"``
    :param algo: name of the algorithm
    :param env_id: Gymnasium id of the environment
    :param folder: the log folder
    :param exp_id: number of the run; 0 for a new one, -1 for a log folder without numbers
    :param force: replace the run folder if it exists
    :param revision: branch, tag or commit; by default the main branch
    :param safe: pass False to copy the files as they are
    :return: the run folder
    :raises HubError: if there is no such repository or file, or the Hub cannot be reached, or the folder exists, or holds
        other runs
    :raises PickleRequiredError: if the agent cannot be loaded without unpickling, and ``safe`` is True
    """
    name = file_name_of(env_id)
    run = folder / algo
    if exp_id >= 0:
        run /= f"{name}_{exp_id or latest_run(folder, algo, env_id) + 1}"
    if run.exists() and not force:
        raise HubUserError(f"{run} exists: pass --force to replace it, or --exp-id 0 for a new folder")
    others = [path.name for path in run.glob("*_*") if path.is_dir() and path.name.rpartition("_")[2].isdigit()]
    if exp_id < 0 and others:
        raise HubUserError(
            f"{run} holds the runs {', '.join(sorted(others)[:3])}, which --force would delete with it: use --exp-id 0, or "
            "another folder"
        )
    files = _files(repo_id, revision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise HubUserError(f"{folder} is no folder, as a file has this name: choose another one with -f") from error
    # In the folder of the target: a complete download is renamed, an incomplete one is deleted.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        new = Path(scratch) / "run"
        (new / name).mkdir(parents=True)
        _fill_run(new, name, _Source(repo_id, files, revision, f"{algo}-{name}.zip"), safe)
        if run.exists():
            run.rename(Path(scratch) / "replaced")
        run.parent.mkdir(parents=True, exist_ok=True)
        new.rename(run)
    return run


class _Source:
    """A repository to download from."""

    def __init__(self, repo_id: str, files: list[str], revision: "str | None", zip_name: str) -> None:
        self.repo_id, self.files, self.revision, self.zip_name = repo_id, files, revision, zip_name

    def download(self, name: str) -> str:
        return _download(self.repo_id, name, self.revision, None)


def _fill_run(run: Path, name: str, source: _Source, safe: bool) -> None:
    path, statistics = source.download(source.zip_name), run / name / "vecnormalize.pkl"
    if safe:
        _class_of(path, source.zip_name, safe).load(path, device="cpu", safe=True).save(run / f"{name}.zip")
    else:
        shutil.copyfile(path, run / f"{name}.zip")
    if safe and "vec_normalize.npz" in source.files:
        statistics_to_pickle(source.download("vec_normalize.npz"), statistics)
    elif safe and "vec_normalize.pkl" in source.files:
        raise _only_pickled(source.repo_id)
    elif "vec_normalize.pkl" in source.files:
        shutil.copyfile(source.download("vec_normalize.pkl"), statistics)
    for file in ("config.yml", "args.yml", "env_kwargs.yml"):
        _copy_yaml(source, file, run / name / file, safe)
    if "provenance.json" in source.files:
        shutil.copyfile(source.download("provenance.json"), run / "provenance.json")
    if _METRICS in source.files:
        _extract_metrics(source.download(_METRICS), run)


def _copy_yaml(source: _Source, name: str, target: Path, safe: bool) -> None:
    if name == "env_kwargs.yml" and name not in source.files:
        return
    path = Path(source.download(name))
    if not safe:
        shutil.copyfile(path, target)
        return
    label = f"{name} of {source.repo_id}"
    try:
        content = load_plain(path.read_text(encoding="utf-8"), label)
        if name == "config.yml":
            check_config(content, label)
    except ValueError as error:
        raise PickleRequiredError(f"{error}; if you trust its author, pass --trust") from error
    target.write_text(dump_plain(content), encoding="utf-8")


def _extract_metrics(path: str, run: Path) -> None:
    """Extract monitor files and evaluations that have no folder in their names: none is written outside the run folder."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            name = PurePosixPath(entry).name
            if name == entry and (name.endswith(".csv") or name == "evaluations.npz"):
                (run / name).write_bytes(archive.read(entry))


def _files(repo_id: str, revision: "str | None", token: "str | None" = None) -> list[str]:
    """The names of the files of a repository, or without network those of its copy in the cache."""
    with one_sentence(repo_id, revision=revision):
        try:
            siblings = HfApi(token=token).repo_info(repo_id, revision=revision).siblings or []
            return [sibling.rfilename for sibling in siblings]
        except Exception as error:
            if not is_network_error(error):
                raise
            return [path.name for path in Path(snapshot_download(repo_id, revision=revision, local_files_only=True)).iterdir()]


def _download(repo_id: str, name: str, revision: "str | None", token: "str | None") -> str:
    with one_sentence(repo_id, name, revision):
        return str(hf_hub_download(repo_id, name, revision=revision, token=token, library_name="sb3-policyopt"))


def _only_zip(repo_id: str, files: list[str]) -> str:
    zips = [name for name in files if name.endswith(".zip") and name != _METRICS]
    if len(zips) != 1:
        found = f"several zip files ({', '.join(zips)}): choose one with zip_name=" if zips else "no zip file, so no agent"
        raise HubUserError(f"{repo_id} holds {found}")
    return zips[0]


def _class_of(path: str, filename: str, safe: bool) -> type[SelfDescribing]:
    """The algorithm, by the description in the zip, or by rl-zoo3's file name if there is none."""
    try:
        name = str(read_description(path)["algorithm"])
        entry = registry.of_class(name)
    except PickleRequiredError:
        if safe:
            raise
        name = filename.partition("-")[0]
        entry = registry.ALGORITHMS.get(name)
    if entry is None:
        raise HubUserError(f"{filename} holds an agent of {name.lower()}; only {registry.class_names()} can be loaded")
    return entry.load_class()


def _load_statistics(download: Callable[[str], str], files: list[str], repo_id: str, safe: bool) -> "VecNormalize | None":
    if "vec_normalize.npz" in files:
        return freeze(load_statistics(download("vec_normalize.npz")))
    if "vec_normalize.pkl" not in files:
        return None
    if safe:
        raise _only_pickled(repo_id)
    return freeze(pickle.loads(Path(download("vec_normalize.pkl")).read_bytes()))


def _only_pickled(repo_id: str) -> PickleRequiredError:
    return PickleRequiredError(
        f"{repo_id} has its normalisation statistics only as a pickle; if you trust its author, load it with safe=False"
    )

"""Errors are one sentence and an exit code, and leave no files or repositories."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_client import Client
from loopback import Hub, Repo
from runs import make_run


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "logs"
    make_run(folder, "ppo", "CartPole-v1", records=False)
    return folder


@pytest.fixture(autouse=True)
def forget(hub: Hub) -> None:
    hub.repos.clear()
    hub.failures.clear()
    hub.requests.clear()


@pytest.fixture(scope="module")
def files(client: Client, hub: Hub, logs: Path) -> dict[str, bytes]:
    """What a push of the run publishes."""
    hub.failures.clear()  # of a test before, as this is made before what each test begins with
    assert client.command(*push(logs)).code == 0
    return hub.repos["me/ppo-CartPole-v1"].files()


def publish(hub: Hub, files: dict[str, bytes]) -> Repo:
    """Create a repository on the hub."""
    repo = hub.repos["me/ppo-CartPole-v1"] = Repo()
    repo.commit("main", files, "Upload agent")
    return repo


def push(logs: Path, *more: Any, organization: str = "me") -> tuple[str, ...]:
    return ("push_to_hub", "--algo", "ppo", "--env", "CartPole-v1", "-f", logs, "-orga", organization, "--no-video", *more)


def load(folder: Path, *more: Any) -> tuple[str, ...]:
    return ("load_from_hub", "--algo", "ppo", "--env", "CartPole-v1", "-f", folder, "-orga", "me", *more)


def test_missing_run(client: Client, hub: Hub, tmp_path: Path) -> None:
    result = client.command(*push(tmp_path))
    assert result.code == 2 and "no run folder" in result.sentence
    assert not hub.requests


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--gym-packages", "nope"), "--gym-packages nope: No module named 'nope'"),
        (("--n-envs", "0"), "n_envs must be at least 1, not 0"),
        (("--seed", "-1"), "seed must be at least 0, not -1"),
        (("-n", "-3"), "-n must be at least 0, not -3"),
        (("--device", "foo"), "device must be 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or a torch.device, got 'foo'"),
        (("--env-kwargs", "x:1"), "CartPole-v1 has no argument x: correct --env-kwargs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_on_the_command_line_is_not_the_agents(
    client: Client, hub: Hub, logs: Path, options: tuple[str, ...], sentence: str
) -> None:
    result = client.command(*push(logs, *options))
    assert result.code == 2 and sentence in result.sentence
    assert "Evaluating" not in result.out and not hub.repos


def without_entry(path: Path, left_out: str) -> None:
    """Write a zip again without one of its entries."""
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.namelist():
            if entry != left_out:
                target.writestr(entry, source.read(entry))


def test_damaged_files_of_a_run_are_named(client: Client, hub: Hub, logs: Path, tmp_path: Path) -> None:
    run = Path("ppo", "CartPole-v1_1")
    config, provenance, zip_path = run / "CartPole-v1" / "config.yml", run / "provenance.json", run / "CartPole-v1.zip"
    wrong = "env_wrapper:\n- gymnasium.wrappers.TimeLimit: 3\n"
    for number, (file, content, sentence) in enumerate(
        (
            (config, wrong, "env_wrapper in {file}: gymnasium.wrappers.TimeLimit has 3, and not a dictionary"),
            (config, f"vec_{wrong}", "vec_env_wrapper in {file}: gymnasium.wrappers.TimeLimit has 3"),
            (provenance, "{", "{file} is damaged (Expecting"),
            (provenance, "3", "{file} is damaged ("),
            (zip_path, None, "{file} is damaged, or was not saved by model.save() (KeyError"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(logs, folder)
        if content is None:
            without_entry(folder / file, "data")
        else:
            (folder / file).write_text(content)
        result = client.command(*push(folder))
        assert result.code == 2 and sentence.format(file=folder / file) in result.sentence, result.err
        assert not hub.repos


def test_statistics_that_are_damaged_are_named(client: Client, tmp_path: Path) -> None:
    run = make_run(tmp_path, "ppo", "CartPole-v1", normalize=True, records=False)
    path = run / "CartPole-v1" / "vecnormalize.pkl"
    path.write_bytes(path.read_bytes()[:100])
    result = client.command(*push(tmp_path))
    assert result.code == 2 and f"{path} is damaged" in result.sentence


def test_damaged_zip(client: Client, logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "logs")
    (tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").write_bytes(b"half a z")
    result = client.command(*push(tmp_path / "logs"))
    assert result.code == 2 and "not a zip file" in result.sentence


@pytest.mark.parametrize(("token", "sentence"), [("hf_stranger", "refuses your token"), ("", "hf auth login")])
def test_wrong_token_and_no_token(client: Client, hub: Hub, logs: Path, token: str, sentence: str) -> None:
    result = client.command(*push(logs), token=token)
    assert result.code == 1 and sentence in result.sentence
    assert not hub.repos


def test_no_network(logs: Path, tmp_path: Path) -> None:
    client = Client("http://127.0.0.1:9", tmp_path / "offline")  # the discard port: no server listens
    pushed, loaded = client.command(*push(logs)), client.command(*load(tmp_path / "new"))
    client.close()
    for result in (pushed, loaded):
        assert result.code == 1 and "cannot be reached" in result.sentence
    assert not (tmp_path / "new").exists()


def test_foreign_namespace(client: Client, hub: Hub, logs: Path) -> None:
    result = client.command(*push(logs, organization="someone-else"))
    assert result.code == 1 and "no right to write to someone-else/ppo-CartPole-v1" in result.sentence
    assert not hub.repos


def test_name_that_is_none(client: Client, hub: Hub, logs: Path) -> None:
    result = client.command(*push(logs, "-name", "no spaces please"))
    assert result.code == 2 and "no spaces please" in result.sentence
    assert not hub.repos


def test_repository_of_another_agent(client: Client, hub: Hub, logs: Path, files: dict[str, bytes]) -> None:
    others = dict(files)
    others["trpo-Pendulum-v1.zip"] = others.pop("ppo-CartPole-v1.zip")
    repo = publish(hub, others)
    result = client.command(*push(logs))
    assert result.code == 2 and "holds another agent (trpo-Pendulum-v1.zip)" in result.sentence
    assert repo.files() == others


def test_private_does_not_hide_a_public_repository(client: Client, hub: Hub, logs: Path, files: dict[str, bytes]) -> None:
    publish(hub, files)
    result = client.command(*push(logs, "--private"))
    assert result.code == 2 and "exists and is public" in result.sentence
    hub.repos.clear()
    assert client.command(*push(logs, "--private")).code == 0
    assert hub.repos["me/ppo-CartPole-v1"].private


@pytest.mark.parametrize("request_", [("POST", "/commit/"), ("POST", "/preupload/"), ("PUT", "/lfs/"), ("POST", "/branch/")])
def test_half_finished_upload_leaves_no_repository(client: Client, hub: Hub, logs: Path, request_: tuple[str, str]) -> None:
    hub.objects.clear()
    hub.fail(*request_, 400)
    result = client.command(*push(logs, "--revision", "v1"))
    assert result.code == 1 and "failure on purpose" in result.sentence
    assert hub.seen("POST", "/api/repos/create") and not hub.repos


def test_half_finished_upload_spares_a_repository_that_was_there(client: Client, hub: Hub, logs: Path, files: Any) -> None:
    repo = publish(hub, files)
    hub.fail("POST", "/commit/", 400)
    assert client.command(*push(logs, "--seed", "1")).code == 1
    assert hub.repos == {"me/ppo-CartPole-v1": repo} and repo.files() == files


def test_failed_removal_is_reported(client: Client, hub: Hub, logs: Path) -> None:
    hub.fail("POST", "/commit/", 400)
    hub.fail("DELETE", "/api/repos/delete", 400)
    result = client.command(*push(logs))
    assert result.code == 1 and f"delete {hub.url}/me/ppo-CartPole-v1 yourself" in result.sentence


def test_agent_that_does_not_run_is_not_published(client: Client, hub: Hub, logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "logs")
    config = tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1" / "config.yml"
    config.write_text("policy: MlpPolicy\nframe_stack: 4\n")
    result = client.command(*push(tmp_path / "logs"))
    assert result.code == 1 and "does not run in CartPole-v1" in result.sentence
    assert not hub.repos


def test_dry_run_sends_nothing(client: Client, hub: Hub, logs: Path, tmp_path: Path) -> None:
    result = client.command(*push(logs, "--dry-run", tmp_path / "dry"))
    assert result.code == 0
    assert (tmp_path / "dry" / "README.md").is_file() and not (tmp_path / "dry" / "replay.mp4").exists()
    assert "<video" not in (tmp_path / "dry" / "README.md").read_text()
    assert not hub.requests
    again = client.command(*push(logs, "--dry-run", tmp_path / "dry"))
    assert again.code == 2 and "not an empty folder" in again.sentence


def test_new_upload_replaces_stale_files_and_keeps_foreign_ones(client: Client, hub: Hub, logs: Path, files: Any) -> None:
    mine: dict[str, Any] = {"LICENSE": b"mine", "logs/notes.txt": b"of my own"}
    repo = publish(hub, files | {"replay.mp4": b"of an earlier agent", **mine})
    assert client.command(*push(logs)).code == 0 and "config.json" in repo.files()
    assert "replay.mp4" not in repo.files() and mine.items() <= repo.files().items()


def test_revision(client: Client, hub: Hub, logs: Path, tmp_path: Path) -> None:
    assert client.command(*push(logs, "--revision", "v1")).code == 0
    repo = hub.repos["me/ppo-CartPole-v1"]
    assert set(repo.files("main")) == {".gitattributes"} and "README.md" in repo.files("v1")
    assert "--revision v1" in repo.files("v1")["README.md"].decode()
    missing = client.command(*load(tmp_path / "main"))
    assert missing.code == 2 and "has no file 'ppo-CartPole-v1.zip'" in missing.sentence
    assert client.command(*load(tmp_path / "v1", "--revision", "v1")).code == 0
    unknown = client.command(*load(tmp_path / "v2", "--revision", "v2"))
    assert unknown.code == 2 and "no branch, tag or commit 'v2'" in unknown.sentence


def test_a_branch_of_another_agent(client: Client, hub: Hub, logs: Path, files: dict[str, bytes]) -> None:
    others = dict(files)
    others["trpo-Pendulum-v1.zip"] = others.pop("ppo-CartPole-v1.zip")
    repo = publish(hub, files)
    repo.commit("theirs", others, "Upload agent")
    result = client.command(*push(logs, "--revision", "theirs"))
    assert result.code == 2 and "holds another agent (trpo-Pendulum-v1.zip)" in result.sentence
    assert "ppo-CartPole-v1.zip" not in repo.files("theirs")
    assert client.command(*push(logs, "--revision", "new")).code == 0
    repo.commit("main", {"trpo-Pendulum-v1.zip": b""}, "Upload agent")
    assert client.command(*push(logs, "--revision", "new")).code == 0  # that branch has no other agent
    result = client.command(*push(logs, "--revision", "newer"))  # it would be made of main
    assert result.code == 2 and "holds another agent" in result.sentence


# -- loading --------------------------------------------------------------------------------------------------------------


def test_missing_repository(client: Client, tmp_path: Path) -> None:
    result = client.command(*load(tmp_path / "logs"))
    assert result.code == 2 and "there is no repository me/ppo-CartPole-v1" in result.sentence
    assert not (tmp_path / "logs").exists()


def test_a_log_folder_that_is_a_file(client: Client, hub: Hub, files: Any, tmp_path: Path) -> None:
    publish(hub, files)
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "logs"):
        result = client.command(*load(folder))
        assert result.code == 2 and f"{folder} is no folder, as a file has this name" in result.sentence
    assert (tmp_path / "file").read_text() == "mine"


def test_existing_run_folder_is_kept_without_force(client: Client, hub: Hub, files: Any, tmp_path: Path) -> None:
    publish(hub, files)
    assert client.command(*load(tmp_path, "--exp-id", "3")).code == 0
    run = tmp_path / "ppo" / "CartPole-v1_3"
    (run / "mine").touch()
    result = client.command(*load(tmp_path, "--exp-id", "3"))
    assert result.code == 2 and "--force" in result.sentence and (run / "mine").exists()
    assert client.command(*load(tmp_path, "--exp-id", "3", "--force")).code == 0
    assert not (run / "mine").exists() and (run / "CartPole-v1.zip").is_file()
    assert client.command(*load(tmp_path)).out.strip().endswith("CartPole-v1_4")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def hostile(name: str, files: Any, witness: Any) -> Any:
    """The files of a repository, one of which runs code when it is unpickled."""
    files = dict(files)
    if name == "zip":  # SB3's part of the zip, with a bomb in place of the seed
        import base64
        import json

        import cloudpickle  # type: ignore[import-untyped]  # it has no types

        source, target = zipfile.ZipFile(io.BytesIO(files["ppo-CartPole-v1.zip"])), io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for entry in source.namelist():
                content: bytes | str = source.read(entry)
                if entry == "data":
                    bomb = base64.b64encode(cloudpickle.dumps(Bomb(witness))).decode()
                    content = json.dumps(json.loads(content) | {"seed": {":type:": "int", ":serialized:": bomb}})
                archive.writestr(entry, content)
        files["ppo-CartPole-v1.zip"] = target.getvalue()
    elif name == "vec_normalize.pkl":
        files[name] = pickle.dumps(Bomb(witness))
    elif name == "vec_normalize.npz":
        buffer = io.BytesIO()
        np.savez(buffer, settings=np.array(Bomb(witness), dtype=object))
        files[name] = buffer.getvalue()
    elif name == "normalize":
        files["config.yml"] += f"normalize: \"open('{witness}', 'w')\"\n".encode()
    elif name == "wrapper":
        files["config.yml"] += f"env_wrapper:\n- subprocess.Popen:\n    executable: {witness}\n".encode()
    else:
        files[name] = f"!!python/object/apply:builtins.open ['{witness}', 'w']\n".encode()
    return files


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [
        ("zip", False),  # the pickle is not loaded
        ("vec_normalize.pkl", True),
        ("vec_normalize.npz", True),
        ("config.yml", True),
        ("args.yml", True),
        ("env_kwargs.yml", True),
        ("normalize", True),
        ("wrapper", True),
    ],
)
def test_hostile_repository_runs_nothing(
    client: Client, hub: Hub, files: Any, tmp_path: Path, name: str, is_refused: Any
) -> None:
    witness = tmp_path / "pwned"
    publish(hub, hostile(name, files, witness))
    result = client.command(*load(tmp_path / "logs"))
    assert not witness.exists()
    if is_refused:
        assert result.code == 2 and "Traceback" not in result.err
        assert not list((tmp_path / "logs").rglob("*"))
        return
    assert result.code == 0
    # The written zip runs no code when it is unpickled, either.
    from stable_baselines3 import PPO as StockPPO

    StockPPO.load(tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip", device="cpu")
    assert not witness.exists()


def test_stock_agent_is_refused_unless_trusted(client: Client, hub: Hub, files: Any, tmp_path: Path) -> None:
    source, target = zipfile.ZipFile(io.BytesIO(files["ppo-CartPole-v1.zip"])), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for entry in source.namelist():
            if entry != "policyopt.json":
                archive.writestr(entry, source.read(entry))
    publish(hub, files | {"ppo-CartPole-v1.zip": target.getvalue()})  # as stock SB3 saves it
    result = client.command(*load(tmp_path))
    assert result.code == 2 and "can only be unpickled" in result.sentence and "--trust" in result.sentence
    assert client.command(*load(tmp_path, "--trust")).code == 0
    assert (tmp_path / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").read_bytes() == target.getvalue()

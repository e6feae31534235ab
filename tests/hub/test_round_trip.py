"""Publish, and load back in every way that the card shows, in processes that can reach only the loopback Hub."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_client import Client
from loopback import Hub
from runs import make_run

ROUND_TRIPS = [
    # algorithm, environment, VecNormalize, how large files are sent
    ("trpo", "CartPole-v1", True, "lfs"),
    pytest.param(("ppo", "CartPole-v1", False, "regular"), marks=pytest.mark.slow),
    pytest.param(("ppo", "InvertedPendulum-v5", True, "lfs"), marks=pytest.mark.slow),
    pytest.param(("trpo", "InvertedPendulum-v5", False, "regular"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=ROUND_TRIPS, ids=lambda case: "-".join(map(str, case)))
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Published]":
    """An agent that the command line has published, and a client with empty caches to load it with."""
    algo, env_id, normalize, large_files = request.param
    folder = tmp_path_factory.mktemp("publish")
    run = make_run(folder / "logs", algo, env_id, normalize)
    with Hub(large_files) as hub:
        publisher = Client(hub.url, folder / "publisher")
        result = publisher.python(
            "-m", "sb3_policyopt", "push_to_hub", "--algo", algo, "--env", env_id, "-f", str(folder / "logs"), "-orga", "me",
            "-n", "30", "-m", "Hello", PATH="/nowhere",
        )  # fmt: skip
        publisher.close()
        assert result.code == 0, result.err
        reader = Client(hub.url, folder / "reader", token="")
        yield Published(algo, env_id, normalize, run, hub, result, reader)
        reader.close()


class Published:
    def __init__(self, algo: str, env_id: str, normalize: Any, run: Any, hub: Hub, result: Any, reader: Any) -> None:
        self.algo, self.env_id, self.normalize, self.run, self.hub, self.result, self.reader = (
            algo, env_id, normalize, run, hub, result, reader,
        )  # fmt: skip
        self.name = f"{algo}-{env_id}"
        self.repo = hub.repos[f"me/{self.name}"]
        self.files = self.repo.files()
        self.card = self.files["README.md"].decode()
        self.head = yaml.safe_load(self.card.split("---")[1])
        self.score = self.head["model-index"][0]["results"][0]["metrics"][0]["value"]

    def blocks(self, language: str) -> Any:
        return re.findall(rf"```{language}\n(.*?)```", self.card, flags=re.DOTALL)


def test_one_repository_and_one_commit(published: Any) -> None:
    hub = published.hub
    assert len(hub.seen("POST", "/api/repos/create")) == 1
    assert len(hub.seen("POST", "/commit/")) == 1
    assert published.repo.messages == ["initial commit", "Hello"]
    assert bool(hub.objects) == (hub.large_files == "lfs")
    assert f"{hub.url}/me/{published.name}/commit/{published.repo.branches['main']}" in published.result.out


def test_zip_is_the_trained_one_byte_for_byte(published: Any) -> None:
    trained = (published.run / f"{published.env_id}.zip").read_bytes()
    assert published.files[f"{published.name}.zip"] == trained
    assert json.loads(published.files["provenance.json"])["zip_sha256"] == hashlib.sha256(trained).hexdigest()


def test_every_file_is_there(published: Any) -> None:
    expected = {".gitattributes", "README.md", "args.yml", "config.yml", "env_kwargs.yml", "config.json", "results.json"}
    expected |= {"provenance.json", "replay.mp4", "training.png", "train_eval_metrics.zip", f"{published.name}.zip"}
    if published.normalize:
        expected |= {"vec_normalize.pkl", "vec_normalize.npz"}
    assert set(published.files) == expected
    assert published.files["training.png"].startswith(b"\x89PNG")
    assert published.files["replay.mp4"][4:8] == b"ftyp"


def test_nothing_private_is_published(published: Any) -> None:
    with zipfile.ZipFile(published.run / f"{published.env_id}.zip") as archive:
        assert b"secret" not in archive.read("policyopt.json")
    for name, content in published.files.items():
        if not name.endswith(".zip"):
            assert b"/home/somebody" not in content and b"password" not in content and b"somebody" not in content, name
            assert str(published.run.parent).encode() not in content, name


def test_metadata_is_what_the_hub_reads(published: Any) -> None:
    head = published.head
    assert head["library_name"] == "stable-baselines3"
    assert head["pipeline_tag"] == "reinforcement-learning"
    assert head["license"] == "mit"
    tags = {published.env_id, published.algo, "reinforcement-learning", "deep-reinforcement-learning", "stable-baselines3"}
    assert tags <= set(head["tags"])
    index = head["model-index"][0]
    assert index["name"] == published.algo.upper()
    assert index["results"][0]["dataset"] == {"name": published.env_id, "type": published.env_id}
    metric = index["results"][0]["metrics"][0]
    assert metric["type"] == "mean_reward"
    # What leaderboards do with it.
    mean, std = metric["value"].split(" +/- ")
    results = json.loads(published.files["results.json"])
    assert float(mean) == pytest.approx(results["mean_reward"], abs=0.005)
    assert float(std) == pytest.approx(results["std_reward"], abs=0.005)
    assert sum(results["returns"]) / 10 == pytest.approx(results["mean_reward"])


def test_code_with_this_package_gives_the_score_of_the_card(published: Any) -> None:
    own, _ = published.blocks("python")
    assert "sb3_policyopt" in own and "safe=False" not in own
    result = published.reader.python("-c", own)
    assert result.code == 0, result.err
    assert f"mean_reward: {published.score}" in result.out


def test_code_without_this_package_gives_the_score_of_the_card(published: Any) -> None:
    _, stock = published.blocks("python")
    assert "sb3_policyopt" not in stock
    absent = published.reader.python("-c", "import sb3_policyopt", WITHOUT_POLICYOPT="1")
    assert absent.code != 0 and "No module named 'sb3_policyopt'" in absent.err
    result = published.reader.python("-c", stock, WITHOUT_POLICYOPT="1")
    assert result.code == 0, result.err
    assert f"mean_reward: {published.score}" in result.out


@pytest.mark.slow
def test_zoo_commands_of_the_card(published: Any) -> None:
    commands = [line for block in published.blocks("bash") for line in block.splitlines() if line.startswith("sb3-policyopt ")]
    load, enjoy = (line.split()[1:] for line in commands)
    loaded = published.reader.python("-m", "sb3_policyopt", *load)
    assert loaded.code == 0, loaded.err
    # On the machine of a test there is no window to watch the agent in.
    watched = published.reader.python("-m", "sb3_policyopt", *enjoy, "--no-render", "-n", "20")
    assert watched.code == 0, watched.err
    run = published.reader.folder / "empty" / "logs" / published.algo / f"{published.env_id}_1"
    assert (run / "progress.csv").read_bytes() == (published.run / "progress.csv").read_bytes()
    assert (run / published.env_id / "vecnormalize.pkl").exists() == published.normalize


@pytest.mark.slow
def test_hyperparameters_of_the_card_train_again(published: Any, tmp_path: Path) -> None:
    (block,) = published.blocks("yaml")
    config = yaml.safe_load(block)
    assert set(config) == {published.env_id}
    (tmp_path / "hyperparameters.yml").write_text(block)
    match = re.search(r"`sb3-policyopt (train [^`]*)`", published.card)
    assert match is not None
    command = match[1].split()
    trained = published.reader.python("-m", "sb3_policyopt", *command, "-n", "256", cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert (tmp_path / "logs" / published.algo / f"{published.env_id}_1" / f"{published.env_id}.zip").is_file()


@pytest.mark.slow
def test_huggingface_sb3_and_the_zoo_find_their_files(published: Any) -> None:
    """The stock loaders ask for these names; huggingface_sb3 wants its consent to pickles in the environment."""
    code = (
        "from huggingface_sb3 import load_from_hub\n"
        f"names = ['{published.name}.zip', 'config.yml', 'args.yml', 'env_kwargs.yml', 'train_eval_metrics.zip']\n"
        f"for name in names: print(load_from_hub('me/{published.name}', name))\n"
    )
    result = published.reader.python("-c", code, TRUST_REMOTE_CODE="True", WITHOUT_POLICYOPT="1")
    assert result.code == 0, result.err

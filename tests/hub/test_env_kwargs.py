"""The arguments of the environment, and the kind of actions, in what is published and in the card's commands."""

import json
import re
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from hub_client import Client
from loopback import Hub
from runs import make_run

from sb3_policyopt import PPO
from sb3_policyopt.cli.main import main
from sb3_policyopt.hub import push_to_hub
from sb3_policyopt.hub.environments import acts_at_random


def commands(card: str) -> dict[str, list[str]]:
    """The arguments of the commands on a card, by command."""
    lines = re.findall(r"(?:^|`)sb3-policyopt ((?:load_from_hub|enjoy|train) [^`\n]*)", card, re.MULTILINE)
    return {line.split()[0]: shlex.split(line) for line in lines}


def test_the_card_trains_again_in_the_environment_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environments of the evaluations, too, to which rl-zoo3 does not give an entry ``env_kwargs`` of the YAML."""
    env = gym.make("Pendulum-v1", g=9.0, max_episode_steps=50)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, device="cpu")
    folder = push_to_hub(model, "me/x", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry")
    card = (Path(folder) / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("hyperparameters.yml").write_text(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    command = commands(card)["train"]
    assert main([*command, "-n", "128", "--eval-freq", "64", "--eval-episodes", "1"]) == 0
    run = tmp_path / "logs" / "ppo" / "Pendulum-v1_1"
    assert yaml.unsafe_load((run / "Pendulum-v1" / "args.yml").read_text())["env_kwargs"] == {
        "g": 9.0,
        "max_episode_steps": 50,
    }
    assert set(np.loadtxt(run / "0.monitor.csv", delimiter=",", skiprows=2, usecols=1, ndmin=1)) == {50}
    assert set(np.load(run / "evaluations.npz")["ep_lengths"].flat) == {50}


def test_strings_are_quoted_for_the_shell_and_for_python(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", gym.make("FrozenLake-v1", map_name="8x8"), n_steps=32, batch_size=32, device="cpu")
    cases: tuple[dict[str, object], ...] = (
        {"map_name": "8x8"},
        {"map_name": None, "is_slippery": False, "desc": ["SFFFFFFF"] * 7 + ["FFFFFFFG"]},
    )
    for arguments in cases:
        folder = tmp_path / str(len(arguments))
        push_to_hub(model, "me/x", env_kwargs=arguments, dry_run=folder, n_eval_episodes=1, video_length=0)
        train = commands((folder / "README.md").read_text())["train"]
        words = train[train.index("--env-kwargs") + 1 :]
        assert {word.partition(":")[0]: eval(word.partition(":")[2]) for word in words} == arguments


def test_arguments_of_the_push_hold_for_what_is_published(client: Client, hub: Hub, tmp_path: Path) -> None:
    make_run(tmp_path / "logs", "ppo", "CartPole-v1", records=False)
    push = ("push_to_hub", "--algo", "ppo", "--env", "CartPole-v1", "-f", tmp_path / "logs", "-orga", "me", "--no-video")
    pushed = client.command(*push, "--env-kwargs", "max_episode_steps:7", "--stochastic")
    assert pushed.code == 0, pushed.err
    files = hub.repos["me/ppo-CartPole-v1"].files()
    assert set(json.loads(files["results.json"])["lengths"]) == {7}
    assert yaml.safe_load(files["env_kwargs.yml"]) == {"max_episode_steps": 7}
    assert yaml.safe_load(files["args.yml"])["env_kwargs"] == {"max_episode_steps": 7}
    on_card = commands(files["README.md"].decode())
    assert "--stochastic" in on_card["enjoy"] and "--env-kwargs" not in on_card["train"]
    assert client.command(*on_card["load_from_hub"]).code == 0
    watched = client.command(*on_card["enjoy"], "--no-render", "-n", "30")
    assert watched.code == 0 and set(re.findall(r"Episode Length (\d+)", watched.out)) == {"7"}, watched.out
    assert client.command(*push).code == 0
    files = hub.repos["me/ppo-CartPole-v1"].files()
    assert yaml.safe_load(files["args.yml"])["env_kwargs"] is None and yaml.safe_load(files["env_kwargs.yml"]) == {}
    assert not {"--stochastic", "--deterministic"} & set(commands(files["README.md"].decode())["enjoy"])


def test_arguments_that_yaml_cannot_hold(tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1", g=np.float32(9))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu")
    folder = Path(push_to_hub(model, "me/x", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry"))
    assert yaml.safe_load((folder / "env_kwargs.yml").read_text()) == {"g": 9.0}
    with pytest.raises(ValueError, match=r"env_kwargs has <built-in function print> for g, and only numbers"):
        push_to_hub(model, "me/x", env_kwargs={"g": print}, n_eval_episodes=1, video_length=0, dry_run=tmp_path / "no")


def test_where_enjoy_samples_actions() -> None:
    assert acts_at_random("ALE/Pong-v5") and acts_at_random("PongNoFrameskip-v4") and acts_at_random("MiniGrid-Empty-5x5-v0")
    assert not acts_at_random("CartPole-v1")

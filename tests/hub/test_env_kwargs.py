"""The arguments of the environment, and the kind of actions, in what is published and in the card's commands."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium.envs.classic_control import CartPoleEnv
from hub_client import Client
from loopback import Hub
from runs import make_run

from sb3_policyopt import PPO
from sb3_policyopt.cli.main import main
from sb3_policyopt.errors import HubUserError
from sb3_policyopt.hub import evaluation, push_to_hub
from sb3_policyopt.hub.environments import acts_at_random
from sb3_policyopt.hub.wrappers import is_same


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


def without_limit(env_id: str) -> PPO:
    env = gym.make(env_id, max_episode_steps=-1)
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu")


def test_an_agent_trained_without_time_limit_is_evaluated_without(tmp_path: Path) -> None:
    model = without_limit("FrozenLake-v1")
    folder = Path(push_to_hub(model, "me/x", n_eval_episodes=1, deterministic=False, video_length=0, dry_run=tmp_path / "dry"))
    assert yaml.safe_load((folder / "env_kwargs.yml").read_text()) == {"max_episode_steps": -1}
    card = (folder / "README.md").read_text()
    assert "env_kwargs={'max_episode_steps': -1}" in card and "max_episode_steps:-1" in commands(card)["train"]


def test_an_evaluation_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pendulum-v1 has no end but its limit."""
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 300)
    model = without_limit("Pendulum-v1")
    with pytest.raises(HubUserError, match=r"Pendulum-v1 without time limit has not ended after 300 steps.*env_kwargs="):
        push_to_hub(model, "me/x", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "no")
    limit = {"max_episode_steps": 400}
    folder = push_to_hub(model, "me/x", env_kwargs=limit, n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry")
    assert json.loads((Path(folder) / "results.json").read_text())["lengths"] == [400]


class Weighted(CartPoleEnv):
    """Has arrays among its arguments."""

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        super().__init__(render_mode=render_mode)


def test_arguments_that_are_registered_as_arrays(tmp_path: Path) -> None:
    arrays = {"weights": np.ones(3), "nested": {"of": [np.zeros(2), 1]}, "tensor": th.ones(1)}
    gym.register("Weighted-v0", Weighted, kwargs=arrays)
    made = {"n_eval_episodes": 1, "video_length": 0}
    try:
        model = PPO("MlpPolicy", gym.make("Weighted-v0", size=2), n_steps=32, batch_size=32, device="cpu")
        folder = Path(push_to_hub(model, "me/x", dry_run=tmp_path / "dry", **made))  # type: ignore[arg-type]
        assert yaml.safe_load((folder / "env_kwargs.yml").read_text()) == {"size": 2}
        for changed in ({"weights": np.zeros(3)}, {"weights": np.ones(2)}, {"nested": {"of": [np.ones(2), 1]}}):
            model.set_env(gym.make("Weighted-v0", **changed))
            with pytest.raises(ValueError, match=f"env_kwargs has .* for {next(iter(changed))}, and only numbers"):
                push_to_hub(model, "me/x", dry_run=tmp_path / "no", **made)  # type: ignore[arg-type]
    finally:
        del gym.registry["Weighted-v0"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (np.ones(2), np.ones(2), True),
        (np.ones(2), [1.0, 1.0], False),
        ([1, (2, np.ones(1))], [1, (2, np.ones(1))], True),
        ([1, 2], (1, 2), False),
        ({"a": np.ones(2)}, {"a": np.ones(3)}, False),
        ({"a": 1}, {"b": 1}, False),
        (th.ones(2), th.ones(2), False),
        ("8x8", "8x8", True),
    ],
)
def test_arguments_are_compared_with_their_arrays(one: object, other: object, expected: bool) -> None:
    assert is_same(one, other) == expected


def test_where_enjoy_samples_actions() -> None:
    assert acts_at_random("ALE/Pong-v5") and acts_at_random("PongNoFrameskip-v4") and acts_at_random("MiniGrid-Empty-5x5-v0")
    assert not acts_at_random("CartPole-v1")

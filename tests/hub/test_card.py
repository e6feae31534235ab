"""What a card says about environments with wrappers, compared with the environment that was evaluated."""

import io
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from torch import nn

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.hub.agent import Agent, config_of_model, file_name_of
from sb3_policyopt.hub.card import Card
from sb3_policyopt.hub.evaluation import Protocol, Score
from sb3_policyopt.hub.named_classes import python_source

pytestmark = pytest.mark.fast

# Applied in this order the bounds of the actions are ±0.5; in the other one, ±1.
PENDULUM = {
    "env_wrapper": [
        {"gymnasium.wrappers.RescaleAction": {"min_action": -1.0, "max_action": 1.0}},
        {"gymnasium.wrappers.RescaleAction": {"min_action": -0.5, "max_action": 0.5}},
    ],
    "frame_stack": 3,
}


def run(lines: list[str], **names: Any) -> VecEnv:
    exec("\n".join(lines), names)
    return names["env"]


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol("CartPole-v1", seed=4),
        Protocol("CartPole-v1", seed=4, n_envs=3),
        Protocol.from_config("Pendulum-v1", PENDULUM, env_kwargs={"g": 3.0}),
        Protocol.from_config("CartPole-v1", {"env_wrapper": ["gymnasium.wrappers.TimeAwareObservation"]}),
        Protocol.from_config(
            "CartPole-v1", {"vec_env_wrapper": [{"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": 2}}]}
        ),
    ],
)
def test_code_makes_the_environment_that_is_evaluated(protocol: Protocol) -> None:
    imports, lines = protocol.code([])
    shown, evaluated = run([*imports, *lines]), protocol.make_env()
    assert shown.observation_space == evaluated.observation_space
    assert shown.action_space == evaluated.action_space
    np.testing.assert_array_equal(shown.reset(), evaluated.reset())
    assert shown.action_space.shape is not None
    actions = np.zeros((protocol.n_envs, *shown.action_space.shape), dtype=shown.action_space.dtype)
    for _ in range(5):
        for one, other in zip(shown.step(actions)[:3], evaluated.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(one, other)


def test_wrappers_are_applied_inside_out_and_normalisation_before_the_frame_stack() -> None:
    protocol = Protocol.from_config("Pendulum-v1", PENDULUM)
    statistics = VecNormalize(make_vec_env("Pendulum-v1", 1))
    without: Any = statistics
    without.venv = None
    env = protocol.make_env(statistics)
    assert isinstance(env, VecFrameStack) and env.venv is statistics
    box = statistics.venv.action_space
    assert isinstance(box, spaces.Box) and box.high == 0.5
    assert not statistics.training and not statistics.norm_reward


def make_card(tmp_path: Path, protocol: Protocol, model: Any, **changes: Any) -> Card:
    model.save(tmp_path / "agent.zip")
    agent = Agent(type(model).__name__.lower(), protocol.env_id, tmp_path / "agent.zip", config_of_model(model), {})
    score = Score([1.0, 2.0], [3, 4])
    card = Card(agent, protocol, score, "me/it", None, "https://hub", "mit", {"zip_sha256": "0"}, False, False)
    return replace(card, **changes)


def test_sampled_actions_are_seeded_in_the_code(tmp_path: Path) -> None:
    protocol = Protocol("CartPole-v1", deterministic=False, seed=5, n_episodes=2)
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu", seed=1)
    card = str(make_card(tmp_path, protocol, model))
    assert "sampled actions" in card and "set_random_seed(5)" in card
    block = card.split("```python\n")[2].split("```")[0]
    code = block.replace('PPO.load(hf_hub_download("me/it", "ppo-CartPole-v1.zip"))', f"PPO.load('{tmp_path}/agent.zip')")
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, {})
    assert out.getvalue().strip() == f"mean_reward: {protocol.evaluate(model, protocol.make_env())}"


def test_video_and_picture_are_shown_only_if_they_exist(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")
    card = make_card(tmp_path, Protocol("CartPole-v1"), model)
    assert "<video" not in str(card) and "training.png" not in str(card)
    shown = str(replace(card, has_video=True, has_picture=True, revision="v1"))
    assert '<video src="https://hub/me/it/resolve/v1/replay.mp4"' in shown and "![" in shown
    assert 'revision="v1"' in shown


class OwnPolicy(ActorCriticPolicy):
    pass


@pytest.mark.parametrize(("algorithm", "policy"), [(StockPPO, "MlpPolicy"), (PPO, OwnPolicy)])
def test_card_of_a_zip_that_needs_pickle_says_so(algorithm: type[Any], policy: str | type[Any], tmp_path: Path) -> None:
    model = algorithm(policy, "CartPole-v1", n_steps=64, device="cpu")
    card = str(make_card(tmp_path, Protocol("CartPole-v1"), model))
    assert "safe=False" in card and "--trust" in card and "only be loaded with pickle" in card


def test_hyperparameters_read_off_a_model() -> None:
    model = TRPO(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", 2),
        n_steps=32,
        batch_size=64,
        learning_rate=LinearSchedule(0.01, 0.0, 1.0),
        gamma=0.9,
        policy_kwargs={"net_arch": {"pi": [8], "vf": [8, 8]}, "activation_fn": nn.ReLU},
        device="cpu",
    )
    config = config_of_model(model)
    assert config == {
        "n_envs": 2,
        "n_timesteps": 0,
        "policy": "MlpPolicy",
        "policy_kwargs": "dict(net_arch=dict(pi=[8], vf=[8, 8]), activation_fn=nn.ReLU)",
        "learning_rate": "lin_0.01",
        "n_steps": 32,
        "batch_size": 64,
        "gamma": 0.9,
    }
    assert eval(str(config["policy_kwargs"]), {"nn": nn}) == model.policy_kwargs
    assert yaml.safe_load(yaml.safe_dump(config)) == config


def test_python_source_of_policy_arguments() -> None:
    import torch as th

    arguments = {"a": (1, [2.5, "x"]), "optimizer_class": th.optim.RMSprop, "b": {"c": None}}
    source = python_source(arguments)
    assert eval(source, {"nn": nn, "th": th}) == {"a": [1, [2.5, "x"]], "optimizer_class": th.optim.RMSprop, "b": {"c": None}}


def test_schedules_that_the_zoo_cannot_write_are_left_out() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, clip_range=FloatSchedule(lambda p: 0.1 + p), device="cpu")
    assert "clip_range" not in config_of_model(model)


@pytest.mark.parametrize("loaded", [False, True], ids=["trained", "loaded"])
def test_of_a_scheduled_coefficient_the_schedule_is_published(loaded: bool, tmp_path: Path) -> None:
    """The attribute has the value of the moment: after a training 0, with which nobody could train such an agent again."""
    scheduled: dict[str, Any] = {
        "ent_coef": "lin_0.02",
        "vf_coef": "lin_0.5",
        "max_grad_norm": lambda progress: 0.1 + progress,
    }
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, device="cpu", **scheduled).learn(128)
    assert model.vf_coef < 0.5
    if loaded:
        model.save(tmp_path / "agent")
        model = PPO.load(tmp_path / "agent", env=model.get_env())
    config = config_of_model(model)
    assert (config["ent_coef"], config["vf_coef"]) == ("lin_0.02", "lin_0.5")
    assert "max_grad_norm" not in config  # a function, as with learning rates
    again = PPO("MlpPolicy", "CartPole-v1", **{name: config[name] for name in ("ent_coef", "vf_coef")})  # type: ignore[arg-type]
    assert (again.ent_coef, again.vf_coef) == (0.02, 0.5)
    model.vf_coef = 0.25
    assert config_of_model(model)["vf_coef"] == 0.25


@pytest.mark.parametrize(
    ("env_id", "name"), [("CartPole-v1", "CartPole-v1"), ("ALE/Pong-v5", "ALE-Pong-v5"), ("my_envs:Maze-v0", "Maze-v0")]
)
def test_file_names_are_those_of_the_zoo(env_id: str, name: str) -> None:
    from huggingface_sb3 import EnvironmentName

    assert file_name_of(env_id) == name == EnvironmentName(env_id)


def test_score_has_the_form_that_leaderboards_parse() -> None:
    # mean 2, variance ((1-2)² + (3-2)²) / 2 = 1
    assert str(Score([1.0, 3.0], [1, 1])) == "2.00 +/- 1.00"


@pytest.mark.parametrize(
    ("env_id", "package"),
    [("Pendulum-v1", ' "gymnasium[classic-control]"'), ("Hopper-v5", ' "gymnasium[mujoco]"'), ("FrozenLake-v1", "")],
)
def test_card_names_what_to_install(env_id: str, package: str, tmp_path: Path) -> None:
    card = str(make_card(tmp_path, Protocol(env_id), PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu")))
    assert f'pip install "sb3-policyopt[hub]"{package}\n' in card
    assert f"pip install stable_baselines3 huggingface_hub{package}\n" in card

"""Hyperparameters that name classes: the card's commands run, or the card says what they need."""

import re
from typing import Any

import pytest
import torch as th
import yaml
from hub_client import Client
from loopback import Hub
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_policyopt.hub.named_classes import is_expression, own_classes, python_source

NETS = """
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
class Extractor(FlattenExtractor): pass
class Policy(ActorCriticPolicy): pass
"""
PUSH = """
from private_nets import Extractor, Policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import FlattenExtractor
from sb3_policyopt import PPO
from sb3_policyopt.hub import push_to_hub
class OfAScript(ActorCriticPolicy): pass
of_sb3 = dict(features_extractor_class=FlattenExtractor, optimizer_class=RMSpropTFLike, net_arch=[8])
for name, policy, policy_kwargs in (
    ("of-sb3", "MlpPolicy", of_sb3),
    ("own-extractor", "MlpPolicy", dict(features_extractor_class=Extractor)),
    ("own-policy", Policy, None),
    ("of-a-script", OfAScript, None),
):
    model = PPO(policy, "CartPole-v1", n_steps=32, batch_size=32, policy_kwargs=policy_kwargs, device="cpu")
    push_to_hub(model, f"me/{name}", n_eval_episodes=1, video_length=0)
"""


@pytest.fixture(scope="module")
def cards(hub: Hub, client: Client) -> dict[str, str]:
    """The cards of four agents, whose own classes are in a module that the client's processes find."""
    (client.folder / "private_nets.py").write_text(NETS)
    pushed = client.python("-c", PUSH, cwd=client.folder)
    assert pushed.code == 0, pushed.err
    return {name.removeprefix("me/"): repo.files()["README.md"].decode() for name, repo in hub.repos.items()}


def commands(card: str) -> list[list[str]]:
    """The arguments of ``load_from_hub``, ``enjoy`` and ``train`` on a card."""
    return [line.split() for line in re.findall(r"(?:^|`)sb3-policyopt ((?:load_from_hub|enjoy|train) [^`\n]*)", card, re.M)]


@pytest.mark.parametrize("name", ["of-sb3", pytest.param("own-extractor", marks=pytest.mark.slow), "own-policy"])
def test_the_commands_of_the_card_run(cards: dict[str, str], client: Client, name: str) -> None:
    card = cards[name]
    load, _, train = commands(card)
    assert ("--trust" in load) == (name != "of-sb3")
    loaded = client.command(*load)
    assert loaded.code == 0, loaded.err
    (client.folder / "hyperparameters.yml").write_text(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    trained = client.command(*train, "-n", "64", "-f", "again", "--eval-freq", "-1")
    assert trained.code == 0, trained.err
    saved = yaml.unsafe_load((max((client.folder / "again" / "ppo").glob("*")) / "CartPole-v1" / "config.yml").read_text())
    written = yaml.safe_load((client.folder / "hyperparameters.yml").read_text())["CartPole-v1"]
    assert {key: dict(saved)[key] for key in ("policy", "policy_kwargs") if key in written} == {
        key: written[key] for key in ("policy", "policy_kwargs") if key in written
    }


def test_without_trust_classes_of_others_are_refused(cards: dict[str, str], client: Client) -> None:
    load = [word for word in commands(cards["own-policy"])[0] if word != "--trust"]
    refused = client.command(*load)
    assert refused.code == 2 and "--trust" in refused.sentence


def test_the_card_says_which_classes_are_needed(cards: dict[str, str]) -> None:
    assert "You need" not in cards["of-sb3"] and "--trust" not in cards["of-sb3"]
    assert "You need `private_nets.Extractor`, which the hyperparameters name: put the module" in cards["own-extractor"]
    assert "You need `private_nets.Policy`" in cards["own-policy"]
    assert "You need `__main__.OfAScript`" in cards["of-a-script"] and "write its name" in cards["of-a-script"]


def test_what_cannot_be_evaluated_is_one_sentence(client: Client) -> None:
    for name, value, error in (
        ("policy_kwargs", "dict(features_extractor_class=Unknown)", " of CartPole-v1 cannot be evaluated (NameError"),
        ("policy_kwargs", "dict(a=<function>)", " of CartPole-v1 cannot be evaluated (SyntaxError"),
        ("normalize", "dict(norm_obs=Unknown)", " of CartPole-v1 cannot be evaluated (NameError"),
        ("policy", "sb3_policyopt.ppo.Unknown", ": sb3_policyopt.ppo.Unknown cannot be imported"),
    ):
        entry = {"n_timesteps": 64, "policy": "MlpPolicy", name: value}
        (client.folder / "wrong.yml").write_text(yaml.safe_dump({"CartPole-v1": entry}))
        result = client.command("train", "--algo", "ppo", "--env", "CartPole-v1", "-conf", "wrong.yml", "-f", "wrong")
        assert result.code == 2 and f"{name}{error}" in result.sentence, result.err
    assert not list((client.folder / "wrong").rglob("*.yml"))


def function() -> None: ...


def test_python_source_names_classes_so_that_the_zoo_finds_them() -> None:
    from rl_zoo3 import exp_manager

    given: dict[str, Any] = {
        "features_extractor_class": FlattenExtractor,
        "optimizer_class": RMSpropTFLike,
        "activation_fn": nn.SiLU,
        "other": th.optim.AdamW,
        "nested": {"of module": nn.init.ones_, 3: (1, float("1.5"))},
    }
    read = eval(python_source(given), vars(exp_manager))
    assert read == given | {"nested": {"of module": nn.init.ones_, 3: [1, 1.5]}}
    assert is_expression(python_source(given)) and not is_expression(python_source({"a": object()}))
    config: dict[str, object] = {"policy": "a.B", "policy_kwargs": python_source({"f": function, "g": given})}
    assert own_classes(config) == [f"{__name__}.function", "a.B"]

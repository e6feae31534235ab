"""A third algorithm: one entry in the registry, and the zoo, the hyperparameters, plots, doctor and Hub find it."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rl_zoo3
import rl_zoo3.utils
from rl_zoo3 import hyperparams_opt

from sb3_policyopt import PPO, hyperparams, registry
from sb3_policyopt.cli.main import main
from sb3_policyopt.doctor.report import examine, settings_of, to_text
from sb3_policyopt.doctor.rules import rules_of
from sb3_policyopt.doctor.rules.critic import useless_critic
from sb3_policyopt.hub.agent import Agent, agent_of_run
from sb3_policyopt.hub.card import Card
from sb3_policyopt.hub.evaluation import Protocol, Score
from sb3_policyopt.plots import plot_run
from sb3_policyopt.plots.page import make_figure
from sb3_policyopt.plots.panels import Panel
from sb3_policyopt.plots.runs import read_run
from sb3_policyopt.registry import Algorithm
from sb3_policyopt.saving.constructors import parameters_of
from sb3_policyopt.zoo import register

pytestmark = pytest.mark.fast


class Third(PPO):
    """PPO under another name."""


PANELS = (Panel("Entropy of the third algorithm", "train/entropy_loss"),)
RULES = (useless_critic,)


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Algorithm]:
    """The algorithm, registered for one test."""
    (tmp_path / "third.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 32, batch_size: 32}\n")
    monkeypatch.chdir(tmp_path)
    algorithm = Algorithm(
        "third",
        f"{__name__}:Third",
        hyperparameters=str(tmp_path / "third.yml"),
        panels=f"{__name__}:PANELS",
        rules=f"{__name__}:RULES",
        sampler="rl_zoo3.hyperparams_opt:sample_ppo_params",
        metric="train/clip_fraction",
        stock="stable_baselines3:PPO",
    )
    registry.register(algorithm)
    register()
    yield algorithm
    del registry.ALGORITHMS["third"], rl_zoo3.ALGOS["third"]
    del hyperparams_opt.HYPERPARAMS_SAMPLER["third"], hyperparams_opt.HYPERPARAMS_CONVERTER["third"]


def train() -> None:
    assert main(["train", "--algo", "third", "--env", "CartPole-v1", "--seed", "1", "--eval-freq", "-1"]) == 0


def card_of(agent: Agent) -> str:
    protocol, score = Protocol("CartPole-v1"), Score([1.0], [1])
    return str(Card(agent, protocol, score, "me/it", None, "", "mit", {"zip_sha256": ""}, False, False))


def test_all_parts_find_a_third_algorithm(third: Algorithm, capsys: pytest.CaptureFixture[str]) -> None:
    assert rl_zoo3.ALGOS["third"] is third.load_class() is Third
    assert hyperparams_opt.HYPERPARAMS_SAMPLER["third"] is hyperparams_opt.sample_ppo_params
    assert hyperparams.load("third")["CartPole-v1"]["n_steps"] == 32
    train()
    run = read_run("logs/third/CartPole-v1_1")
    assert run.algo == "third", "the folder decides between two algorithms that log the same metric"
    assert settings_of(run)["n_steps"] == 32 and settings_of(run)["clip_range"] == 0.2

    titles = [axes.get_title(loc="left") for axes in make_figure([run]).get_axes()]
    assert PANELS[0].title in titles and "Clipped samples (fraction)" not in titles
    assert plot_run(run.path, "page.png").is_file()

    assert useless_critic in rules_of("third") and {rule.name for rule in rules_of("third")} < {r.name for r in rules_of("")}
    assert "Third on CartPole-v1, 64 steps" in to_text(examine(run))

    agent = agent_of_run(run.path, "third", "CartPole-v1")
    assert (agent.class_name, agent.name) == ("Third", "third-CartPole-v1")
    card = card_of(agent)
    assert "from stable_baselines3 import PPO" in card and "# **Third** agent" in card
    capsys.readouterr()
    assert main(["push_to_hub", "--algo", "fourth", "--env", "CartPole-v1", "-orga", "me"]) == 2
    assert "third" in capsys.readouterr().err, "among the choices"


def test_without_a_stock_class_the_card_has_no_code_for_it(third: Algorithm) -> None:
    registry.register(Algorithm(**{**vars(third), "stock": None}))
    train()
    agent = agent_of_run(Path("logs/third/CartPole-v1_1"), "third", "CartPole-v1")
    card = card_of(agent)
    assert card.count("```python") == 1


def test_a_name_is_a_key_and_a_class_has_one_entry() -> None:
    """rl-zoo3's plots look for the key in lower case; saved agents are found by the name of their class."""
    with pytest.raises(ValueError, match="must be in lower case"):
        registry.register(replace(registry.find("ppo"), name="PPO2"))
    with pytest.raises(ValueError, match="ppo has a class of the name PPO"):
        registry.register(replace(registry.find("ppo"), name="ppo2"))
    with pytest.raises(ValueError, match="one of ppo, trpo, ppo_lstm, trpo_lstm, ppo_mask, trpo_mask, not 'sac'"):
        registry.find("sac")
    assert registry.class_names() == "PPO, TRPO, RecurrentPPO, RecurrentTRPO, MaskablePPO and MaskableTRPO"
    assert registry.of_class("MaskableTRPO") is registry.find("trpo_mask") and registry.of_class("SAC") is None


@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
def test_the_zoo_finds_the_key_by_the_name_on_a_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """rl-zoo3's own function, on a list of models as the Hub gives it."""
    result = {"dataset": {"name": "CartPole-v1"}}
    head = {"model-index": [{"name": registry.find(name).model_name, "results": [result]}]}
    models = [SimpleNamespace(id="me/it", card_data=head)]
    monkeypatch.setattr(rl_zoo3.utils.HfApi, "list_models", lambda *_, **__: models)
    assert rl_zoo3.utils.get_hf_trained_models("me") == {f"{name}-CartPole-v1": (name, "CartPole-v1")}


@pytest.mark.parametrize(
    ("trained_by", "masks", "memory", "published_as"),
    [
        ("ppo", False, False, "ppo"),
        ("ppo", True, False, "ppo_mask"),
        ("trpo", False, True, "trpo_lstm"),
        ("ppo", True, True, "ppo_mask"),
        ("ppo_lstm", True, True, "ppo_mask"),
        ("trpo_mask", True, False, "trpo_mask"),
    ],
)
def test_an_agent_is_published_by_the_kind_of_its_policy(
    trained_by: str, masks: bool, memory: bool, published_as: str
) -> None:
    assert registry.of_policy(registry.find(trained_by), masks, memory).name == published_as


def test_the_arguments_of_a_constructor_with_those_that_it_hands_on() -> None:
    for name in registry.ALGORITHMS:
        found = parameters_of(registry.find(name).load_class())
        assert {"policy", "env", "n_steps", "gamma", "engine", "sequence_length"} <= set(found), name
        assert not {"self", "options", "named"} & set(found), name
    assert parameters_of(registry.find("ppo_lstm").load_class())["n_steps"].default == 128, "its own, not that of PPO"
    assert parameters_of(registry.find("ppo").load_class())["n_steps"].default == 2048


@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
def test_every_reference_of_an_entry_exists(name: str) -> None:
    algorithm = registry.find(name)
    assert algorithm.load_class().__name__ == algorithm.class_name
    assert hyperparams.path(name).is_file()
    assert f"sb3_policyopt.hyperparams.{name}" == importlib.import_module(f"sb3_policyopt.hyperparams.{name}").__name__
    for reference in (algorithm.panels, algorithm.rules, algorithm.sampler, algorithm.converter, algorithm.stock):
        assert reference is None or registry.resolve(reference)


@pytest.mark.parametrize("name", [name for name, entry in registry.ALGORITHMS.items() if entry.stock is not None])
def test_the_stock_class_of_an_entry_loads_its_zips(name: str, tmp_path: Path) -> None:
    entry = registry.find(name)
    policy, env_id = "MlpLstmPolicy" if entry.memory else "MlpPolicy", "MaskedRoute-v0" if entry.masks else "CartPole-v1"
    algorithm: Any = entry.load_class()
    model = algorithm(policy, env_id, n_steps=8, batch_size=8, seed=0, device="cpu")
    model.save(tmp_path / "model")
    assert entry.stock is not None
    stock_class: Any = registry.resolve(entry.stock)
    stock = stock_class.load(tmp_path / "model", device="cpu")
    assert type(stock).__name__ == entry.class_name and not isinstance(stock, type(model))
    observation = model.get_env().reset()
    assert (stock.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()

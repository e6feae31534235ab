"""A third algorithm: one entry in the registry, and the zoo, the hyperparameters, plots, doctor and Hub find it."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rl_zoo3
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


def test_names_follow_the_class() -> None:
    """rl-zoo3 finds the algorithm of a published agent by the name of its class in lower case."""
    with pytest.raises(ValueError, match="must be 'third'"):
        registry.register(Algorithm(**{**vars(registry.find("ppo")), "class_reference": f"{__name__}:Third"}))
    with pytest.raises(ValueError, match="one of ppo, trpo, not 'sac'"):
        registry.find("sac")
    assert registry.class_names() == "PPO and TRPO"


@pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))
def test_every_reference_of_an_entry_exists(name: str) -> None:
    algorithm = registry.find(name)
    assert algorithm.load_class().__name__ == algorithm.class_name
    assert hyperparams.path(name).is_file()
    assert f"sb3_policyopt.hyperparams.{name}" == importlib.import_module(f"sb3_policyopt.hyperparams.{name}").__name__
    for reference in (algorithm.panels, algorithm.rules, algorithm.sampler, algorithm.stock):
        assert reference is None or registry.resolve(reference)


@pytest.mark.parametrize("name", ["ppo", "trpo"])
def test_the_stock_class_of_an_entry_loads_its_zips(name: str, tmp_path: Path) -> None:
    entry = registry.find(name)
    algorithm: Any = entry.load_class()
    model = algorithm("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, seed=0, device="cpu")
    model.save(tmp_path / "model")
    assert entry.stock is not None
    stock_class: Any = registry.resolve(entry.stock)
    stock = stock_class.load(tmp_path / "model", device="cpu")
    assert type(stock).__name__ == entry.class_name and not isinstance(stock, type(model))
    observation = model.get_env().reset()
    assert (stock.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()

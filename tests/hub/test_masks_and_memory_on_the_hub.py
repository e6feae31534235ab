"""Agents with masks and with memory on the Hub: their cards, zips without pickles, evaluation, video, and a round trip."""

import importlib
import io
import json
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import yaml
from hub_client import Client
from loopback import Hub
from stable_baselines3.common.env_util import make_vec_env

import sb3_policyopt.envs  # noqa: F401  registers the environments with masks
from sb3_policyopt import PPO, TRPO, MaskablePPO, MaskableTRPO, RecurrentPPO, RecurrentTRPO
from sb3_policyopt.errors import PickleRequiredError
from sb3_policyopt.hub.card import Card
from sb3_policyopt.hub.evaluation import Protocol, requirement
from sb3_policyopt.hub.push import agent_of_model
from sb3_policyopt.hub.video import record_video

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "seed": 0, "device": "cpu"}
LSTM = {"policy_kwargs": {"lstm_hidden_size": 8}}
GRU = {"policy_kwargs": {"lstm_hidden_size": 8, "rnn": "gru"}}

# class, policy, environment, arguments; name on the Hub, name for the zoo, policy in config.yml, stock class
KINDS: dict[str, tuple[Any, str, str, dict[str, Any], str, str, str, str | None]] = {
    "masks": (MaskablePPO, "MlpPolicy", "MaskedRoute-v0", {}, "ppo_mask", "PPO_MASK", "MaskableMlpPolicy", "MaskablePPO"),
    "masks of PPO": (
        PPO,
        "MaskableMlpPolicy",
        "MaskedWorkshop-v0",
        {},
        "ppo_mask",
        "PPO_MASK",
        "MaskableMlpPolicy",
        "MaskablePPO",
    ),
    "masks of TRPO": (MaskableTRPO, "MlpPolicy", "MaskedRoute-v0", {}, "trpo_mask", "TRPO_MASK", "MaskableMlpPolicy", None),
    "memory": (
        RecurrentPPO,
        "MlpLstmPolicy",
        "CartPole-v1",
        LSTM,
        "ppo_lstm",
        "RecurrentPPO",
        "MlpLstmPolicy",
        "RecurrentPPO",
    ),
    "memory of PPO": (PPO, "MlpLstmPolicy", "Pendulum-v1", LSTM, "ppo_lstm", "RecurrentPPO", "MlpLstmPolicy", "RecurrentPPO"),
    "memory of TRPO": (RecurrentTRPO, "MlpLstmPolicy", "CartPole-v1", LSTM, "trpo_lstm", "TRPO_LSTM", "MlpLstmPolicy", None),
    "a GRU": (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", GRU, "ppo_lstm", "RecurrentPPO", "MlpLstmPolicy", None),
    "both": (PPO, "MaskableMlpLstmPolicy", "MaskedRoute-v0", LSTM, "ppo_mask", "PPO_MASK", "MaskableMlpLstmPolicy", None),
    "both for TRPO": (
        TRPO,
        "MaskableMlpLstmPolicy",
        "MaskedRoute-v0",
        GRU,
        "trpo_mask",
        "TRPO_MASK",
        "MaskableMlpLstmPolicy",
        None,
    ),
}


def trained(kind: str) -> Any:
    algorithm, policy, env_id, options, *_ = KINDS[kind]
    return algorithm(policy, make_vec_env(env_id, 2, seed=0), **SMALL, **options).learn(64)


def described(kind: str, folder: Path) -> tuple[Any, Any, Any, Card]:
    """A trained agent, what is published of it, and its card with the score of three episodes."""
    model = trained(kind)
    agent = agent_of_model(model, folder, env=model.get_env())
    protocol = Protocol.from_config(agent.env_id, agent.config, n_episodes=3)
    score = protocol.evaluate(model, protocol.make_env())
    facts = ("me/it", None, "https://hub", "mit", {"zip_sha256": "0"}, False, False)
    return model, agent, score, Card(agent, protocol, score, *facts, policy_class=type(model.policy))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_the_card_finds_the_score_and_lets_the_agent_act(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, algo, model_name, policy, stock = KINDS[kind]
    model, agent, score, card = described(kind, tmp_path)
    assert (agent.algo, agent.config["policy"]) == (algo, policy)
    text = str(card)
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["name"] == model_name
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) == 1 + (stock is not None)
    assert ("has no class for such an agent" in text) == (stock is None)
    monkeypatch.setattr(
        "sb3_policyopt.hub.load_from_hub", lambda _: (type(model).load(agent.zip_path, safe=True), None), raising=False
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(agent.zip_path))
    for block, owner in zip(blocks, ("sb3_policyopt", "sb3_contrib"), strict=False):
        assert ("action_masks=" in block) == ("mask" in algo) and ("state, episode_start" in block) == (
            "policy_kwargs" in str(agent.config)
        )
        names: dict[str, Any] = {}
        with redirect_stdout(io.StringIO()) as out:
            exec(block, names)
        assert out.getvalue().strip() == f"mean_reward: {score}"
        assert type(names["model"]).__module__.startswith(owner)


@pytest.mark.parametrize("kind", KINDS)
def test_zips_load_without_pickles_and_act_the_same(kind: str, tmp_path: Path) -> None:
    model = trained(kind)
    model.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        description = archive.read("policyopt.json").decode()
    assert "$pickle_only" not in description and "_last_lstm_states" not in description
    loaded = type(model).load(tmp_path / "agent", device="cpu", safe=True)
    assert type(loaded.policy) is type(model.policy)
    observation = model.get_env().reset()
    for one, other in zip(model.predict(observation), loaded.predict(observation), strict=True):
        assert (one is None) == (other is None)
    one, other = (agent.predict(observation, deterministic=True)[0] for agent in (model, loaded))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    loaded.set_env(model.get_env())
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128


@pytest.mark.parametrize("stock", ["MaskablePPO", "RecurrentPPO"])
def test_masks_with_memory_have_no_stock_class(stock: str, tmp_path: Path) -> None:
    trained("both").save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"has no class in sb3-contrib|must subclass Maskable"):
        getattr(sb3_contrib, stock).load(tmp_path / "agent", device="cpu")


def test_without_sb3_contrib_loading_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("memory").save(tmp_path / "agent")
    original = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sb3_contrib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(PickleRequiredError, match=r"pip install 'sb3-policyopt\[contrib\]'"):
        RecurrentPPO.load(tmp_path / "agent", safe=True)


def test_a_description_names_no_other_class(tmp_path: Path) -> None:
    """Neither a class of another module of sb3-contrib, nor one of this package that is no policy."""
    from sb3_policyopt.saving.plain_json import decode, encode

    encoded: Any = encode(sb3_contrib.TRPO)
    assert "$pickle_only" in encoded
    for name in ("sb3_contrib.TRPO", "sb3_policyopt.GRU", "sb3_policyopt.PPO"):
        with pytest.raises(ValueError, match="none of the classes"):
            decode({"$class": name})


@pytest.mark.parametrize("kind", ["both", "memory"])
def test_video(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forbidden action is an error here; a state that is not handed on, too."""
    model = trained(kind)
    agent = agent_of_model(model, tmp_path, env=model.get_env())
    states, predict = [], model.predict

    def spy(observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False, **masks: Any) -> Any:
        states.append(state)
        assert bool(masks) == (kind == "both")
        return predict(observation, state, episode_start, deterministic, **masks)

    monkeypatch.setattr(model, "predict", spy)
    env = Protocol(agent.env_id, env_kwargs={}).make_env(n_envs=1)
    assert record_video(model, env, tmp_path / "replay.mp4", 20, deterministic=False) is None
    assert (tmp_path / "replay.mp4").read_bytes()[4:8] == b"ftyp"
    assert len(states) == 20 and states[0] is None and all(state is not None for state in states[1:])


def test_requirements_of_the_environments() -> None:
    import rl_zoo3.import_envs  # noqa: F401  registers those without velocities

    assert requirement("MaskedRoute-v0") == "sb3-policyopt" and requirement("CartPoleNoVel-v1") == "rl-zoo3"
    assert Protocol.from_config("CartPoleNoVel-v1", {}).imports == ("rl_zoo3.import_envs",)
    assert Protocol.from_config("MaskedRoute-v0", {}).imports == ("sb3_policyopt.envs",)


ROUND_TRIP = """
import numpy as np
from sb3_policyopt import PPO, MaskablePPO, RecurrentPPO
from sb3_policyopt.hub import load_from_hub, push_to_hub
import sb3_policyopt.envs

SMALL = dict(n_steps=32, batch_size=32, device="cpu", seed=1)
for algorithm, policy, env_id, name in [
    (MaskablePPO, "MlpPolicy", "MaskedRoute-v0", "me/masks"),
    (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", "me/memory"),
    (PPO, "MaskableMlpLstmPolicy", "MaskedWorkshop-v0", "me/both"),
]:
    model = algorithm(policy, env_id, **SMALL).learn(32)
    push_to_hub(model, name, n_eval_episodes=2, video_length=10)
    loaded, statistics = load_from_hub(name, device="cpu")
    assert type(loaded) is algorithm and type(loaded.policy) is type(model.policy) and statistics is None
    observation = model.get_env().reset()
    np.testing.assert_array_equal(*(one.predict(observation, deterministic=True)[0] for one in (model, loaded)))
"""


@pytest.mark.slow
def test_round_trip(tmp_path: Path) -> None:
    with Hub() as hub:
        client = Client(hub.url, tmp_path)
        result = client.python("-c", ROUND_TRIP)
        client.close()
        assert result.code == 0, result.err
        files = {name: repo.files() for name, repo in hub.repos.items()}
    assert set(files) == {"me/masks", "me/memory", "me/both"}
    for name, zip_name in (("me/masks", "ppo_mask-MaskedRoute-v0.zip"), ("me/memory", "ppo_lstm-CartPole-v1.zip")):
        assert {zip_name, "replay.mp4", "README.md"} <= set(files[name])
    assert json.loads(files["me/both"]["config.json"])["policy"] == "MaskableMlpLstmPolicy"

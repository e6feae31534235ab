"""``push_to_hub`` and ``load_from_hub`` as functions, without rl-zoo3."""

from pathlib import Path

import pytest
from hub_client import Client
from loopback import Hub

PRELUDE = """
import numpy as np
from huggingface_hub import HfApi
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from sb3_policyopt import PPO, TRPO
from sb3_policyopt.hub import HubError, load_from_hub, push_to_hub
from sb3_policyopt.errors import PickleRequiredError

SMALL = dict(n_steps=32, batch_size=32, device="cpu", seed=1)
ONCE = dict(n_eval_episodes=2, video_length=0)

def env(n_envs=1, env_id="CartPole-v1", **kwargs):
    return make_vec_env(env_id, n_envs, seed=3, env_kwargs=kwargs)

def same(one, other, observations):
    # Memory that lies otherwise may be summed in another order.
    for ours, theirs in zip(one.policy.state_dict().values(), other.policy.state_dict().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for observation in observations:
        actions, others = (model.predict(observation, deterministic=True)[0] for model in (one, other))
        np.testing.assert_allclose(actions, others, rtol=1e-5, atol=1e-7)
"""

NORMALIZED = """
venv = VecNormalize(env(2, "Pendulum-v1", g=5.0))
model = TRPO("MlpPolicy", venv, **SMALL).learn(64)
address = push_to_hub(model, "me/normalized", **ONCE)
loaded, statistics = load_from_hub("me/normalized", device="cpu")
assert loaded.env is None and statistics.venv is None and not statistics.training
raw = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
np.testing.assert_array_equal(statistics.normalize_obs(raw), venv.normalize_obs(raw))
same(model, loaded, statistics.normalize_obs(raw))

again, statistics = load_from_hub("me/normalized", env=env(2, "Pendulum-v1", g=5.0), device="cpu")
assert again.get_vec_normalize_env() is statistics
statistics.training = statistics.norm_reward = True
count = statistics.obs_rms.count
again.learn(64, reset_num_timesteps=False)
assert again.num_timesteps == 128 and statistics.obs_rms.count > count
print(address)
"""

STACKED = """
model = PPO("MlpPolicy", VecFrameStack(env(), 3), **SMALL).learn(32)
push_to_hub(model, "me/stacked", **ONCE)
loaded, statistics = load_from_hub("me/stacked", device="cpu")
assert statistics is None and loaded.observation_space.shape == (12,)
same(model, loaded, np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32))
"""

OWN_POLICY = """
class OwnPolicy(ActorCriticPolicy):
    pass

push_to_hub(PPO("MlpPolicy", env(), **SMALL), "me/own", **ONCE)
assert "config.json" in HfApi().list_repo_files("me/own")
model = PPO(OwnPolicy, env(), **SMALL)
push_to_hub(model, "me/own", **ONCE)
assert "config.json" not in HfApi().list_repo_files("me/own")  # it described the agent that was there before
try:
    load_from_hub("me/own", device="cpu")
except PickleRequiredError as error:
    assert "OwnPolicy" in str(error) and "safe=False" in str(error)
else:
    raise AssertionError("a pickle was loaded")
assert type(load_from_hub("me/own", device="cpu", safe=False)[0].policy) is OwnPolicy
given, _ = load_from_hub("me/own", device="cpu", custom_objects={"policy_class": OwnPolicy})
same(model, given, np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
"""

ERRORS = """
from stable_baselines3 import A2C
class Unregistered(type(env().envs[0].unwrapped)):
    spec = None

def fails(action, sentence):
    try:
        action()
    except HubError as error:
        assert sentence in str(error), error
        assert "\\n" not in str(error)
    else:
        raise AssertionError(f"no error: {sentence}")

model = PPO("MlpPolicy", env(), **SMALL)
fails(lambda: push_to_hub(A2C("MlpPolicy", env()), "me/x"), "only PPO, TRPO, RecurrentPPO")
fails(lambda: push_to_hub(PPO("MlpPolicy", Unregistered(), **SMALL), "me/x"), "pass env_id")
fails(lambda: push_to_hub(model, "x"), "name/repository")
fails(lambda: push_to_hub(model, "me/x", "Pendulum-v1", **ONCE), "does not run in Pendulum-v1")
fails(lambda: load_from_hub("me/x"), "there is no repository me/x")
push_to_hub(model, "me/agent", **ONCE)
fails(lambda: load_from_hub("me/agent", zip_name="other.zip"), "has no file 'other.zip'")
"""

OFFLINE = """
model, statistics = load_from_hub("me/normalized", device="cpu")
assert type(model) is TRPO and statistics is not None
try:
    load_from_hub("me/unknown")
except HubError as error:
    assert "cannot be reached" in str(error) and "not in the local cache" in str(error)
else:
    raise AssertionError("loaded from nowhere")
"""


def test_functions(tmp_path: Path) -> None:
    with Hub() as hub:
        client = Client(hub.url, tmp_path)
        result = client.python("-c", PRELUDE + NORMALIZED + STACKED + OWN_POLICY + ERRORS)
        client.close()
        assert result.code == 0, result.err
        assert f"{hub.url}/me/normalized/commit/" in result.out
        assert set(hub.repos) == {"me/normalized", "me/stacked", "me/own", "me/agent"}
        card = hub.repos["me/normalized"].files()["README.md"].decode()
        assert "env_kwargs={'g': 5.0})" in card


@pytest.mark.slow
def test_what_was_loaded_once_is_there_without_network(tmp_path: Path) -> None:
    with Hub() as hub:
        client = Client(hub.url, tmp_path / "online")
        assert client.python("-c", PRELUDE + NORMALIZED).code == 0
        client.close()
    client = Client("http://127.0.0.1:9", tmp_path / "offline", HF_HOME=str(tmp_path / "online" / "hf_home"))
    result = client.python("-c", PRELUDE + OFFLINE)
    client.close()
    assert result.code == 0, result.err


def test_without_the_extra_the_command_names_it(tmp_path: Path) -> None:
    absent = "import sys; sys.modules['huggingface_hub'] = None; from sb3_policyopt.__main__ import main; "
    arguments = "['load_from_hub', '--algo', 'ppo', '--env', 'CartPole-v1', '-f', 'logs']"
    client = Client("http://127.0.0.1:9", tmp_path)
    result = client.python("-c", absent + f"sys.exit(main({arguments}))")
    help_ = client.python("-c", absent + "main(['load_from_hub', '--help'])")
    client.close()
    assert result.code == 2 and "pip install 'sb3-policyopt[hub]'" in result.sentence
    assert help_.code == 0 and "--trust" in help_.out

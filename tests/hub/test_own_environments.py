"""Agents of environments that are not Gymnasium's own: of a package, of tensors, of a frame stack with normalisation."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hub_client import Client
from loopback import Hub
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_policyopt import PPO
from sb3_policyopt.envs.tensors import TensorCartPole, TensorVecNormalize
from sb3_policyopt.errors import HubUserError
from sb3_policyopt.hub import package_to_hub, push_to_hub
from sb3_policyopt.hub.environments import is_of_a_script, registering_modules, spec_of
from sb3_policyopt.hub.evaluation import Protocol, requirement
from sb3_policyopt.hub.normalization import attached, load_statistics, save_statistics

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "device": "cpu", "seed": 1}
ONCE: dict[str, Any] = {"n_eval_episodes": 2, "video_length": 0}

PACKAGE = {
    "__init__.py": "import gymnasium\n"
    "gymnasium.register('ShortCart-v0', entry_point='private_carts.carts:Cart', max_episode_steps=7)\n",
    "carts.py": "from gymnasium.envs.classic_control import CartPoleEnv\nclass Cart(CartPoleEnv): pass\n",
    "elsewhere.py": "import gymnasium\nfrom private_carts.carts import Cart\n"
    "gymnasium.register('OtherCart-v0', entry_point=Cart, max_episode_steps=5)\n",
}

PUSH = """
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_policyopt import PPO
from sb3_policyopt.hub import HubError, push_to_hub
workers = make_vec_env(
    "private_carts.elsewhere:OtherCart-v0", 1, vec_env_cls=SubprocVecEnv, env_kwargs={"sutton_barto_reward": True}
)
model = PPO("MlpPolicy", workers, n_steps=32, batch_size=32, n_epochs=1, device="cpu")
try:
    push_to_hub(model, "me/workers", n_eval_episodes=2, video_length=0)
except HubError as error:
    assert "OtherCart-v0 is not registered in this process" in str(error) and "env_id='module:OtherCart-v0'" in str(error)
else:
    raise AssertionError("nobody can know the module that registers it")
push_to_hub(model, "me/workers", "private_carts.elsewhere:OtherCart-v0", n_eval_episodes=2, video_length=0)
workers.close()
model = PPO("MlpPolicy", "private_carts:ShortCart-v0", n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=1).learn(32)
push_to_hub(model, "me/ppo-ShortCart-v0", n_eval_episodes=2, video_length=0)
push_to_hub(model, "me/given", env_id="private_carts:ShortCart-v0", n_eval_episodes=2, video_length=0)
import private_carts.elsewhere
push_to_hub(model, "me/elsewhere", env_id="private_carts.elsewhere:OtherCart-v0", n_eval_episodes=2, video_length=0)
"""

OF_A_SCRIPT = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
from sb3_policyopt import PPO
from sb3_policyopt.hub import push_to_hub
class Cart(CartPoleEnv): pass
gymnasium.register("ScriptCart-v0", entry_point=Cart, max_episode_steps=7)
model = PPO("MlpPolicy", "ScriptCart-v0", n_steps=32, batch_size=32, n_epochs=1, device="cpu")
print(push_to_hub(model, "me/script", n_eval_episodes=1, video_length=0, dry_run="script"))
"""


def package_in(folder: Path) -> Path:
    for name, text in PACKAGE.items():
        (folder / "private_carts").mkdir(parents=True, exist_ok=True)
        (folder / "private_carts" / name).write_text(text)
    return folder


def test_the_code_of_the_card_imports_the_module_that_registers_the_environment(tmp_path: Path) -> None:
    folder = package_in(tmp_path / "packages")
    with Hub() as hub:
        client = Client(hub.url, tmp_path / "client")
        path = os.pathsep.join((client.environment["PYTHONPATH"], str(folder)))
        result = client.python("-c", PUSH, PYTHONPATH=path)
        assert result.code == 0, result.err
        for name, module, env_id, run in (
            ("ppo-ShortCart-v0", "private_carts.carts", "ShortCart-v0", 0),  # with this package
            ("given", "private_carts", "ShortCart-v0", 1),  # with stock SB3
            ("elsewhere", "private_carts.elsewhere", "OtherCart-v0", 1),
        ):
            card = hub.repos[f"me/{name}"].files()["README.md"].decode()
            assert f"--env {env_id} -conf hyperparameters.yml --gym-packages {module}`" in card
            assert f"--env {env_id} -f logs/ --gym-packages {module}\n" in card
            assert f"- {env_id}\n" in card  # a tag
            blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
            assert len(blocks) == 2
            assert all(f"import {module}  # registers the environment\n" in code for code in blocks)
            printed = client.python("-c", blocks[run], PYTHONPATH=path)
            length = 7 if env_id == "ShortCart-v0" else 5
            assert f"mean_reward: {length}.00 +/- 0.00" in printed.out, printed.err
        assert "env_kwargs={'sutton_barto_reward': True}" in hub.repos["me/workers"].files()["README.md"].decode()
        client.close()


def test_the_card_says_that_an_environment_was_registered_by_a_script(tmp_path: Path) -> None:
    client = Client("http://127.0.0.1:9", tmp_path)
    result = client.python("-c", OF_A_SCRIPT)
    client.close()
    assert result.code == 0, result.err
    card = (tmp_path / "empty" / "script" / "README.md").read_text()
    assert card.count("# register ScriptCart-v0 first: its author did so in a script\n") == 2
    assert "import __main__" not in card and "--gym-packages" not in card


def test_modules_that_register_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registering_modules("CartPole-v1") == registering_modules("Hopper-v4") == registering_modules("Unknown-v0") == ()
    assert registering_modules("ALE/Pong-v5") == ("ale_py",)
    assert registering_modules("private_carts:ShortCart-v0") == ("private_carts",)
    assert not is_of_a_script("CartPole-v1") and not is_of_a_script("Unknown-v0")
    monkeypatch.syspath_prepend(str(package_in(tmp_path)))
    gym.spec("CartPole-v1")
    gym.make("private_carts:ShortCart-v0")
    try:
        assert registering_modules("ShortCart-v0") == ("private_carts.carts",)
        assert requirement("private_carts:ShortCart-v0") == ""
        imports = [
            Protocol.from_config(env_id, {}, imports=given).imports
            for env_id in ("ShortCart-v0", "private_carts:ShortCart-v0")
            for given in ((), ("other",), ("private_carts",))
        ]
    finally:
        del gym.registry["ShortCart-v0"]
        for name in [name for name in sys.modules if name.startswith("private_carts")]:
            del sys.modules[name]
    assert imports[:3] == [("private_carts.carts",), ("other",), ("private_carts",)]
    assert imports[3:] == [("private_carts",), ("other", "private_carts"), ("private_carts",)]


def test_an_environment_that_nobody_registers(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    for env_id, sentence in (
        ("Maze-v0", "there is no environment Maze-v0: name the module that registers it with --gym-packages"),
        ("private_mazes:Maze-v0", "private_mazes, which is to register Maze-v0, cannot be imported"),
    ):
        with pytest.raises(HubUserError, match=sentence):
            push_to_hub(model, "me/x", env_id, dry_run=tmp_path / "dry", **ONCE)
    with pytest.raises(HubUserError, match="CartPole-v1 has no argument gravity"):
        push_to_hub(model, "me/x", env_kwargs={"gravity": 1}, dry_run=tmp_path / "dry", **ONCE)


@pytest.mark.parametrize("normalized", [False, True])
def test_agents_of_tensor_environments(normalized: bool, tmp_path: Path) -> None:
    env = TensorVecNormalize(TensorCartPole(4)) if normalized else TensorCartPole(4)
    assert spec_of(env) is None
    model = PPO("MlpPolicy", env, **SMALL).learn(128)
    with pytest.raises(HubUserError, match="no environment that is registered in Gymnasium: pass env_id"):
        push_to_hub(model, "me/tensors", dry_run=tmp_path / "no", **ONCE)
    folder = Path(push_to_hub(model, "me/tensors", "CartPole-v1", dry_run=tmp_path / "dry", **ONCE))
    assert 'make_vec_env("CartPole-v1", n_envs=1, seed=0)' in (folder / "README.md").read_text()
    assert (folder / "vec_normalize.npz").exists() == normalized
    course: dict[str, Any] = {"model_name": "m", "model_architecture": "PPO", "env_id": "CartPole-v1", "repo_id": "me/tensors"}
    package_to_hub(model, eval_env=env, dry_run=tmp_path / "course", **course, **ONCE)
    assert (tmp_path / "course" / "README.md").is_file()


def drawn() -> tuple[Any, ...]:
    return random.random(), np.random.random(), th.rand(1).item()


def test_publishing_leaves_the_random_generators_where_they_were(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    numbers = []
    for publish in (False, True):
        random.seed(5)
        np.random.seed(5)
        th.manual_seed(5)
        if publish:
            push_to_hub(model, "me/x", dry_run=tmp_path / "dry", deterministic=False, n_eval_episodes=2, video_length=3)
        numbers.append(drawn())
    assert numbers[0] == numbers[1]
    with pytest.raises(RuntimeError, match="does not run in Pendulum-v1"):
        push_to_hub(model, "me/x", "Pendulum-v1", dry_run=tmp_path / "fails", **ONCE)
    after = drawn()
    random.seed(5)
    np.random.seed(5)
    th.manual_seed(5)
    drawn()
    assert drawn() == after


STACKED = """
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from sb3_policyopt import PPO
from sb3_policyopt.hub import load_from_hub, push_to_hub

def env(n_envs=1):
    return make_vec_env("CartPole-v1", n_envs, seed=3)

trained = VecFrameStack(VecNormalize(env()), 3)
model = PPO("MlpPolicy", trained, n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=1).learn(64)
push_to_hub(model, "me/stacked", n_eval_episodes=2, video_length=0)
trained.venv.training = trained.venv.norm_reward = False
observations = []
for given in (trained.venv.venv, env(), VecFrameStack(env(), 3)):
    if given is trained.venv.venv:
        agent, one = model, trained
    else:
        agent, statistics = load_from_hub("me/stacked", env=given, device="cpu")
        one = agent.get_env()
        assert type(one) is VecFrameStack and one.venv is statistics and statistics.venv.observation_space.shape == (4,)
        assert agent.get_vec_normalize_env() is statistics and not statistics.training
    one.seed(4)
    observations.append([one.reset()] + [one.step(np.array([step % 2]))[0] for step in range(5)])
np.testing.assert_allclose(observations[1], observations[0])
np.testing.assert_allclose(observations[2], observations[0])
agent.learn(64, reset_num_timesteps=False)
assert agent.num_timesteps == 128
try:
    load_from_hub("me/stacked", env=make_vec_env("Pendulum-v1"), device="cpu")
except ValueError as error:
    assert "env has the observations" in str(error) and "without VecNormalize and VecFrameStack" in str(error), error
else:
    raise AssertionError("another environment was taken")
for given in (VecNormalize(env()), VecFrameStack(VecNormalize(env()), 3), VecNormalize(VecFrameStack(env(), 3))):
    try:
        load_from_hub("me/stacked", env=given, device="cpu")
    except ValueError as error:
        assert "env has a VecNormalize, and the agent brings its own" in str(error), error
    else:
        raise AssertionError("observations are normalised twice")
"""


def test_an_agent_with_normalisation_and_frame_stack_is_attached_to_its_environment(tmp_path: Path) -> None:
    with Hub() as hub:
        client = Client(hub.url, tmp_path)
        result = client.python("-c", STACKED)
        client.close()
    assert result.code == 0, result.err


class Picture(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(0, 255, (36, 40, 1), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: "int | None" = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.mark.parametrize("make", [lambda env: env, lambda env: VecFrameStack(env, 2)], ids=["plain", "stacked"])
def test_pictures_are_transposed_around_the_frame_stack(make: Callable[[VecEnv], VecEnv], tmp_path: Path) -> None:
    statistics = VecNormalize(DummyVecEnv([Picture]), norm_obs=False)
    model = PPO("CnnPolicy", VecFrameStack(statistics, 2), **SMALL)
    assert model.observation_space.shape == (2, 36, 40)
    save_statistics(statistics, tmp_path / "statistics.npz")
    loaded = load_statistics(tmp_path / "statistics.npz")
    env = attached(loaded, make(DummyVecEnv([Picture])), model.observation_space)
    assert env.observation_space.shape == (36, 40, 2) and isinstance(env, VecFrameStack) and env.venv is loaded
    model.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent", env=env, device="cpu")
    assert isinstance(again.get_env(), VecTransposeImage)

"""``package_to_hub``, and ``load_from_hub`` with ``filename=``, as the Hugging Face course calls them."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.wrappers import ClipAction, RescaleAction, TransformReward
from hub_client import Client
from loopback import Hub
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_policyopt import PPO
from sb3_policyopt.errors import HubError
from sb3_policyopt.hub import load_from_hub, package_to_hub, push_to_hub
from sb3_policyopt.hub.load import download_run

COURSE = """
import gymnasium as gym
import numpy as np
from pathlib import Path
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from sb3_policyopt import PPO, TRPO
from sb3_policyopt.errors import HubError
from sb3_policyopt.hub import load_from_hub, package_to_hub
from sb3_policyopt.recording import RunRecorder

SMALL = dict(n_steps=32, batch_size=32, device="cpu", seed=1)

# As the course writes it, with another environment; the model's name is the reader's own.
env_id = "CartPole-v1"
Path("logs").mkdir()
model = PPO("MlpPolicy", make_vec_env(env_id, 2, seed=3), tensorboard_log="board", **SMALL)
model.learn(128, callback=RunRecorder("logs"))
eval_env = DummyVecEnv([lambda: Monitor(gym.make(env_id, render_mode="rgb_array"))])
Path("board").rename("logs/board")
address = package_to_hub(
    model=model,
    model_name="my-cartpole",
    model_architecture="PPO",
    env_id=env_id,
    eval_env=eval_env,
    repo_id="me/ppo-CartPole-v1",
    commit_message="Upload PPO CartPole-v1 trained agent",
    n_eval_episodes=2,
    video_length=20,
    logs="logs",
    use_auth_token=True,
)
print(address)
for checkpoint in (load_from_hub(repo_id="me/ppo-CartPole-v1", filename="my-cartpole.zip"),
                   load_from_hub("me/ppo-CartPole-v1", "my-cartpole.zip")):
    loaded = PPO.load(checkpoint, safe=True, device="cpu")
    for ours, theirs in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True):
        np.testing.assert_array_equal(ours.detach(), theirs.detach())
loaded, statistics = load_from_hub("me/ppo-CartPole-v1", device="cpu")
assert loaded.num_timesteps == 128 and statistics is None
again, _ = load_from_hub("me/ppo-CartPole-v1", zip_name="my-cartpole.zip", device="cpu")
assert again.num_timesteps == 128
try:
    load_from_hub(repo_id="me/ppo-CartPole-v1", filename="other.zip")
except HubError as error:
    assert "has no file 'other.zip'" in str(error)
else:
    raise AssertionError("a file that is not there")

# A VecNormalize of the evaluation: its statistics are published, and it stays as it was.
training = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=3, env_kwargs={"g": 5.0}))
model = TRPO("MlpPolicy", training, **SMALL).learn(64)
training.save("statistics.pkl")
eval_env = VecNormalize.load("statistics.pkl", make_vec_env("Pendulum-v1", 1, env_kwargs={"g": 5.0, "max_episode_steps": 7}))
common = dict(model=model, model_name="trpo-Pendulum-v1.zip", model_architecture="TRPO", env_id="Pendulum-v1",
              n_eval_episodes=2, video_length=0)
package_to_hub(eval_env=eval_env, repo_id="me/normalized", **common)
assert eval_env.training and eval_env.norm_reward
loaded, statistics = load_from_hub("me/normalized", device="cpu")
raw = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
np.testing.assert_array_equal(statistics.normalize_obs(raw), training.normalize_obs(raw))
# Without one, those of the training.
folder = package_to_hub(eval_env=gym.make("Pendulum-v1", g=5.0), repo_id="me/dry", dry_run="dry", **common)
assert (Path(folder) / "vec_normalize.npz").is_file() and "norm_obs: true" in Path(folder, "config.yml").read_text()
"""


@pytest.mark.slow
def test_the_call_of_the_course(tmp_path: Path) -> None:
    with Hub() as hub:
        client = Client(hub.url, tmp_path)
        result = client.python("-c", COURSE)
        assert result.code == 0, result.err
        assert f"{hub.url}/me/ppo-CartPole-v1/commit/" in result.out
        assert set(hub.repos) == {"me/ppo-CartPole-v1", "me/normalized"}
        repo = hub.repos["me/ppo-CartPole-v1"]
        assert repo.messages[1:] == ["Upload PPO CartPole-v1 trained agent"]
        files = repo.files()
        assert {"my-cartpole.zip", "replay.mp4", "training.png", "README.md", "results.json"} <= set(files)
        card = files["README.md"].decode()
        assert "load_from_hub --algo" not in card  # rl-zoo3 would look for ppo-CartPole-v1.zip
        score = json.loads(files["results.json"])
        assert f"{score['mean_reward']:.2f} +/- {score['std_reward']:.2f}" in card
        # TensorBoard's files without the name of the machine that they have after the time.
        (events,) = [name for name in files if name.startswith("logs/")]
        assert events.startswith("logs/board/PPO_1/events.out.tfevents.") and events.rpartition(".")[2].isdigit()
        # The episodes end after seven steps, as in the environment that was given.
        assert json.loads(hub.repos["me/normalized"].files()["results.json"])["lengths"] == [7, 7]
        # The code for stock SB3 runs as it stands, and prints the score.
        for code in card.split("```python\n")[1:]:
            printed = client.python("-c", code.split("```")[0])
            assert f"mean_reward: {score['mean_reward']:.2f} +/- {score['std_reward']:.2f}" in printed.out, printed.err
        client.close()


@pytest.fixture(scope="module")
def model() -> Any:
    return PPO("MlpPolicy", make_vec_env("Pendulum-v1", 1), n_steps=8, batch_size=8, device="cpu")


def package(model: Any, folder: Path, **changes: Any) -> str | None:
    arguments: dict[str, Any] = {
        "model": model,
        "model_name": "ppo-Pendulum-v1",
        "model_architecture": "PPO",
        "env_id": "Pendulum-v1",
        "eval_env": Monitor(gym.make("Pendulum-v1")),
        "repo_id": "me/ppo-Pendulum-v1",
        "n_eval_episodes": 1,
        "video_length": 0,
        "dry_run": folder / "dry",
    }
    return package_to_hub(**arguments | changes)


def test_wrappers_with_known_arguments_are_made_again(model: Any, tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    folder = package(model, tmp_path, eval_env=DummyVecEnv([lambda: Monitor(ClipAction(env))]))
    card = (tmp_path / "dry" / "README.md").read_text()
    assert folder == str(tmp_path / "dry")
    assert "wrapper_class=lambda env: ClipAction(env)" in card and "env_kwargs={'max_episode_steps': 5}" in card
    assert "sb3-policyopt load_from_hub --algo ppo" in card  # the model has the zoo's name


def test_push_to_hub_makes_the_environment_of_the_model_again(tmp_path: Path) -> None:
    """Wrappers, what VecNormalize has beside its defaults, and arguments that are tuples."""
    rescaled = RescaleAction(gym.make("Pendulum-v1"), np.float64(-1), np.float64(1))
    env = VecNormalize(DummyVecEnv([lambda: rescaled]), clip_obs=5.0, gamma=0.9)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu", log_std_bounds=(-1.0, 0.5))
    folder = Path(push_to_hub(model, "me/rescaled", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry"))
    config = yaml.safe_load((folder / "config.yml").read_text())
    if isinstance(config, list):  # rl-zoo3's form, pairs of name and value
        config = dict(config)
    assert config["env_wrapper"] == [
        {"gymnasium.wrappers.transform_action.RescaleAction": {"min_action": -1.0, "max_action": 1.0}}
    ]
    assert config["log_std_bounds"] == [-1.0, 0.5]
    assert config["normalize"] == {"norm_obs": True, "norm_reward": True, "clip_obs": 5.0, "gamma": 0.9}
    assert "RescaleAction(env, min_action=-1.0, max_action=1.0)" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1"), 2)),
            "VecFrameStack(VecNormalize(env), n)",
        ),
        (lambda: Halved(make_vec_env("Pendulum-v1")), "the wrapper Halved"),
    ],
    ids=["order", "unknown"],
)
def test_push_to_hub_refuses_what_it_cannot_make_again(make: Any, sentence: str, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", make(), n_steps=32, batch_size=32, device="cpu")
    with pytest.raises(ValueError) as caught:
        push_to_hub(model, "me/wrapped", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry")
    assert sentence in str(caught.value)
    assert not (tmp_path / "dry").exists()


def test_a_log_folder_with_runs_is_not_replaced(tmp_path: Path) -> None:
    run = tmp_path / "ppo" / "CartPole-v1_1"
    run.mkdir(parents=True)
    with pytest.raises(HubError, match=r"holds the runs CartPole-v1_1, which --force would delete"):
        download_run("me/ppo-CartPole-v1", "ppo", "CartPole-v1", tmp_path, exp_id=-1, force=True)
    assert run.is_dir()


class Halved(VecEnvWrapper):
    def reset(self) -> Any:
        return np.asarray(self.venv.reset()) / 2

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return np.asarray(observations) / 2, *rest


def mistakes() -> dict[str, tuple[Any, ...]]:
    pendulum = gym.make("Pendulum-v1")
    return {
        "architecture": ({"model_architecture": "TRPO"}, "model_architecture must be 'PPO'"),
        "name": ({"model_name": "folder/model"}, "model_name must be the name of a file"),
        "no name": ({"model_name": ""}, "model_name must be the name of a file"),
        "episodes": ({"n_eval_episodes": 0}, "n_eval_episodes must be at least 1, not 0"),
        "video": ({"video_length": -1}, "video_length must be at least 0"),
        "logs": ({"logs": "nowhere"}, "logs must be a folder, and 'nowhere' is none"),
        "no environment": ({"eval_env": "Pendulum-v1"}, "eval_env must be an environment of Gymnasium or a VecEnv, not str"),
        "another environment": ({"env_id": "CartPole-v1"}, "eval_env is Pendulum-v1, and env_id is CartPole-v1"),
        "a function": ({"eval_env": TransformReward(pendulum, lambda r: r)}, "the wrapper TransformReward"),
        "vectorised": (
            {"eval_env": Halved(make_vec_env("Pendulum-v1"))},
            "the wrapper Halved",
        ),
    }


@pytest.mark.parametrize("case", mistakes())
def test_mistakes_are_one_sentence(case: str, model: Any, tmp_path: Path) -> None:
    changes, sentence = mistakes()[case]
    with pytest.raises(ValueError) as caught:
        package(model, tmp_path, **changes)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("wrong", [{"n_eval_episodes": 0}, {"video_length": -3}, {"seed": -1}])
def test_numbers_out_of_range_are_named_by_push_to_hub(wrong: dict[str, int], model: Any, tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"n_eval_episodes": 1, "video_length": 0} | wrong
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        push_to_hub(model, "me/x", dry_run=tmp_path / "dry", **numbers)
    assert not (tmp_path / "dry").exists()


def test_an_unused_argument_is_named_and_a_bad_repository_refused(model: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="local_repo_path is not used"), pytest.raises(HubError, match="name/repository"):
        package(model, tmp_path, repo_id="me", local_repo_path="hub")


@pytest.mark.parametrize("option", [{"device": "cpu"}, {"safe": False}, {"zip_name": "x.zip"}, {"custom_objects": {}}])
def test_a_download_takes_no_argument_of_the_loading(option: dict[str, Any]) -> None:
    for call in (lambda: load_from_hub("me/x", filename="x.zip", **option), lambda: load_from_hub("me/x", "x.zip", **option)):
        with pytest.raises(ValueError, match="pass zip_name="):
            call()

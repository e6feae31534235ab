"""An agent with VecNormalize is loaded as an evaluation needs it, and trained further as its card says."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hub_client import Client
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_policyopt import PPO
from sb3_policyopt.evaluation import evaluate_policy
from sb3_policyopt.hub import push_to_hub
from sb3_policyopt.hub.normalization import freeze, load_statistics

SCRIPT = """
import re
import numpy as np
from huggingface_hub import hf_hub_download
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from sb3_policyopt import PPO
from sb3_policyopt.hub import load_from_hub, push_to_hub

class Rewards(BaseCallback):
    def _on_training_start(self):
        self.seen = []

    def _on_step(self):
        self.seen.extend(self.locals["rewards"])
        return True

def env(n_envs):
    return make_vec_env("Pendulum-v1", n_envs, seed=1)

def publish(name, stack, **arguments):
    normalized = VecNormalize(env(4), **arguments)
    model = PPO("MlpPolicy", stack(normalized), n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(256)
    push_to_hub(model, name, n_eval_episodes=1, video_length=0)

def further(name):
    card = open(hf_hub_download(name, "README.md")).read().partition("### Train it further")[2].partition("\\n## ")[0]
    *code, learn = [part for part in re.findall("`([^`]*)`", card) if " = " in part or "(" in part]
    names = {"load_from_hub": load_from_hub, "env": env(2), "rewards": Rewards()}
    exec("\\n".join(code), names)
    count = names["vec_normalize"].obs_rms.count
    exec(learn.replace("100_000", "128, callback=rewards"), names)
    assert names["vec_normalize"].obs_rms.count > count + 127 and names["model"].num_timesteps == 256 + 128
    assert isinstance(names["model"].get_env(), VecFrameStack) == (name == "me/stacked")
    return np.abs(names["rewards"].seen).mean()

publish("me/normalized", lambda env: env)
publish("me/stacked", lambda env: VecFrameStack(env, 2))
publish("me/raw", lambda env: env, norm_reward=False)
print(*(further(name) for name in ("me/normalized", "me/stacked", "me/raw")))
"""


def test_the_code_of_the_card_trains_on_the_rewards_of_the_training(client: Client) -> None:
    done = client.python("-c", SCRIPT)
    assert done.code == 0, done.err
    normalized, stacked, raw = map(float, done.out.splitlines()[-1].split())
    assert normalized < 1 and stacked < 1 and raw > 4  # an untrained agent gets about -6 at a step of Pendulum-v1


def test_a_card_without_statistics_does_not_name_them(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu")
    folder = push_to_hub(model, "me/x", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry")
    assert "norm_reward" not in (Path(folder) / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a ``Monitor``")
def test_an_evaluation_without_monitor_reports_the_rewards_of_the_environment(tmp_path: Path) -> None:
    """Which is why what is loaded does not normalise rewards, whatever the training did."""
    model = PPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 1)), n_steps=64, batch_size=64, device="cpu").learn(64)
    folder = Path(push_to_hub(model, "me/x", n_eval_episodes=1, video_length=0, dry_run=tmp_path / "dry"))
    statistics = freeze(load_statistics(str(folder / "vec_normalize.npz")))
    statistics.set_venv(DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=20)]))
    statistics.seed(0)
    rewards: list[float] = []

    def note(local: dict[str, object], _: object) -> None:
        rewards.extend(statistics.get_original_reward())

    mean, _ = evaluate_policy(model, statistics, n_eval_episodes=1, callback=note)
    assert mean == pytest.approx(np.sum(rewards)) and mean < -1

"""Videos without a display and without ffmpeg on the path."""

import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_policyopt import PPO
from sb3_policyopt.hub.evaluation import Protocol
from sb3_policyopt.hub.video import record_video
from sb3_policyopt.process import render_without_display


class Blank(gym.Env):
    """Odd-sized frames, each a shade brighter than the one before, or an error."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = "rgb_array", broken: bool = False) -> None:
        self.render_mode, self.broken, self.time = render_mode, broken, 0
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        if self.broken and self.time == 3:
            raise RuntimeError("the display\nis on fire")
        return np.full((65, 97, 3), 20 * self.time, dtype=np.uint8)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)


def agent(env: Any) -> Any:
    return PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")


def test_frames_arrive_in_order_in_a_format_that_browsers_play(tmp_path: Path) -> None:
    env, path = DummyVecEnv([Blank]), tmp_path / "replay.mp4"
    assert record_video(agent(env), env, path, n_steps=9, deterministic=True) is None
    about = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr
    assert "h264" in about and "yuv420p" in about and "96x64" in about and "10 fps" in about
    frames = imageio_ffmpeg.read_frames(str(path))
    assert next(frames)["size"] == (96, 64)
    brightness = [np.frombuffer(frame, np.uint8).mean() for frame in frames]
    # The first frame and one for each of the 9 steps; lossy coding keeps a flat grey to a few shades.
    np.testing.assert_allclose(brightness, 20 * np.arange(10), atol=6)


def test_failure_is_a_reason_and_leaves_no_file(tmp_path: Path) -> None:
    env, path = DummyVecEnv([lambda: Blank(broken=True)]), tmp_path / "replay.mp4"
    assert record_video(agent(env), env, path, 9, True) == "RuntimeError: the display is on fire"
    assert not path.exists()
    env = DummyVecEnv([lambda: Blank(render_mode=None)])
    assert record_video(agent(env), env, path, 9, True) is not None
    assert not path.exists()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_classic_control(env_id: str, tmp_path: Path) -> None:
    env = Protocol(env_id).make_env()
    assert record_video(agent(env), env, tmp_path / "replay.mp4", 5, True) is None
    assert (tmp_path / "replay.mp4").stat().st_size > 1000


def test_a_choice_of_the_renderer_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    render_without_display()
    import os

    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    render_without_display()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    render_without_display()
    assert "MUJOCO_GL" not in os.environ

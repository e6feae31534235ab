"""A video of an agent, made without a display and without an installed ffmpeg."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.evaluation import able_to_act

Frames = Generator[np.ndarray, None, None]


def record_video(model: BaseAlgorithm, env: VecEnv, path: Path, n_steps: int, deterministic: bool) -> "str | None":
    """
    Film an agent as an H.264 video that browsers play.

    :param model: the agent
    :param env: one environment with ``render_mode="rgb_array"``, wrapped as for evaluation
    :param path: the ``.mp4`` to write
    :param n_steps: length in environment steps
    :param deterministic: whether actions are the mode of the policy, or sampled
    :return: None, or why there is no video, in one line
    """
    try:
        _encode(_frames(model, env, n_steps, deterministic), path, _frames_per_second(env))
    except Exception as error:  # a renderer may raise any error; the agent is published without a video
        path.unlink(missing_ok=True)
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _frames(model: BaseAlgorithm, env: VecEnv, n_steps: int, deterministic: bool) -> Frames:
    agent, env = able_to_act(model, env)
    observation, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    yield _frame(env)
    for _ in range(n_steps):
        action, state = agent.predict(observation, state=state, episode_start=starts, deterministic=deterministic)
        observation, _, starts, _ = env.step(action)
        yield _frame(env)


def _frame(env: VecEnv) -> np.ndarray:
    frame = env.render(mode="rgb_array")
    if frame is None:
        raise RuntimeError("the environment renders no image")
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # yuv420p needs even side lengths


def _frames_per_second(env: VecEnv) -> float:
    metadata = env.get_attr("metadata")[0] or {}
    return float(metadata.get("render_fps") or 30)


def _encode(frames: Frames, path: Path, frames_per_second: float) -> None:
    import imageio_ffmpeg

    first = next(frames)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=frames_per_second,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        output_params=["-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        writer.send(np.ascontiguousarray(first))
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()

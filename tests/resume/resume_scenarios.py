"""A small training script as a function, what it ends with, and the processes that run it and get killed."""

import hashlib
import multiprocessing
import pickle
import random
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

import sb3_policyopt.envs  # noqa: F401  registers MaskedRoute-v0
from sb3_policyopt import PPO, TRPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback

ALGORITHMS = {"PPO": PPO, "TRPO": TRPO}
N_ENVS, N_STEPS = 2, 32
ROLLOUT = N_ENVS * N_STEPS
FASTEST = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class Crash(Exception):
    pass


class CrashAt(BaseCallback):
    """Raises at a timestep, in the middle of a rollout: for the model this is as sudden as a kill."""

    def __init__(self, timestep: float) -> None:
        super().__init__()
        self.timestep = timestep

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.timestep:
            raise Crash
        return True


class NoisyReward(gym.Wrapper):
    """Draws from all global generators, as careless environments and callbacks do."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        noise = random.random() + np.random.random() + th.rand(1).item()
        return observation, float(reward) + noise, terminated, truncated, info


def train(
    folder: str | Path,
    *,
    algorithm: str = "PPO",
    policy: str = "MlpPolicy",
    env: str = "Pendulum-v1",
    vec_env: type[VecEnv] = DummyVecEnv,
    noisy: bool = False,
    frame_stack: bool = False,
    evaluate: bool = False,
    crash_at: float = float("inf"),
    total: int = 8 * ROLLOUT,
    save_freq: int = 2 * ROLLOUT,
    **options: Any,
) -> Any:
    """The script. What it does before ``learn`` is the same in every life."""
    folder = Path(folder)
    th.set_num_threads(1)
    random.seed(0)
    wrappers = {"wrapper_class": NoisyReward} if noisy else {}
    how = {} if vec_env is DummyVecEnv else {"start_method": FASTEST}
    venv = make_vec_env(env, N_ENVS, vec_env_cls=vec_env, vec_env_kwargs=how, **wrappers)  # type: ignore[arg-type]
    venv = VecNormalize(venv, clip_obs=5.0)
    if frame_stack:
        venv = VecFrameStack(venv, 2)
    options = {"n_steps": N_STEPS, "batch_size": 16, "learning_rate": "lin_0.003", "seed": 0, **options}
    model = ALGORITHMS[algorithm](policy, venv, stats_window_size=5, **options)
    model.set_logger(configure(str(folder / "log"), ["csv", "json"]))
    callbacks: list[BaseCallback] = [ResumableCheckpointCallback(folder / "ckpt", save_freq=save_freq), CrashAt(crash_at)]
    if evaluate:
        eval_env = VecNormalize(make_vec_env(env, 1), training=False)
        eval_env.seed(3)
        callbacks.append(EvalCallback(eval_env, eval_freq=50, n_eval_episodes=2, log_path=str(folder), verbose=0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.learn(total, callback=callbacks)
    finally:
        venv.close()
        model.logger.close()
    fingerprint(model)
    return model


def fingerprint(model: Any) -> dict[str, str]:
    """
    Everything on which the rest of a training depends, as hashes by name, so that a difference has a name.

    It is that of the first call, right after the training, as the generators are global.
    """
    if hasattr(model, "fingerprint"):
        return model.fingerprint
    parts: dict[str, Any] = {f"policy {name}": value for name, value in model.policy.state_dict().items()}
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        parts |= {f"optimizer {index} {name}": value for name, value in state.items()}
    parts["optimizer groups"] = repr(model.policy.optimizer.param_groups[0]["lr"])
    parts["generators"] = (th.get_rng_state().numpy().tobytes(), pickle.dumps((np.random.get_state(), random.getstate())))
    parts["counts"] = (model.num_timesteps, model._n_updates, model._current_progress_remaining)
    parts["last observations"] = (model._last_obs, model._last_original_obs, model._last_episode_starts)
    parts["states"] = [part for states in model._last_lstm_states or () for part in states]
    parts["episodes"] = [(info["r"], info["l"]) for info in model.ep_info_buffer]
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        statistics = (normalize.obs_rms, normalize.ret_rms)
        parts["VecNormalize"] = [(rms.mean, rms.var, rms.count) for rms in statistics] + [normalize.returns]
    model.fingerprint = {name: hashlib.sha256(_bytes(part)).hexdigest()[:12] for name, part in parts.items()}
    return model.fingerprint


def _bytes(part: Any) -> bytes:
    if isinstance(part, (list, tuple)):
        return b",".join(map(_bytes, part))
    if isinstance(part, th.Tensor):
        part = part.detach().cpu().numpy()
    return part.tobytes() if isinstance(part, np.ndarray) else part if isinstance(part, bytes) else repr(part).encode()


def progress(folder: Path) -> list[dict[str, str]]:
    """The rows of progress.csv without the columns that measure time."""
    import csv

    with (folder / "log" / "progress.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in ("time/fps", "time/time_elapsed")}
            for row in csv.DictReader(file)
        ]


# ---------------------------------------------------------------------- processes

CONTEXT = multiprocessing.get_context("forkserver") if "forkserver" in multiprocessing.get_all_start_methods() else None


def _life(folder: str, started: Any, options: dict[str, Any]) -> None:
    started.set()
    model = train(folder, **options)
    content = pickle.dumps((fingerprint(model), model.num_timesteps))
    partial = Path(folder) / "result.partial"
    partial.write_bytes(content)
    partial.replace(Path(folder) / "result")


def live(folder: Path, options: dict[str, Any], killed_after: float | None = None) -> bool:
    """
    Run the script in a process of its own, and kill it there and then.

    :return: whether it was killed
    """
    assert CONTEXT is not None
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=_life, args=(str(folder), started, options))
    process.start()
    assert started.wait(60)
    process.join(killed_after)
    killed = process.exitcode is None
    process.kill()
    process.join()
    assert killed or process.exitcode == 0
    return killed


def result(folder: Path) -> Any:
    return pickle.loads((folder / "result").read_bytes())


def lives_until_killed(folder: Path, options: dict[str, Any], kills: int, seed: int) -> tuple[int, int]:
    """
    Kill trainings at random moments until enough were killed; each is restarted until it is done.

    :return: kills, and complete trainings whose end equals that of the undisturbed one
    """
    moments = random.Random(seed)
    start = time.perf_counter()
    live(folder / "undisturbed", options)
    duration = time.perf_counter() - start
    expected = result(folder / "undisturbed")
    n_killed = n_equal = 0
    while n_killed < kills:
        run = folder / f"run_{n_equal}"
        while live(run, options, killed_after=moments.uniform(0, duration) if n_killed < kills else None):
            n_killed += 1
        assert result(run) == expected
        assert progress(run) == progress(folder / "undisturbed")
        n_equal += 1
    return n_killed, n_equal

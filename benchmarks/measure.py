"""One measurement in a process of its own: ``python -m benchmarks.measure '<Settings as JSON>' SECONDS`` prints JSON."""

import importlib
import json
import math
import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from benchmarks import environments  # noqa: F401  (registers them)
from benchmarks.cases import Settings

WARM_UP = 2  # iterations left out of the steady speed: compilation, first touches of memory
MOST_ITERATIONS = 400


class Iterations(BaseCallback):
    """Notes when each iteration begins, and when the last one ends."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def _on_rollout_start(self) -> None:
        self.times.append(time.perf_counter())

    def _on_training_end(self) -> None:
        self.times.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def make_env(settings: Settings) -> VecEnv:
    """The environments of a case, all with episode statistics."""
    atari = "NoFrameskip" in settings.env_id
    if settings.vec_env == "envpool":
        from sb3_policyopt.envs import envpool_vec_env
        from sb3_policyopt.envs.envpool_zoo import ATARI_WRAPPER

        words: dict[str, Any] = {"env_wrapper": ATARI_WRAPPER, "frame_stack": 4} if atari else {}
        env: VecEnv = envpool_vec_env(settings.env_id, settings.n_envs, seed=0, **words)
    else:
        vec_env: dict[str, Any] = {"vec_env_cls": DummyVecEnv}
        if settings.vec_env == "subproc":
            # SB3's default start method would import torch in every one of the processes.
            start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
            vec_env = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": start_method}}
        if atari:
            importlib.import_module("ale_py")  # registers its environments
            env = VecFrameStack(make_atari_env(settings.env_id, settings.n_envs, seed=0, **vec_env), 4)
        else:
            env = make_vec_env(settings.env_id, settings.n_envs, seed=0, **vec_env)
    return VecNormalize(env) if settings.normalize else env


def time_method(owner: type, name: str, seconds: dict[str, float], label: str, clock: Callable[[], float]) -> None:
    """
    Replace a method by one that adds up the time spent in it.

    The class is changed and not the object, so that code which looks for overridden methods finds none.

    :param owner: the class
    :param name: of the method
    :param seconds: the sums
    :param label: which of them
    :param clock: gives the time in seconds
    """
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return method(*args, **kwargs)
        finally:
            seconds[label] += clock() - start

    setattr(owner, name, timed)


def time_split(model: Any, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """
    Where the time goes.

    :param model: that has already learned for a while
    :param steps: number of steps to run
    :param clock: gives the time in seconds
    :return: microseconds per step for environment, policy (observation to action, value and log-probability), buffer (storing,
        advantages, and all else of the rollout) and update
    """
    seconds: dict[str, float] = defaultdict(float)
    time_method(type(model.env), "step", seconds, "environment", clock)
    if hasattr(model, "prepare_engine"):
        time_method(type(model.prepare_engine()), "act", seconds, "policy", clock)
    elif hasattr(model.policy, "predict_all"):
        time_method(type(model.policy), "predict_all", seconds, "policy", clock)
    else:
        time_method(type(model.policy), "forward", seconds, "policy", clock)
    time_method(type(model), "collect_rollouts", seconds, "rollout", clock)
    time_method(type(model), "train", seconds, "update", clock)
    model.learn(steps, reset_num_timesteps=False)
    rollout = seconds.pop("rollout")
    seconds["buffer"] = rollout - seconds["environment"] - seconds["policy"]
    return {label: 1e6 * value / steps for label, value in seconds.items()}


def build(settings: Settings) -> Any:
    """The algorithm on its environments."""
    module, name = settings.model_class.split(":")
    model_class = getattr(importlib.import_module(module), name)
    device = {} if module == "sbx" else {"device": "cpu"}
    return model_class(
        settings.policy, make_env(settings), n_steps=settings.n_steps, seed=0, **device, **settings.model_kwargs
    )


def measure(settings: Settings, seconds: float) -> dict[str, Any]:
    """
    :param settings: what to run
    :param seconds: how long to run at least after the warm-up; 0 for a single iteration
    :return: the measured values, see the keys
    """
    importlib.import_module(settings.model_class.split(":")[0])
    memory_before = peak_memory()
    steps = settings.n_envs * settings.n_steps
    start = time.perf_counter()
    model = build(settings)
    model.learn(steps)
    first_update = time.perf_counter() - start
    if seconds == 0:
        speed, cpu_speed, durations, split = steps / first_update, steps / time.process_time(), [first_update], {}
    else:
        warm = Iterations()
        model.learn(steps * WARM_UP, reset_num_timesteps=False, callback=warm)
        n_iterations = min(max(math.ceil(seconds / (warm.times[-1] - warm.times[-2])), 3), MOST_ITERATIONS)
        steady = Iterations()
        cpu_start = time.process_time()
        model.learn(steps * n_iterations, reset_num_timesteps=False, callback=steady)
        durations = [end - begin for begin, end in zip(steady.times[:-1], steady.times[1:], strict=True)]
        speed = steps * n_iterations / sum(durations)
        cpu_speed = steps * n_iterations / (time.process_time() - cpu_start)
        # On a core of its own the processor's time is the time; it does not count what other processes take.
        clock = time.perf_counter if settings.all_cores else time.process_time
        split = time_split(model, steps * max(n_iterations // 2, 1), clock)
    memory = peak_memory()
    engine = getattr(model, "engine_in_use", None)
    model.env.close()
    return {
        "steps_per_second": speed,
        "steps_per_cpu_second": cpu_speed,
        "first_update_seconds": first_update,
        "iteration_seconds": durations,
        "microseconds_per_step": split,
        "peak_memory_mib": memory,
        "peak_memory_growth_mib": memory - memory_before,
        "engine": type(engine).__name__ if engine is not None else None,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Settings(**json.loads(sys.argv[1])), float(sys.argv[2]))))

"""
One contender in a process of its own, which waits for its turns: ``python -m benchmarks.measure '<Settings as JSON>'``.

It builds the algorithm, makes the first iteration and some to warm up, and then answers lines on its standard input with
lines of JSON on its standard output: ``run SECONDS`` trains for about that long, ``split SECONDS`` does so with clocks around
the parts, ``end`` ends. While it waits it takes no processor time.
"""

import importlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from benchmarks import environments
from benchmarks.cases import Settings
from sb3_policyopt.envs import SharedMemoryVecEnv

WARM_UP = 2
"""Iterations after the first one that are not measured: compilation, first touches of memory."""


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def make_env(settings: Settings) -> VecEnv:
    """The environments of a case, all with episode statistics."""
    atari = "NoFrameskip" in settings.env_id
    if "NoVel" in settings.env_id:
        importlib.import_module("rl_zoo3.import_envs")  # registers them
    if settings.vec_env == "envpool":
        from sb3_policyopt.envs import envpool_vec_env
        from sb3_policyopt.envs.envpool_zoo import ATARI_WRAPPER

        wrappers: dict[str, Any] = {"env_wrapper": ATARI_WRAPPER, "frame_stack": 4} if atari else {}
        env: VecEnv = envpool_vec_env(settings.env_id, settings.n_envs, seed=0, **wrappers)
    else:
        vec_env: dict[str, Any] = {"vec_env_cls": DummyVecEnv}
        if settings.vec_env != "dummy":
            # SB3's default start method would import torch in every one of the processes.
            words: dict[str, Any] = {"start_method": "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"}
            words |= {"trainer_steps": True} if settings.vec_env == "shared, trainer steps" else {}
            vec_env_cls = SubprocVecEnv if settings.vec_env == "subproc" else SharedMemoryVecEnv
            vec_env = {"vec_env_cls": vec_env_cls, "vec_env_kwargs": words}
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
    words = dict(settings.model_kwargs)
    if settings.small_cnn:
        words["policy_kwargs"] = {
            "features_extractor_class": environments.SmallCNN,
            "features_extractor_kwargs": {"channels": settings.small_cnn},
        }
    return model_class(settings.policy, make_env(settings), n_steps=settings.n_steps, seed=0, **device, **words)


class Contender:
    """
    An algorithm that trains when it is asked to.

    :param settings: what to run
    """

    def __init__(self, settings: Settings) -> None:
        importlib.import_module(settings.model_class.split(":")[0])
        self.settings = settings
        self.memory_before = peak_memory()
        self.steps = settings.n_envs * settings.n_steps
        start = time.perf_counter()
        self.model = build(settings)
        self.model.learn(self.steps)
        self.first_update = time.perf_counter() - start
        self.iteration = self.first_update

    def warm_up(self) -> None:
        """Some iterations, of which the last one tells how long one takes."""
        for _ in range(WARM_UP):
            start = time.perf_counter()
            self.model.learn(self.steps, reset_num_timesteps=False)
            self.iteration = time.perf_counter() - start

    def steps_in(self, seconds: float) -> int:
        """Environment steps of as many whole iterations as take about that long, at least one."""
        return self.steps * max(1, round(seconds / self.iteration))

    def run(self, seconds: float) -> dict[str, float]:
        """Train for about that long."""
        steps = self.steps_in(seconds)
        start, cpu_start = time.perf_counter(), time.process_time()
        self.model.learn(steps, reset_num_timesteps=False)
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        return {"steps_per_second": steps / elapsed, "steps_per_cpu_second": steps / cpu, "seconds": elapsed}

    def split(self, seconds: float) -> dict[str, float]:
        """Where the time goes, in microseconds per step."""
        # On a core of its own the processor's time is the time; it does not count what other processes take.
        clock = time.perf_counter if self.settings.all_cores else time.process_time
        return time_split(self.model, self.steps_in(seconds), clock)

    def end(self) -> dict[str, Any]:
        """What is known of the process as a whole."""
        memory = peak_memory()
        engine = getattr(self.model, "engine_in_use", None)
        self.model.env.close()
        return {
            "first_update_seconds": self.first_update,
            "peak_memory_mib": memory,
            "peak_memory_growth_mib": memory - self.memory_before,
            "engine": type(engine).__name__ if engine is not None else None,
        }


def main(settings: Settings) -> None:
    """Answer until told to end."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    contender = Contender(settings)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        command, *numbers = line.split()
        answers.write(json.dumps(getattr(contender, command)(*map(float, numbers))) + "\n")
        if command == "end":
            return


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))

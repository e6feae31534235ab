"""
A GPU: ``python -m benchmarks --gpu`` prints the rows of ``docs/gpu.md``.

Environment steps per second of whole iterations (rollout and update), medians, beside SB3, sb3-contrib and, where it is
installed, rsl_rl. The simulator is a linear system of 48 numbers on the device; SB3 and sb3-contrib get it through NumPy, as
Isaac Lab hands it to SB3. ``--device cpu --small`` tries the script without a GPU; its figures mean nothing.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import nn

import sb3_policyopt
from sb3_policyopt import graphs
from sb3_policyopt.envs.tensors import TensorStep, TensorVecEnv
from sb3_policyopt.models.closed_form_tensors import TensorClosedForm

ITERATIONS = 5


class LinearSystem(TensorVecEnv):
    """
    s' = tanh(s A) + a B / 10 + noise. Episodes end where a number exceeds 6, and after 200 steps.

    :param n: number of environments
    :param device: where
    :param observed: numbers of a state
    :param acted: numbers of an action
    """

    def __init__(self, n: int, device: str, observed: int = 48, acted: int = 12) -> None:
        box = spaces.Box(-np.inf, np.inf, (observed,), np.float32)
        super().__init__(n, box, spaces.Box(-1, 1, (acted,), np.float32), device)
        generator = th.Generator().manual_seed(0)
        self.a = (0.05 * th.randn(observed, observed, generator=generator) + 0.9 * th.eye(observed)).to(self.device)
        self.b = (0.3 * th.randn(acted, observed, generator=generator)).to(self.device)
        self.steps = th.randint(0, 200, (n,), device=self.device)
        self.state = th.randn(n, observed, device=self.device)

    def reset_tensors(self, seed: int | None = None) -> th.Tensor:
        """States as they are."""
        return self.state.clone()

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """See the class."""
        final = th.tanh(self.state @ self.a) + 0.1 * actions @ self.b + 0.05 * th.randn_like(self.state)
        rewards = -(final[:, :6] ** 2).mean(1)
        self.steps += 1
        truncated, terminated = self.steps >= 200, final.abs().amax(1) > 6
        done = truncated | terminated
        self.state = th.where(done[:, None], th.randn_like(final), final)
        self.steps = th.where(done, 0, self.steps)
        return TensorStep(self.state, rewards, terminated, truncated, {"final_obs": final})


class ThroughNumpy(VecEnvWrapper):
    """The same simulator as an algorithm sees it that takes arrays only."""

    def reset(self) -> Any:
        """The first observations."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """The step."""
        return self.venv.step_wait()


class Frames(VecEnv):
    """Frames of Atari's shape, made before."""

    def __init__(self, n: int) -> None:
        super().__init__(n, spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6))
        self.frames = np.random.default_rng(0).integers(0, 255, (64, n, 4, 84, 84), dtype=np.uint8)
        self.step_number = 0
        self.actions = np.zeros(n)

    def reset(self) -> Any:
        """The first observations."""
        return self.frames[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self.actions = actions

    def step_wait(self) -> Any:
        """The step."""
        self.step_number = (self.step_number + 1) % 64
        rewards = (self.actions == self.step_number % 6).astype(np.float32)
        return self.frames[self.step_number], rewards, np.zeros(self.num_envs, bool), [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """No attributes."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """No attributes."""

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """No methods."""
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No wrappers."""
        return [False] * self.num_envs


class Bench:
    """
    The rows.

    :param device: "cuda", or "cpu" to try the script
    :param small: fewer environments and narrower networks
    :param only: a part of the names of the rows that are wanted
    """

    def __init__(self, device: str, small: bool, only: str) -> None:
        self.device, self.only = device, only
        self.n, self.steps = (64, 8) if small else (4096, 24)
        net_arch = [32, 16, 8] if small else [512, 256, 128]
        self.wide = {"net_arch": net_arch, "activation_fn": nn.ELU}
        self.small_steps = 32 if small else 256
        self.rows: dict[str, float] = {}

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            th.cuda.synchronize()

    def row(self, name: str, unit: str, measure: Callable[[], float]) -> None:
        """
        Measure and print one row; what fails is printed, too.

        :param name: of the row
        :param unit: of its number
        :param measure: () ↦ the number
        """
        if self.only not in name:
            return
        try:
            self.rows[name] = measure()
            print(f"{name:58s} {self.rows[name]:14,.2f} {unit}", flush=True)
        except Exception as error:
            print(f"{name:58s} failed: {type(error).__name__}: {error}", flush=True)
        gc.collect()
        if self.device == "cuda":
            th.cuda.empty_cache()
            th.cuda.reset_peak_memory_stats()

    def speed(self, model: Any) -> float:
        """
        Environment steps per second.

        :param model: any on-policy algorithm
        :return: of the median iteration; the first two are left out
        """
        total, times = model.n_steps * model.n_envs, []
        collect = model.collect_rollouts

        def timed(*args: Any, **kwargs: Any) -> bool:
            self.wait()
            times.append(time.perf_counter())
            return bool(collect(*args, **kwargs))

        model.collect_rollouts = timed
        model.learn(total * (ITERATIONS + 2))
        self.wait()
        times.append(time.perf_counter())
        if isinstance(getattr(model, "engine_in_use", None), TensorClosedForm):
            print(f"    {model.engine_in_use.name}; {model.engine_in_use.recorder.reason() or 'no graphs'}")
        return total / median(np.diff(times)[2:])

    def many(self) -> None:
        """4,096 environments on the device, 24 steps, networks of 512, 256 and 128."""
        total = self.n * self.steps
        options = {
            "n_steps": self.steps,
            "batch_size": total // 4,
            "device": self.device,
            "policy_kwargs": self.wide,
            "seed": 0,
        }
        ppo, trpo = {**options, "n_epochs": 5}, {**options, "n_critic_updates": 5}
        name = f"{self.n:,} × {self.steps}"

        def tensors() -> TensorVecEnv:
            return LinearSystem(self.n, self.device)

        def arrays() -> VecEnv:
            return ThroughNumpy(tensors())

        ours, theirs = sb3_policyopt.PPO, stable_baselines3.PPO
        self.row(f"PPO {name}, tensors, ours", "steps/s", lambda: self.speed(ours("MlpPolicy", tensors(), **ppo)))
        self.row(f"PPO {name}, tensors, ours, TF32", "steps/s", lambda: self.with_tf32(ours("MlpPolicy", tensors(), **ppo)))
        self.row(f"PPO {name}, arrays, ours", "steps/s", lambda: self.speed(ours("MlpPolicy", arrays(), **ppo)))
        self.row(f"PPO {name}, arrays, SB3", "steps/s", lambda: self.speed(theirs("MlpPolicy", arrays(), **ppo)))
        our_trpo, their_trpo = sb3_policyopt.TRPO, sb3_contrib.TRPO
        self.row(f"TRPO {name}, tensors, ours", "steps/s", lambda: self.speed(our_trpo("MlpPolicy", tensors(), **trpo)))
        self.row(f"TRPO {name}, arrays, contrib", "steps/s", lambda: self.speed(their_trpo("MlpPolicy", arrays(), **trpo)))
        self.row(f"PPO {name}, rsl_rl", "steps/s", self.rsl_rl)
        for kind, wanted in (("graphs", True), ("no graphs", False)):
            self.row(f"PPO {name}, peak memory, {kind}", "MiB", lambda wanted=wanted: self.memory(ppo, wanted))  # type: ignore[misc]

    def with_tf32(self, model: Any) -> float:
        """As :meth:`speed`, with products of ten bits."""
        before = th.get_float32_matmul_precision()
        th.set_float32_matmul_precision("high")
        try:
            return self.speed(model)
        finally:
            th.set_float32_matmul_precision(before)

    def memory(self, options: dict[str, Any], wanted: bool) -> float:
        """Peak memory of the device in a training."""
        if self.device != "cuda":
            raise RuntimeError("there is no GPU")
        with without_graphs(not wanted):
            sb3_policyopt.PPO("MlpPolicy", LinearSystem(self.n, self.device), **options).learn(3 * self.n * self.steps)
        return th.cuda.max_memory_allocated() / 2**20

    def rsl_rl(self) -> float:
        """rsl_rl's PPO on the same simulator."""
        from rsl_rl.algorithms import PPO
        from rsl_rl.models import MLPModel
        from rsl_rl.storage import RolloutStorage
        from tensordict import TensorDict

        env = LinearSystem(self.n, self.device)
        seen = TensorDict({"policy": env.reset_tensors()}, batch_size=[self.n])
        groups, widths = {"actor": ["policy"], "critic": ["policy"]}, self.wide["net_arch"]
        gaussian = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution"}
        actor = MLPModel(seen, groups, "actor", 12, widths, "elu", False, gaussian).to(self.device)
        critic = MLPModel(seen, groups, "critic", 1, widths, "elu", False).to(self.device)
        storage = RolloutStorage("rl", self.n, self.steps, seen, [12], self.device)
        fixed = {"schedule": "fixed", "desired_kl": None, "device": self.device}
        algorithm = PPO(actor, critic, storage, num_learning_epochs=5, num_mini_batches=4, **fixed)
        times = []
        for _ in range(ITERATIONS + 2):
            self.wait()
            times.append(time.perf_counter())
            with th.inference_mode():
                for _ in range(self.steps):
                    actions = algorithm.act(seen)
                    observations, rewards, terminated, truncated, _ = env.step_tensors(actions.clamp(-1, 1))
                    seen = TensorDict({"policy": observations}, batch_size=[self.n])
                    limits = {"time_outs": (truncated & ~terminated).float()}
                    algorithm.process_env_step(seen, rewards, terminated | truncated, limits)
                algorithm.compute_returns(seen)
            algorithm.update()
        self.wait()
        times.append(time.perf_counter())
        return self.n * self.steps / median(np.diff(times)[2:])

    def images(self) -> None:
        """CnnPolicy, 8 × 128 frames of 84 × 84 × 4."""
        steps = self.small_steps // 2
        options = {"n_steps": steps, "batch_size": 2 * steps, "device": self.device, "seed": 0}
        for name, module in (("ours", sb3_policyopt), ("SB3", stable_baselines3)):
            model = lambda module=module: module.PPO("CnnPolicy", Frames(8), n_epochs=4, **options)  # type: ignore[misc]  # noqa: E731
            self.row(f"PPO CnnPolicy 8 × {steps}, {name}", "steps/s", lambda model=model: self.speed(model()))  # type: ignore[misc]
        for name, module in (("ours", sb3_policyopt), ("contrib", sb3_contrib)):
            model = lambda module=module: module.TRPO("CnnPolicy", Frames(8), n_critic_updates=4, **options)  # type: ignore[misc]  # noqa: E731
            self.row(f"TRPO CnnPolicy 8 × {steps}, {name}", "steps/s", lambda model=model: self.speed(model()))  # type: ignore[misc]

    def narrow(self) -> None:
        """MlpPolicy of 64 × 64 where the device was asked for, and what the automatic choice would take."""
        options = {"n_steps": self.small_steps, "seed": 0}

        def env() -> VecEnv:
            return ThroughNumpy(LinearSystem(8, "cpu", 17, 6))

        for device in dict.fromkeys((self.device, "cpu")):
            for algorithm, stock in (("PPO", stable_baselines3), ("TRPO", sb3_contrib)):
                for module in (sb3_policyopt, stock):
                    make = getattr(module, algorithm)
                    self.row(
                        f"{algorithm} 64×64, 8 × {self.small_steps}, {device}, {module.__name__}",
                        "steps/s",
                        lambda make=make, device=device: self.speed(make("MlpPolicy", env(), device=device, **options)),  # type: ignore[misc]
                    )

    def pieces(self) -> None:
        """Fisher-vector products, the time of recordings, and graphs against the same without."""
        self.row("F v, 64×64, 2,048 rows", "ms", self.fisher_vector_product)
        self.row("first iteration less a later one (recordings)", "s", self.recording_time)
        for algorithm in ("PPO", "TRPO"):
            self.row(
                f"{algorithm}, largest difference of a parameter, graphs or not",
                "· 1e-6",
                lambda algorithm=algorithm: 1e6 * self.difference(algorithm),  # type: ignore[misc]
            )

    def _narrow_model(self, algorithm: str) -> Any:
        env = LinearSystem(8, self.device, 17, 6)
        return getattr(sb3_policyopt, algorithm)("MlpPolicy", env, n_steps=256, seed=0, device=self.device)

    def fisher_vector_product(self) -> float:
        """Milliseconds of one product."""
        model = self._narrow_model("TRPO").learn(2 * 2048)
        engine = model.engine_in_use
        (batch,) = engine.data(model.rollout_buffer).whole()
        product = engine.fisher_product(engine.actor_pass(batch), batch.size)
        vector = th.randn_like(engine.actor_parameters)
        times = []
        for _ in range(200):
            self.wait()
            start = time.perf_counter()
            product(vector)
            self.wait()
            times.append(time.perf_counter() - start)
        return 1e3 * median(times[20:])

    def recording_time(self) -> float:
        """Seconds that the first iteration takes longer than a later one."""
        model = self._narrow_model("PPO")
        times = []
        for _ in range(4):
            self.wait()
            start = time.perf_counter()
            model.learn(2048, reset_num_timesteps=False)
            self.wait()
            times.append(time.perf_counter() - start)
        return times[0] - min(times[1:])

    def difference(self, algorithm: str) -> float:
        """After one update on equal rollouts, from equal parameters and optimizer states."""
        parameters = []
        for wanted in (True, False):
            with without_graphs(not wanted):
                th.manual_seed(0)
                model = self._narrow_model(algorithm).learn(2048)
                parameters.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
        return float((parameters[0] - parameters[1]).abs().max())


@contextmanager
def without_graphs(condition: bool) -> Iterator[None]:
    """
    A context in which new models record no graphs.

    :param condition: whether it is so
    :return: the context
    """
    before = graphs.make_graph
    if condition:
        graphs.make_graph = lambda device: None
    try:
        yield
    finally:
        graphs.make_graph = before


def main(device: str, small: bool, only: str, output: Path) -> None:
    """
    Measure and print all rows.

    :param device: "cuda", or "cpu" to try the script
    :param small: see :class:`Bench`
    :param only: see :class:`Bench`
    :param output: a folder for ``gpu.json``
    """
    bench = Bench(device, small, only)
    name = th.cuda.get_device_name() if device == "cuda" else "no GPU"
    print(f"{name}, torch {th.__version__}, {th.get_num_threads()} threads of the CPU")
    for part in (bench.pieces, bench.many, bench.images, bench.narrow):
        part()
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.json").write_text(json.dumps({"device": name, "torch": th.__version__, "rows": bench.rows}, indent=1))

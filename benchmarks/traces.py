"""
Traces of short trainings, to see whether a change of the code has changed a number.

``python -m benchmarks.traces record before.npz`` trains some 60 configurations for three updates each: algorithm × space ×
policy × engine × optimizer × ranks. Of each it keeps the parameters, the optimizer's moments and the log.
``python -m benchmarks.traces compare before.npz`` trains them again and says for each whether every bit is the same, and
else how far the numbers are apart. It exits with 1 if something differs.

Record and compare on one machine with the same versions of torch and NumPy: their sums depend on the processor.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.environments import ToyEnv
from sb3_policyopt import PPO, TRPO

UPDATES = 3
N_STEPS, N_ENVS = 32, 4

BOX = spaces.Box(-1, 1, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATIONS: dict[str, tuple[str, spaces.Space]] = {
    "box": ("MlpPolicy", BOX),
    "discrete": ("MlpPolicy", spaces.Discrete(5)),
    "multi_discrete": ("MlpPolicy", spaces.MultiDiscrete([2, 3])),
    "multi_binary": ("MlpPolicy", spaces.MultiBinary(4)),
    "image": ("CnnPolicy", IMAGE),
    "dict": ("MultiInputPolicy", spaces.Dict({"vector": BOX, "choice": spaces.Discrete(3)})),
}
ACTIONS: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(5),
}


@dataclass(frozen=True)
class Trace:
    """
    One configuration.

    :param algo: "ppo" or "trpo"
    :param observations: a name of ``OBSERVATIONS``
    :param actions: a name of ``ACTIONS``
    :param options: of the algorithm
    :param ranks: number of processes
    :param label: what is special about it
    """

    algo: str
    observations: str = "box"
    actions: str = "box"
    options: dict[str, Any] = field(default_factory=dict)
    ranks: int = 1
    label: str = ""

    @property
    def name(self) -> str:
        """Unique among the configurations."""
        return "/".join(
            filter(None, (self.algo, self.observations, self.actions, self.label, f"{self.ranks}" * (self.ranks > 1)))
        )


def _configurations() -> list[Trace]:
    traces = []
    for algo in ("ppo", "trpo"):
        traces += [Trace(algo, "box", actions) for actions in ACTIONS]
        traces += [Trace(algo, observations, "discrete") for observations in OBSERVATIONS if observations != "box"]
        for actions in ACTIONS:
            traces.append(Trace(algo, "box", actions, {"engine": "autograd"}, label="autograd"))
        variants: dict[str, dict[str, Any]] = {
            "separate": {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [16, 16]}}},
            "linear": {"policy_kwargs": {"net_arch": []}},
            "relu": {"policy_kwargs": {"activation_fn": th.nn.ReLU}},
            "elu": {"policy_kwargs": {"activation_fn": th.nn.ELU, "net_arch": [16]}},
            "adamw": {"policy_kwargs": {"optimizer_class": th.optim.AdamW}},
            "sgd": {"policy_kwargs": {"optimizer_class": th.optim.SGD}},
            "rmsprop": {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}},
            "gsde": {"use_sde": True, "sde_sample_freq": 4},
            "squash": {"use_sde": True, "policy_kwargs": {"squash_output": True}},
            "micro": {"micro_batch_size": 12},
            "rest": {"batch_size": 24},
            "raw": {"normalize_advantage": False, "value_target": "monte_carlo"},
            "bounds": {"log_std_bounds": (-0.1, 0.1), "learning_rate": "lin_0.01"},
            "own_extractors": {"policy_kwargs": {"share_features_extractor": False}},
        }
        for label, options in variants.items():
            traces.append(Trace(algo, options=options, label=label))
        traces.append(
            Trace(algo, "image", "box", {"policy_kwargs": {"share_features_extractor": False}}, label="own_extractors")
        )
        traces += [Trace(algo, "box", "box", ranks=2), Trace(algo, "image", "discrete", ranks=2)]
        traces.append(Trace(algo, "box", "discrete", {"engine": "autograd"}, ranks=2, label="autograd"))
    traces += [
        Trace("ppo", options={"clip_range_vf": 0.1, "ent_coef": 0.01, "target_kl": 0.01}, label="clipped_values"),
        Trace("ppo", options={"clip_range_vf": 0.1, "value_clipping": "pessimistic", "kl_stop": "epoch"}, label="pessimistic"),
        Trace("ppo", "box", "discrete", {"ent_coef": 0.01}, label="entropy"),
        Trace("trpo", options={"sub_sampling_factor": 3, "kl_reduction": "mean"}, label="thinned"),
        Trace("trpo", options={"line_search": False}, label="natural"),
        Trace("trpo", "image", "box", {"sub_sampling_factor": 2}, label="thinned"),
    ]
    return traces


TRACES = {trace.name: trace for trace in _configurations()}


class _Log(BaseCallback):
    """Keeps what each update logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _note(self) -> None:
        values = self.logger.name_to_value.items()
        self.rows.append({k: float(v) for k, v in values if k.startswith("train/") and isinstance(v, (int, float, np.number))})

    def _on_rollout_start(self) -> None:
        self._note()


def run(trace: Trace) -> dict[str, np.ndarray[Any, Any]]:
    """
    Train a configuration for a few updates.

    :param trace: which
    :return: parameters, moments and log, float64
    """
    policy, observation_space = OBSERVATIONS[trace.observations]
    env = DummyVecEnv([lambda: ToyEnv(observation_space, ACTIONS[trace.actions]) for _ in range(N_ENVS)])
    options = {"n_steps": N_STEPS, "batch_size": 32, "seed": 3, "device": "cpu", **trace.options}
    options |= {"n_epochs": 2} if trace.algo == "ppo" else {"n_critic_updates": 2}
    log = _Log()
    model = {"ppo": PPO, "trpo": TRPO}[trace.algo](policy, env, **options)
    model.learn(UPDATES * N_STEPS * N_ENVS * trace.ranks, callback=log)
    log._note()
    state = model.policy.optimizer.state_dict()["state"]
    moments = [state[i][name].double().reshape(-1) for i in sorted(state) for name in sorted(state[i])]
    names = sorted({name for row in log.rows for name in row})
    numbers = [[row.get(name, np.nan) for name in names] for row in log.rows]
    return {
        "parameters": th.cat([p.detach().double().reshape(-1) for p in model.policy.parameters()]).numpy(),
        "moments": th.cat(moments).numpy() if moments else np.empty(0),
        "log": np.array(numbers, float),
        "log_names": np.array(names),
        "engine": np.array(model.engine_in_use.name),
    }


def run_ranks(trace: Trace) -> dict[str, np.ndarray[Any, Any]]:
    """
    The same on several processes of this machine; what rank 0 has in the end.

    :param trace: which
    :return: parameters, moments and log
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.npz"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={trace.ranks}", "--standalone"]
        command += ["-m", "benchmarks.traces", "one", str(file), "--only", trace.name]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return dict(np.load(file))


def record(only: str) -> dict[str, np.ndarray[Any, Any]]:
    """
    All traces.

    :param only: those whose names contain this
    :return: arrays by "trace:array"
    """
    arrays = {}
    for name, trace in TRACES.items():
        if only in name:
            result = run(trace) if trace.ranks == 1 else run_ranks(trace)
            arrays |= {f"{name}:{key}": array for key, array in result.items()}
    return arrays


def difference(before: np.ndarray[Any, Any] | None, now: np.ndarray[Any, Any] | None) -> float:
    """
    How far two arrays are apart.

    :param before: recorded
    :param now: of this code
    :return: 0 for equal bits, else the largest difference; infinite if they cannot be compared
    """
    if before is None or now is None or before.shape != now.shape or before.dtype.kind != now.dtype.kind:
        return np.inf
    if before.dtype.kind == "U":
        return 0.0 if bool((before == now).all()) else np.inf
    if before.tobytes() == now.tobytes() or not before.size:
        return 0.0
    both_nan = np.isnan(before) & np.isnan(now)
    return float(np.nan_to_num(np.where(both_nan, 0.0, abs(before - now)), nan=np.inf).max())


def compare(file: Path, only: str) -> int:
    """
    Print for each trace whether it is the recorded one.

    :param file: of :func:`record`
    :param only: traces whose names contain this
    :return: number of traces that differ
    """
    before, now = dict(np.load(file)), record(only)
    keys = [key for key in dict.fromkeys((*before, *now)) if only in key]
    different = 0
    for name in dict.fromkeys(key.split(":")[0] for key in keys):
        of_trace = [key for key in keys if key.split(":")[0] == name]
        gaps = {key.split(":")[1]: difference(before.get(key), now.get(key)) for key in of_trace}
        engine = str(now.get(f"{name}:engine", "missing"))
        wrong = {key: gap for key, gap in gaps.items() if gap}
        different += bool(wrong)
        verdict = "equal" if not wrong else ", ".join(f"{key} {gap:.1e}" for key, gap in wrong.items())
        print(f"{name:45} {engine:12} {verdict}")
    print(f"{different} traces differ")
    return different


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__.splitlines()[1])
    parser.add_argument("action", choices=("record", "compare", "one"), help="'one' is what each rank runs")
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="traces whose names contain this")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    if arguments.action == "one":
        result = run(TRACES[arguments.only])
        if os.environ.get("RANK", "0") == "0":
            np.savez(arguments.file, **result)
    elif arguments.action == "record":
        np.savez(arguments.file, **record(arguments.only))
        print(f"{len(TRACES)} traces in {arguments.file}")
    else:
        sys.exit(min(compare(arguments.file, arguments.only), 1))


if __name__ == "__main__":
    main()

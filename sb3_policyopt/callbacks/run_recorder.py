"""The callback that records a run: what is logged, and how the run was made."""

import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_policyopt.saving.files import write_atomically
from sb3_policyopt.saving.provenance import (
    PROGRESS,
    PROVENANCE,
    ContinuedCSV,
    described,
    effective_hyperparameters,
    git_state,
    half_range,
    installed_versions,
    shared_extractor_parameters,
    with_text_keys,
)


class RunRecorder(BaseCallback):
    """
    Write ``progress.csv`` (all that is logged, one row for each dump of the logger) and ``provenance.json`` into a folder.

    The provenance is collected when the training starts: versions, the commit of the git repository in the current folder,
    seed, arguments, hyperparameters. Steps, wall time and whether the training is complete are added by :meth:`save`, which
    the end of the training calls too. With several ranks it runs on rank 0.

    :param folder: where the files go; it is made if there is none
    :param hyperparameters: constructor arguments as they were written; the others are recorded as the algorithm has them
    :param facts: more entries for ``provenance.json``, such as the environment id
    """

    rank_zero_only = True

    def __init__(
        self,
        folder: str | Path,
        hyperparameters: Mapping[str, object] | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.hyperparameters = dict(hyperparameters or {})
        self.facts = dict(facts or {})
        self.record: dict[str, object] = {}
        self._clock = 0.0

    def _on_training_start(self) -> None:
        self._clock = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = (self.folder / PROGRESS).resolve()
        written = [str(getattr(output.file, "name", "")) for output in self.logger.output_formats if hasattr(output, "file")]
        if path not in [Path(name).resolve() for name in written]:
            self.logger.output_formats.append(ContinuedCSV(str(path), self.model.num_timesteps))
        self.record = {
            **self.facts,
            "algorithm": f"{type(self.model).__module__}.{type(self.model).__name__}",
            "seed": self.model.seed,
            "n_envs": self.model.n_envs,
            "action_half_range": half_range(self.model.action_space),
            "shared_extractor_parameters": shared_extractor_parameters(self.model.policy),
            "device": str(self.model.device),
            "torch_threads": th.get_num_threads(),
            "platform": platform.platform(),
            "processor_cores": os.cpu_count(),
            "versions": installed_versions(),
            "git": git_state(),
            "hyperparameters": effective_hyperparameters(self.model, self.hyperparameters),
            "started": _now(),
            "start_timesteps": self.model.num_timesteps,
            "requested_timesteps": self.model._total_timesteps,
        }
        self.save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> None:
        """Write ``provenance.json`` as it is now; call it after a training that an exception ended."""
        if not self.record:  # the training never started
            return
        requested = cast(float, self.record["requested_timesteps"])
        self.record.update(
            device=str(self.model.device),  # a resumed run may continue on the device of its checkpoint
            total_timesteps=self.model.num_timesteps,
            finished=self.model.num_timesteps >= requested,
            wall_time_seconds=round(time.perf_counter() - self._clock, 3),
            updated=_now(),
        )
        text = json.dumps(with_text_keys(self.record), indent=2, default=described) + "\n"
        write_atomically(self.folder / PROVENANCE, text.encode("utf-8"))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

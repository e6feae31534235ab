"""Returns, lengths and successes of episodes, counted on the device."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer
from sb3_policyopt.rollout.transfer import to_host


class Episodes:
    """
    Returns and lengths of episodes as SB3's Monitor counts them, and successes where the environments tell them.

    :param n_steps: of a rollout
    :param n_envs: number of environments
    :param device: where
    """

    def __init__(self, n_steps: int, n_envs: int, device: th.device) -> None:
        self.kind = th.float32 if device.type == "mps" else th.float64
        self.begun = time.time()
        self.sums = th.zeros(n_envs, dtype=self.kind, device=device)
        self.counts = th.zeros(n_envs, dtype=th.int64, device=device)
        shape = (n_steps, n_envs)
        self.of_steps = (
            th.zeros(shape, dtype=th.bool, device=device),
            th.zeros(shape, dtype=self.kind, device=device),
            th.zeros(shape, dtype=th.int64, device=device),
        )
        """Whether an episode ended with a step, its return and its length."""
        self.successes: tuple[th.Tensor, th.Tensor] | None = None
        """Whether a step tells a success, and the success. None before the first one is told."""
        self.of_bools = True

    @staticmethod
    def of(buffer: TensorRolloutBuffer, starts: th.Tensor) -> "Episodes":
        """
        The episodes that go on from the last rollout.

        :param buffer: which keeps them between rollouts
        :param starts: in which environments an episode starts now, bool, shape (n_envs,)
        :return: the episodes
        """
        kept: Episodes | None = vars(buffer).get("episodes")
        if kept is None or kept.sums.device != starts.device:
            kept = Episodes(buffer.buffer_size, buffer.n_envs, starts.device)
            buffer.episodes = kept
        kept.begin_anew(starts)
        return kept

    def note(
        self,
        step: int,
        rewards: th.Tensor,
        ended: th.Tensor,
        resets: th.Tensor | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Count a step.

        :param step: its number
        :param rewards: as the innermost environments gave them, shape (n_envs,)
        :param ended: whose episode ended, bool, shape (n_envs,)
        :param resets: who only reset itself, bool, shape (n_envs,); None for nobody
        :param extras: of the step, with ``is_success`` and ``_is_success`` where the environments give them
        """
        self.sums += rewards if resets is None else rewards.masked_fill(resets, 0)
        self.counts += 1 if resets is None else ~resets
        for column, now in zip(self.of_steps, (ended, self.sums, self.counts), strict=True):
            column[step] = now
        self._note_successes(step, extras or {})
        self.begin_anew(ended)

    def _note_successes(self, step: int, extras: Mapping[str, Any]) -> None:
        """
        Copy what a step tells of successes.

        :param step: its number
        :param extras: of the step
        """
        success: th.Tensor | None = extras.get("is_success")
        if success is not None and self.successes is None:
            told, sums, _ = self.of_steps
            self.successes = th.zeros_like(told), th.zeros_like(sums)
            self.of_bools = success.dtype is th.bool
        if self.successes is not None:
            told, values = self.successes
            told[step] = False if success is None else extras.get("_is_success", True)
            if success is not None:
                values[step] = success

    def begin_anew(self, starts: th.Tensor) -> None:
        """
        Count from 0.

        :param starts: in which environments, bool, shape (n_envs,)
        """
        self.sums.masked_fill_(starts, 0)  # a product with 0 would keep what is not finite
        self.counts.masked_fill_(starts, 0)

    def columns(self, n_steps: int) -> list[th.Tensor]:
        """
        What :meth:`infos` needs as arrays.

        :param n_steps: how many steps
        :return: shape (n_steps, n_envs) each
        """
        return [column[:n_steps] for column in (*self.of_steps, *(self.successes or ()))]

    def infos_at(self, step: int) -> list[Info]:
        """
        What SB3's Monitor would put into the infos of a step.

        :param step: its number
        :return: for each environment an empty dict, or one with "episode"
        """
        columns = to_host(*(column[step] for column in self.columns(step + 1)))
        infos: list[Info] = [{} for _ in columns[0]]
        for i in np.flatnonzero(columns[0]):
            infos[i] = self._info(*(column[i] for column in columns[1:]))
        return infos

    def ended(self, n_steps: int) -> list[Info]:
        """
        The infos of an unfinished rollout.

        :param n_steps: its steps
        :return: one for each episode that ended, in their order
        """
        return self.infos(*to_host(*self.columns(n_steps)))

    def infos(self, ended: NumpyArray, *columns: NumpyArray) -> list[Info]:
        """
        The infos of a whole rollout.

        :param ended: the first of :meth:`columns`
        :param columns: the others
        :return: one for each episode that ended, in their order
        """
        return [self._info(*row) for row in zip(*(column[ended] for column in columns), strict=True)]

    def _info(self, total: float, length: int, told: bool = False, success: float = 0.0) -> Info:
        """
        The info of an episode's last step.

        :param total: its return
        :param length: its length
        :param told: whether there is a success
        :param success: the success
        :return: SB3's names
        """
        info: Info = {"episode": {"r": round(float(total), 6), "l": int(length), "t": round(time.time() - self.begun, 6)}}
        if told:
            info["is_success"] = bool(success) if self.of_bools else float(success)
        return info

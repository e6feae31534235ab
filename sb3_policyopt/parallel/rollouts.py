"""What the ranks tell each other about their rollouts: environments, episodes, and the moments of ``VecNormalize``."""

from collections import deque
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt.parallel.collectives import from_rank_0, gather
from sb3_policyopt.parallel.launcher import world_size

if TYPE_CHECKING:
    from sb3_policyopt.on_policy import PolicyOptimization

_merged: WeakKeyDictionary[VecNormalize, list[RunningMeanStd]] = WeakKeyDictionary()
"""The moments of each ``VecNormalize`` when all ranks last agreed on them."""


def running_moments(env: VecNormalize) -> list[RunningMeanStd]:
    """
    What a ``VecNormalize`` estimates.

    :param env: any
    :return: its moments, of observations first
    """
    observations = getattr(env, "obs_rms", None)
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return [part for part in (*parts, env.ret_rms) if part is not None]


def adopt_moments(env: VecNormalize | None) -> None:
    """
    Take over the moments of rank 0.

    :param env: changed on the other ranks; None for none
    """
    if env is None:
        return
    agreed = from_rank_0(running_moments(env))
    for mine, theirs in zip(running_moments(env), agreed, strict=True):
        vars(mine).update(vars(theirs.copy()))
    _merged[env] = [moments.copy() for moments in agreed]


def increment(before: RunningMeanStd, now: RunningMeanStd) -> RunningMeanStd:
    """
    The moments of what was added between two times: Chan et al. (1979), solved for the second sample.

    :param before: moments of a sample
    :param now: moments of that sample and another
    :return: the moments of the other
    """
    added = RunningMeanStd(epsilon=now.count - before.count, shape=before.mean.shape)
    if added.count > 0:
        delta = (now.mean - before.mean) * (now.count / added.count)
        squares = now.var * now.count - before.var * before.count - delta**2 * (before.count * added.count / now.count)
        added.mean, added.var = before.mean + delta, np.maximum(squares, 0) / added.count
    return added


class SharedRollout:
    """
    One rollout of all ranks: how many environments there are, and what the ranks tell each other at its end.

    :param model: about to collect
    :param n_envs: number of environments of this rank
    """

    def __init__(self, model: "PolicyOptimization", n_envs: int) -> None:
        self.model = model
        self.n_envs = sum(gather(n_envs))
        self.episodes: list[tuple[Any, Any]] = []
        self.before = [list(buffer or ()) for buffer in (model.ep_info_buffer, model.ep_success_buffer)]

    def note(self, infos: list[dict[str, Any]], dones: "np.ndarray[Any, Any]") -> None:
        """
        Remember the episodes that ended with a step.

        :param infos: of all environments of this rank
        :param dones: whose episode ended, shape (n_envs,)
        """
        if world_size() > 1:
            self.episodes += [(infos[i].get("episode"), infos[i].get("is_success")) for i in np.flatnonzero(dones)]

    def end(self, complete: bool) -> bool:
        """
        Exchange episode statistics and the moments of ``VecNormalize``.

        :param complete: False if a callback on this rank asked to stop
        :return: False if one on any rank did
        """
        if world_size() == 1:
            return complete
        env = self.model.get_vec_normalize_env()
        before = [] if env is None else _merged[env]
        now = [] if env is None else running_moments(env)
        added = [increment(old, new) for old, new in zip(before, now, strict=True)]
        reports = gather((complete, self.episodes, added))
        self._merge_episodes([episodes for _, episodes, _ in reports])
        for i, moments in enumerate(before):
            for _, _, parts in reports:
                if parts[i].count > 0:
                    moments.combine(parts[i])
            vars(now[i]).update(vars(moments.copy()))
        return all(complete for complete, _, _ in reports)

    def _merge_episodes(self, episodes: list[list[tuple[Any, Any]]]) -> None:
        """
        Bring the statistics of all ranks into SB3's windows, in turn, so that none crowds out another.

        :param episodes: of each rank
        """
        in_turn = [episode for turn in zip_longest(*episodes) for episode in turn if episode is not None]
        buffers: tuple[deque[Any] | None, ...] = (self.model.ep_info_buffer, self.model.ep_success_buffer)
        for kind, buffer in enumerate(buffers):
            assert buffer is not None
            buffer.clear()
            buffer.extend(chain(self.before[kind], (episode[kind] for episode in in_turn if episode[kind] is not None)))


def variances(*arrays: "np.ndarray[Any, Any]") -> list[float]:
    """
    The variance of each array over all ranks.

    :param arrays: this rank's numbers
    :return: one for each array
    """
    if world_size() == 1:
        return [float(np.var(array)) for array in arrays]
    totals = [RunningMeanStd(epsilon=0.0) for _ in arrays]
    moments = [(array.mean(dtype=np.float64), array.var(dtype=np.float64), array.size) for array in arrays]
    for of_rank in gather(moments):
        for total, part in zip(totals, of_rank, strict=True):
            total.update_from_moments(*part)
    return [float(total.var) for total in totals]

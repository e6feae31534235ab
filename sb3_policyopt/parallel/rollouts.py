"""What the ranks exchange about their rollouts: number of environments, episodes, and the moments of ``VecNormalize``."""

from collections import deque
from itertools import chain, zip_longest
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.parallel.collectives import from_rank_0, gather
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.learner import Learner

T = TypeVar("T")

Episode: TypeAlias = tuple[Info | None, bool | None]
"""Statistics of an episode, and whether it was a success."""

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
    One rollout of all ranks: how many environments there are, and what the ranks exchange at its end.

    :param learner: about to collect
    :param n_envs: number of environments of this rank
    """

    def __init__(self, learner: Learner, n_envs: int) -> None:
        self.learner = learner
        self.n_envs = sum(gather(n_envs))
        self.episodes: list[Episode] = []
        self.infos_before, self.successes_before = list(learner.ep_info_buffer or ()), list(learner.ep_success_buffer or ())

    def note(self, infos: list[Info], dones: NumpyArray) -> None:
        """
        Remember the episodes that ended with a step.

        :param infos: of all environments of this rank
        :param dones: whose episode ended, shape (n_envs,)
        """
        self.episodes += [(infos[i].get("episode"), infos[i].get("is_success")) for i in np.flatnonzero(dones)]

    def end(self, complete: bool) -> bool:
        """
        Exchange episode statistics and the moments of ``VecNormalize``.

        :param complete: False if a callback on this rank asked to stop
        :return: False if one on any rank did
        """
        env = self.learner.get_vec_normalize_env()
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

    def _merge_episodes(self, episodes: list[list[Episode]]) -> None:
        """
        Bring the statistics of all ranks into SB3's windows, in turn, so that none crowds out another.

        :param episodes: of each rank
        """
        in_turn = [episode for turn in zip_longest(*episodes) for episode in turn if episode is not None]
        infos, successes = self.learner.ep_info_buffer, self.learner.ep_success_buffer
        assert infos is not None and successes is not None
        refill(infos, self.infos_before, [info for info, _ in in_turn if info is not None])
        refill(successes, self.successes_before, [success for _, success in in_turn if success is not None])


def refill(window: deque[T], before: list[T], new: list[T]) -> None:
    """
    Put into one of SB3's windows what was in it, and what is new.

    :param window: changed in place
    :param before: what was in it
    :param new: what follows
    """
    window.clear()
    window.extend(chain(before, new))


def variances(*arrays: NumpyArray) -> list[float]:
    """
    The variance of each array over all ranks.

    :param arrays: this rank's numbers
    :return: one for each array
    """
    totals = [RunningMeanStd(epsilon=0.0) for _ in arrays]
    moments = [(array.mean(dtype=np.float64), array.var(dtype=np.float64), array.size) for array in arrays]
    for of_rank in gather(moments):
        for total, part in zip(totals, of_rank, strict=True):
            total.update_from_moments(*part)
    return [float(total.var) for total in totals]

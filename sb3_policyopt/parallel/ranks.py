"""Several processes that train together, started by a launcher such as torchrun."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.models import AnyModel
from sb3_policyopt.objectives.trust_region import TrustRegion
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.parallel import callbacks, group, launcher, layout, leader, minibatches, one_model, rollouts
from sb3_policyopt.parallel.team import Gradient, Team
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.learner import Learner, RolloutOfTeam
from sb3_policyopt.rollout.minibatches import RolloutData


class Ranks(Team):
    """
    All ranks of a launcher, seen from one of them.

    They run the same script, each with its own environments. Everything that is an average over transitions (gradients, J,
    F v, KL, the moments of the advantages, metrics) becomes the average over the transitions of all ranks. Every decision is
    made from such numbers, which have the same bits on all of them.
    """

    def __init__(self) -> None:
        self.rank, self.size = launcher.rank(), launcher.world_size()

    def training(self, model: OnPolicyAlgorithm) -> AbstractContextManager[None]:
        """The model is that of rank 0, which is also the only one that logs."""
        return one_model.training(model)

    def saving(self) -> AbstractContextManager[None]:
        """Rank 0 alone writes the file; outside of trainings the others go on when it has."""
        return group.saving()

    def callbacks(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """All callbacks on rank 0; on the others those that do more than evaluate, save or show."""
        return callbacks.callbacks_of_this_rank(callback, progress_bar)

    def seed(self, seed: int | None, n_envs: int) -> int | None:
        """Another one on every rank; the environments of all ranks get the seeds that one process would give them."""
        return None if seed is None else seed + self.rank * n_envs

    def rollout(self, learner: Learner, n_envs: int) -> RolloutOfTeam:
        """Episode statistics and the moments of ``VecNormalize`` are exchanged at its end."""
        return rollouts.SharedRollout(learner, n_envs)

    def passes(
        self, data: RolloutData[ArrayT], batch_size: int, n_passes: int, normalized: bool
    ) -> Iterator[Iterator[Batch[ArrayT]]]:
        """As many minibatches on each rank, the missing ones empty; advantages are normalised over all ranks."""
        return minibatches.passes(data, batch_size, n_passes, normalized)

    def normalize(self, advantages: ArrayT) -> ArrayT:
        """Over all ranks."""
        return minibatches.normalize(advantages)

    def with_same_layout(self, model: AnyModel) -> AnyModel:
        """The actor's parameters are those that the actions depend on on any rank."""
        return layout.with_same_layout(model)

    def gradient(self, compute: Gradient[Batch[ArrayT]], flat: FlatParameters, start: int = 0) -> Gradient[Batch[ArrayT]]:
        """One all-reduce a minibatch for the gradient and the terms."""
        return minibatches.SharedGradient(compute, flat, start)

    def lead(self, update: Callable[[TrustRegion], Terms], region: TrustRegion, parameters: th.Tensor) -> Terms:
        """Rank 0 makes the update; the others compute their share of what it needs."""
        return leader.lead(update, region, parameters)

    def keep_together(self, model: OnPolicyAlgorithm) -> None:
        """By a digest of all parameters."""
        one_model.keep_together(model)

    def reduce_maxima(self, terms: Terms) -> Terms:
        """Over all ranks."""
        return minibatches.reduce_maxima(terms)

    def variances(self, *arrays: NumpyArray) -> list[float]:
        """Over all ranks."""
        return rollouts.variances(*arrays)


def current_team() -> Team:
    """
    The team that this process belongs to, from the launcher's environment variables.

    :return: all ranks, or this process alone
    """
    return Ranks() if launcher.world_size() > 1 else Team()

"""The processes that train together, as one object: here a single process, where every method leaves things as they are."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import ArrayT, NumpyArray
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.models import AnyModel
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.objectives.trust_region import TrustRegion
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.learner import Learner, RolloutOfTeam
from sb3_policyopt.rollout.minibatches import RolloutData

BatchT = TypeVar("BatchT", contravariant=True)


class Gradient(Protocol[BatchT]):
    """(objective, minibatch) ↦ terms; leaves a gradient in the flat vector, as :meth:`sb3_policyopt.models.Model.gradient`."""

    def __call__(self, objective: Objective, batch: BatchT) -> Terms:
        """Compute it."""


class OwnRollout:
    """
    A rollout of one process.

    :param n_envs: number of environments
    """

    def __init__(self, n_envs: int) -> None:
        self.n_envs = n_envs

    def note(self, infos: list[Info], dones: NumpyArray) -> None:
        """SB3 notes the episodes itself."""

    def end(self, complete: bool) -> bool:
        """Nothing to exchange."""
        return complete


class Team:
    """One process. Several are :class:`sb3_policyopt.parallel.ranks.Ranks`."""

    rank = 0
    size = 1

    def training(self, model: OnPolicyAlgorithm) -> AbstractContextManager[None]:
        """
        Around a training: the processes train one model.

        :param model: about to learn
        :return: a context
        """
        return nullcontext()

    def saving(self) -> AbstractContextManager[None]:
        """
        Around the saving of a model to a file.

        :return: a context
        """
        return nullcontext()

    def callbacks(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """
        The callbacks that run in this process.

        :param callback: the user's
        :param progress_bar: whether to show one
        :return: the callback, and whether SB3 should add its progress bar
        """
        return callback, progress_bar

    def seed(self, seed: int | None, n_envs: int) -> int | None:
        """
        The seed of this process.

        :param seed: the user's; None for none
        :param n_envs: number of environments of a process
        :return: a seed; None for none
        """
        return seed

    def rollout(self, learner: Learner, n_envs: int) -> RolloutOfTeam:
        """
        One rollout of all processes.

        :param learner: about to collect
        :param n_envs: number of environments of this process
        :return: what they exchange in it
        """
        return OwnRollout(n_envs)

    def passes(
        self, data: RolloutData[ArrayT], batch_size: int, n_passes: int, normalized: bool
    ) -> Iterator[Iterator[Batch[ArrayT]]]:
        """
        Several passes over a rollout in shuffled minibatches.

        :param data: the rollout of this process
        :param batch_size: transitions a minibatch
        :param n_passes: number of passes
        :param normalized: whether to normalise the advantages of each minibatch
        :return: the minibatches of each pass
        """
        return (data.minibatches(batch_size, normalized) for _ in range(n_passes))

    def normalize(self, advantages: ArrayT) -> ArrayT:
        """
        Advantages with mean 0 and standard deviation 1.

        :param advantages: of this process, shape (batch,)
        :return: shape (batch,)
        """
        return losses.normalize(advantages)

    def with_same_layout(self, model: AnyModel) -> AnyModel:
        """
        A model whose flat vector has the same parameters in the same order in all processes.

        :param model: of this process
        :return: the same, or another one of the same policy
        """
        return model

    def gradient(self, compute: Gradient[Batch[ArrayT]], flat: FlatParameters, start: int = 0) -> Gradient[Batch[ArrayT]]:
        """
        What computes the gradient of a mean over the minibatches of all processes.

        :param compute: that of a mean over this process's minibatch
        :param flat: where it leaves the gradient
        :param start: where the stretch of the flat vector begins that is stepped
        :return: a function with the same arguments
        """
        return compute

    def lead(self, update: Callable[[TrustRegion], Terms], region: TrustRegion, parameters: th.Tensor) -> Terms:
        """
        Make TRPO's policy update.

        :param update: asks the trust region for F v, J and KL, and changes the parameters
        :param region: of this process's transitions
        :param parameters: of the actor, shape (n_actor,)
        :return: what to log
        """
        return update(region)

    def keep_together(self, model: OnPolicyAlgorithm) -> None:
        """
        Make sure after an update that all processes have the same policy.

        :param model: just updated
        """

    def reduce_maxima(self, terms: Terms) -> Terms:
        """
        The largest value over all processes of what is logged as a maximum.

        :param terms: reduced over the update
        :return: the same, or those of all processes
        """
        return terms

    def variances(self, *arrays: NumpyArray) -> list[float]:
        """
        The variance of each array over all processes.

        :param arrays: this process's numbers
        :return: one for each array
        """
        return [float(np.var(array)) for array in arrays]

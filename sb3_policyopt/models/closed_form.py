"""
MlpPolicy on the CPU by explicit formulas on the memory of the torch parameters: see :mod:`.networks`.

Small work is computed by NumPy, large work by torch without a graph; :mod:`.networks.library` has the rule. The memory is the
same, so that an update may use either for each of its series of passes. A rollout is NumPy's.
"""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.maths.arrays import ArrayT, NumpyArray, mean
from sb3_policyopt.maths.terms import Terms, value_of
from sb3_policyopt.models.model import Decision, Model
from sb3_policyopt.models.networks.acting import Acting
from sb3_policyopt.models.networks.actor_critic import ActorCriticNetworks, ActorPass, CriticPass, NetworksPass
from sb3_policyopt.models.networks.library import LibraryRule
from sb3_policyopt.models.networks.sb3_layout import features_extractors, make_features, sb3_parameters
from sb3_policyopt.models.networks.serving import NetworksWatch
from sb3_policyopt.objectives.objective import Objective, slopes_of
from sb3_policyopt.objectives.trust_region import SurrogateHook, surrogate_value
from sb3_policyopt.optimisation.optimiser import NumpyOptimiser, Optimiser
from sb3_policyopt.rollout.batch import Batch, Observations, as_arrays, one_array
from sb3_policyopt.rollout.buffers import flattened
from sb3_policyopt.rollout.context import NO_CONTEXT, Context
from sb3_policyopt.rollout.minibatches import RolloutData, ShuffledRows
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer, rows_of


class ClosedFormModel(Model[Any]):
    """
    The model for MlpPolicy on the CPU; see the module's text.

    :param policy: a policy in which :func:`sb3_policyopt.models.obstacles.networks_obstacle` found no obstacle
    :param family: of its action distribution
    """

    name = "closed_form"

    def __init__(self, policy: ActorCriticPolicy, family: ActionDistribution) -> None:
        super().__init__(policy, *sb3_parameters(policy, family))
        self.networks = ActorCriticNetworks.in_numpy(policy, self.flat, family)
        self.tensors = ActorCriticNetworks.in_torch(policy, self.flat, family)
        self.rule = LibraryRule(self.networks.work)
        self.watch = NetworksWatch(policy, self.flat, *features_extractors(policy))
        self.acting = Acting(self.networks, policy.action_space.shape or (), self.tensors, self.rule)
        self.features = make_features(policy)
        self.action_type = action_type(policy.action_space, kind_of(policy).masks)

    def serves(self) -> bool:
        """The networks fit, nothing of them is frozen, and the policy has no further parameters."""
        trainable = {id(parameter) for parameter in self.policy.parameters() if parameter.requires_grad}
        known = {id(parameter) for parameter in self.flat.parameters}
        return trainable == known and self.watch.serves()

    def fits(self) -> bool:
        """The networks' modules and parameters are the same objects, without hooks or methods of their own."""
        return self.watch.fits()

    # ------------------------------------------------------------------ rollout

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Draw the noise of all steps at once, from torch's global generator."""
        self.acting.start_rollout(n_steps, n_envs)

    def act(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> Decision:
        """One forward pass of both networks, and the next piece of noise."""
        return self.acting.act(self.features(one_array(observations))[None], context.action_masks)

    def values(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """One forward pass of the critic."""
        return self.acting.values(self.features(one_array(observations))[None])

    # ------------------------------------------------------------------ update

    def data(self, buffer: RolloutBuffer, sequence_length: int | None = None) -> RolloutData[Any]:
        """Observations become features once a rollout."""
        self.rule.look()
        return ShuffledRows(self.loaded(buffer), self._start_pass, lambda rows: self.rule.library(rows) == "torch")

    def loaded(self, buffer: RolloutBuffer) -> Batch[NumpyArray]:
        """
        All transitions as arrays.

        :param buffer: a full rollout buffer
        :return: features in place of observations; columns of actions lie together, as those of the means do
        """
        rollout = as_arrays(rows_of(buffer)) if isinstance(buffer, TensorRolloutBuffer) else flattened(buffer)
        actions = rollout.actions.reshape(rollout.size, -1)

        def scalar(array: NumpyArray) -> NumpyArray:
            return np.asarray(array, dtype=np.float32)

        return Batch(
            self.features(one_array(rollout.observations)),
            np.asfortranarray(actions, dtype=self.action_type),
            scalar(rollout.old_values),
            scalar(rollout.old_log_prob),
            scalar(rollout.advantages),
            scalar(rollout.returns),
            rollout.context,
        )

    def _start_pass(self) -> None:
        """Look at the optimizer's memory once a pass: between its minibatches no code of others runs."""
        self.flat.unwatched = True

    def _of(self, batch: Batch[ArrayT]) -> ActorCriticNetworks[ArrayT]:
        """
        The networks in a batch's library.

        :param batch: of arrays or tensors
        :return: on the memory of the parameters
        """
        networks: Any = self.networks if isinstance(batch.returns, np.ndarray) else self.tensors
        return networks

    def gradient(self, objective: Objective, batch: Batch[ArrayT]) -> Terms:
        """Jᵀ ∂(−L)/∂output."""
        return self.over_pieces(self._gradient, objective, batch)

    def _gradient(self, objective: Objective, batch: Batch[ArrayT]) -> Terms:
        self.flat.bring(thorough=self.flat.unwatched)
        networks, features = self._of(batch), features_of(batch)
        if objective.critic_only:
            forward: CriticPass[ArrayT] | NetworksPass[ArrayT] = networks.critic_forward(features)
        else:
            forward = networks.forward(features, batch.context.get("action_masks"))
        slopes, terms = objective.known_slopes()(forward.outputs, batch)
        forward.pullback(slopes)
        return terms

    def _make_optimiser(self, first: int) -> Optimiser:
        return NumpyOptimiser(self.policy, self.flat, first, self.watch.check_after_foreign_step)

    # ------------------------------------------------------------------ the actor's Jacobian

    def threads(self, rows: int) -> AbstractContextManager[None]:
        """One for NumPy; for torch all of them if it computes, else one."""
        return self.rule.threads_for(rows)

    def actor_pass(self, batch: Batch[ArrayT]) -> ActorPass[ArrayT]:
        """Of the actor's network alone."""
        self.flat.bring()
        return self._of(batch).actor_forward(features_of(batch), batch.context.get("action_masks"))

    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[ArrayT]) -> tuple[float, th.Tensor, ActorPass[ArrayT]]:
        """g = Jᵀ ∂J/∂output."""
        forward = self.actor_pass(batch)
        compute = slopes_of(hook)
        assert compute is not None
        slopes, terms = compute(forward.outputs, batch)
        return float(value_of(terms["surrogate"])), forward.pullback(slopes.parameters), forward

    def surrogate_and_kl(self, hook: SurrogateHook, batch: Batch[ArrayT], old: tuple[ArrayT, ...]) -> tuple[float, float]:
        """One forward pass of the actor."""
        masks = batch.context.get("action_masks")
        outputs = self._of(batch).actor_forward(features_of(batch), masks, with_slopes=False).outputs
        return float(surrogate_value(hook, outputs, batch)), float(mean(self.networks.family.kl(old, outputs.parameters)))


def features_of(batch: Batch[ArrayT]) -> ArrayT:
    """
    What both networks see of a batch.

    :param batch: with features in place of observations
    :return: shape (1, batch, n_features)
    """
    return one_array(batch.observations)[None]


def action_type(space: spaces.Space[object], masks: bool) -> type[np.generic]:
    """
    The type of actions in an update, whatever the space's own: as SB3's buffer and algorithms hand them to a distribution.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :param masks: whether there are masks; a binary action is then a choice among two
    :return: float32, or int64 for what is used as a column number
    """
    return np.int64 if masks or isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else np.float32

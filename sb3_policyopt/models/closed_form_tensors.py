"""
The closed form on tensors: for policies on a GPU, and for environments that give and take tensors.

No graph is built above the features. Features extractors with parameters are torch's: with x the features, the formulas give
x̄ = ∂(−L)/∂x, from which torch goes on backward; J v goes through SB3's layer by layer. Nothing here waits for the device but
what TRPO asks for as a number.
"""

from collections.abc import Callable, Sequence

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.graphs import Recorder, Task, in_place
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.maths.terms import Terms, value_of
from sb3_policyopt.models.extractors import ExtractedPass, are_known
from sb3_policyopt.models.model import TensorDecision, forget_distribution
from sb3_policyopt.models.networks.actor_critic import ActorCriticNetworks, ActorPass, CriticPass, NetworksPass
from sb3_policyopt.models.networks.layers import TrunkPass
from sb3_policyopt.models.networks.sb3_layout import features_extractors, sb3_parameters
from sb3_policyopt.models.networks.serving import NetworksWatch
from sb3_policyopt.models.replayed_fisher import ReplayedFisherProduct
from sb3_policyopt.models.replayed_slopes import ReplayedSlopes
from sb3_policyopt.models.tensor_model import TensorModel
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.objectives.objective import Objective, slopes_of
from sb3_policyopt.objectives.outputs import Pass
from sb3_policyopt.objectives.trust_region import FisherProduct, SurrogateHook, fisher_product, surrogate_and_kl
from sb3_policyopt.optimisation.optimiser import Optimiser
from sb3_policyopt.optimisation.replayed import ReplayedOptimiser
from sb3_policyopt.rollout.batch import Batch, Observations, columns_of, n_rows, of_features, with_columns
from sb3_policyopt.rollout.context import NO_CONTEXT, Context
from sb3_policyopt.rollout.minibatches import GatheredRows, RolloutData
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer

OF_ROWS = ("minibatches", "gradients", "F v", "conjugate gradient")
"""Names of what is computed of a number of rows."""
ROWS_VARY = "some steps only reset an environment, so that the number of rows varies"


class TensorClosedForm(TensorModel):
    """
    The model for policies whose networks have a closed form, on any device; see the module's text.

    :param policy: a policy in which :func:`sb3_policyopt.models.obstacles.networks_obstacle` found no obstacle, without memory
    :param family: of its action distribution
    :param plain_features: whether observations become features by flattening alone
    """

    name = "closed_form"
    recorder: Recorder

    def __init__(self, policy: ActorCriticPolicy, family: ActionDistribution, plain_features: bool = True) -> None:
        parameters = sb3_parameters(policy, family)
        super().__init__(policy, *parameters)
        self.plain_features = plain_features
        if not plain_features:
            self.name = "hybrid"  # type: ignore[misc]  # of this object
        self.torch = TorchModel(policy, parameters, flat=self.flat)
        self.networks = ActorCriticNetworks.in_torch(policy, self.flat, family)
        own = features_extractors(policy)
        self.known_features = are_known(own)
        self.watch = NetworksWatch(policy, self.flat, *(own if self.known_features else ()))
        self.action_shape = policy.action_space.shape or ()
        self.recorder = Recorder(policy.device)
        self.recorder.is_active &= self.known_features  # others may wait for the device, or change what they do
        self.networks.keep_work(self.recorder.is_active)
        # For numbers of rows that vary, whose work arrays may be forgotten.
        self.passing = ActorCriticNetworks.in_torch(policy, self.flat, family)
        self.replayed = ReplayedSlopes(self.recorder)
        self.rollout: Batch[th.Tensor] | None = None
        self.kept: dict[int, list[th.Tensor]] = {}
        self.noise = self.flat.vector.new_empty(0)
        self.next_step = 0
        self.rows_vary = False
        # What lies before each network in the flat vector belongs to the extractors.
        actor_start, critic_start = self.networks.starts
        self._critic_extractor = range(self.actor_count, self.flat.offsets.index(critic_start))
        self._extractor_parameters = [*range(self.flat.offsets.index(actor_start)), *self._critic_extractor]

    @property
    def of_rows(self) -> ActorCriticNetworks[th.Tensor]:
        """The networks with which a rollout's rows are computed: of varying numbers of them, those that forget work arrays."""
        return self.passing if self.rows_vary else self.networks

    def serves(self) -> bool:
        """The networks fit, and the policy has the same modules and trainable parameters."""
        return self.torch.serves() and self.watch.serves()

    def fits(self) -> bool:
        """The networks' modules and parameters are the same objects, without hooks or methods of their own."""
        return self.watch.fits()

    def _features(self, observations: Observations[th.Tensor], critic_only: bool = False) -> th.Tensor:
        """
        SB3's preprocessing and the extractors.

        :param observations: first axis batch
        :param critic_only: whether the critic alone is computed
        :return: shape (1, batch, n_features), or (2, batch, n_features) if actor and critic see different features
        """
        actor, critic = self.policy.pi_features_extractor, self.policy.vf_features_extractor
        extractors = (critic,) if critic_only else (actor,) if self.policy.share_features_extractor else (actor, critic)
        extract = BasePolicy.extract_features
        rows = [extract(self.policy, observations, extractor) for extractor in extractors]  # type: ignore[arg-type]
        return rows[0][None] if len(rows) == 1 else th.stack(rows)

    @property
    def _addresses(self) -> tuple[int, ...]:
        """Where the extractors' own numbers are, which a graph reads there."""
        if self.plain_features:
            return ()
        modules = features_extractors(self.policy)
        return tuple([t.data_ptr() for module in modules for t in (*module.parameters(), *module.buffers())])

    # ------------------------------------------------------------------ rollout

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Draw the noise of all steps at once, from the device's generator."""
        shape, like = (n_steps, n_envs, self.networks.family.output_dim), self.flat.vector
        tiny, kind = th.finfo(th.float32).tiny, th.float32
        self.noise = self.networks.family.noise(
            lambda: th.rand(shape, dtype=kind, device=like.device).clamp_(min=tiny),
            lambda: th.randn(shape, dtype=kind, device=like.device),
        )
        self.next_step = 0

    def decide(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> TensorDecision:
        """One forward pass of the extractors and both networks, and the next piece of noise."""
        n_envs = n_rows(observations)
        if self.next_step == len(self.noise) or self.noise.shape[1] != n_envs:
            self.start_rollout(1, n_envs)
        names = list(observations) if isinstance(observations, dict) else None
        inputs = [self.noise[self.next_step], *(observations.values() if isinstance(observations, dict) else [observations])]
        if context.action_masks is not None:
            inputs.append(th.as_tensor(context.action_masks, device=self.flat.vector.device))

        def act(noise: th.Tensor, *given: th.Tensor) -> tuple[th.Tensor, ...]:
            masks = None if context.action_masks is None else given[-1]
            seen = given[0] if names is None else dict(zip(names, given, strict=False))
            with th.no_grad():
                outputs = self.networks.forward(self._features(seen), masks, with_slopes=False).outputs
            actions, log_prob = self.networks.family.sample_and_log_prob(outputs.parameters, noise)
            return actions.reshape(-1, *self.action_shape), outputs.values, log_prob

        self.next_step += 1
        actions, values, log_prob = self.recorder.call(Task("acting", (names and tuple(names), self._addresses), act, inputs))
        return TensorDecision(actions, values, log_prob)

    def values_of(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> th.Tensor:
        """One forward pass of the critic and its extractor."""
        with th.no_grad():
            features = self._features(observations, critic_only=True)
            return self.passing.critic_forward(features, with_slopes=False).outputs.values

    def action_parameters(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """As of :class:`TorchModel`."""
        return self.torch.action_parameters(observations, context)

    # ------------------------------------------------------------------ update

    def data(self, buffer: RolloutBuffer, sequence_length: int | None = None) -> RolloutData[th.Tensor]:
        """As of :class:`TorchModel`: one transfer a rollout. For graphs it stays in one place."""
        data = self.torch.data(buffer, sequence_length)
        if not (self.recorder.is_active and isinstance(data, GatheredRows)):
            return data
        self.rows_vary = isinstance(buffer, TensorRolloutBuffer) and buffer.resets is not None
        self.recorder.refuse(OF_ROWS, ROWS_VARY, self.rows_vary)
        if self.rows_vary:
            return data
        if isinstance(buffer, TensorRolloutBuffer):
            self.rollout = data.rollout  # whose memory is the same in every rollout
        else:
            columns = columns_of(data.rollout)
            kept = in_place([] if self.rollout is None else columns_of(self.rollout), columns)
            self.rollout = with_columns(data.rollout, kept)
        return GatheredRows(self.rollout, self.recorder)

    def gradient(self, objective: Objective, batch: Batch[th.Tensor]) -> Terms:
        """Jᵀ ∂(−L)/∂output down to the features, and from there torch's backward pass."""
        return self.over_pieces(self._replayed_gradient, objective, batch)

    def _replayed_gradient(self, objective: Objective, batch: Batch[th.Tensor]) -> Terms:
        self.flat.bring(thorough=self.flat.unwatched)
        if not self.recorder.is_active:
            return self._gradient(objective, batch)
        if not self.plain_features:
            forget_distribution(self.policy)  # whose graph, if a callback made one, belongs to another stream
        return self.replayed.terms(self._gradient, objective, batch, self.flat.gradient, self._addresses)

    def _gradient(self, objective: Objective, batch: Batch[th.Tensor]) -> Terms:
        """
        The gradient, left in ``flat.gradient``.

        :param objective: what is minimised
        :param batch: transitions
        :return: what to log
        """
        numbers: Sequence[int] = self._critic_extractor if objective.critic_only else self._extractor_parameters
        is_actors = objective.critic_only and self.policy.share_features_extractor  # with all that it computes with
        with th.set_grad_enabled(bool(numbers) or not (self.plain_features or is_actors)):
            features = self._features(batch.observations, objective.critic_only)
        x, rows = features.detach(), of_features(batch)
        if objective.critic_only:
            forward: CriticPass[th.Tensor] | NetworksPass[th.Tensor] = self.of_rows.critic_forward(x)
        else:
            forward = self.of_rows.forward(x, rows.context.get("action_masks"))
        slopes, terms = objective.known_slopes()(forward.outputs, rows)
        x_bar = forward.pullback(slopes, to_features=features.requires_grad)
        if numbers or x_bar is not None:
            first = self.actor_count if objective.critic_only else 0
            gradients: Sequence[th.Tensor | None] = [None] * len(self.flat.parameters[first:])
            if x_bar is not None:
                gradients = th.autograd.grad(features, self.flat.parameters[first:], x_bar, allow_unused=True)
            self.flat.gather_below(gradients, first, numbers)
        return terms

    def _make_optimiser(self, first: int) -> Optimiser:
        return ReplayedOptimiser(self.policy, self.flat, first, self.watch.check_after_foreign_step, self.recorder)

    # ------------------------------------------------------------------ the actor's Jacobian

    def actor_pass(self, batch: Batch[th.Tensor]) -> Pass[th.Tensor]:
        """Of the actor's network; layer by layer through SB3's extractors, and by torch through others."""
        if not self.known_features:
            return self.torch.actor_pass(batch)
        self.flat.bring()
        if not self.plain_features:
            return ExtractedPass.of(self.policy, self.of_rows, self.flat, batch)
        return self.of_rows.actor_forward(self._actor_features(batch), batch.context.get("action_masks"))

    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[th.Tensor]) -> tuple[float, th.Tensor, Pass[th.Tensor]]:
        """g = Jᵀ ∂J/∂output."""
        if not self.known_features:
            return self.torch.surrogate_pass(hook, batch)
        self.flat.bring()
        if not self.plain_features:
            return ExtractedPass.of(self.policy, self.of_rows, self.flat, batch).with_surrogate(hook, batch)
        forward = self.of_rows.actor_forward(self._actor_features(batch), batch.context.get("action_masks"))
        compute = slopes_of(hook)
        assert compute is not None
        slopes, terms = compute(forward.outputs, of_features(batch))
        return float(value_of(terms["surrogate"])), forward.pullback(slopes.parameters), forward

    def surrogate_and_kl(
        self, hook: SurrogateHook, batch: Batch[th.Tensor], old: tuple[th.Tensor, ...]
    ) -> tuple[float, float]:
        """One forward pass of the actor, and one wait for the device."""
        if not self.known_features:
            return self.torch.surrogate_and_kl(hook, batch, old)
        if not self.plain_features:
            self.flat.push()
            forward = ExtractedPass.of(self.policy, self.of_rows, self.flat, batch, with_jacobian=False)
            return surrogate_and_kl(hook, forward.outputs, batch, old)
        masks = batch.context.get("action_masks")
        outputs = self.of_rows.actor_forward(self._actor_features(batch), masks, with_slopes=False).outputs
        return surrogate_and_kl(hook, outputs, batch, old)

    def fisher_product(self, forward: Pass[th.Tensor], batch: int) -> FisherProduct:
        """As the base class, by a graph of the tangent and the backward pass, and one of the conjugate gradient method."""
        if not self.recorder.is_active or self.rows_vary or not isinstance(forward, ActorPass):
            return super().fisher_product(forward, batch)
        first, *hidden = forward.trunk_pass.hidden
        slopes = forward.trunk_pass.slopes
        self.kept[batch] = kept = in_place(self.kept.get(batch, []), [first, *forward.parameters])

        def product_at(x: th.Tensor, *parameters: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
            return fisher_product(ActorPass(self.networks, parameters, TrunkPass([x, *hidden], slopes)), batch)

        addresses = tuple([tensor.data_ptr() for tensor in (*hidden, *slopes)])
        return ReplayedFisherProduct(self.recorder, product_at, kept, (batch, addresses))

    def _actor_features(self, batch: Batch[th.Tensor]) -> th.Tensor:
        """
        What the actor sees of a batch, where features have no parameters.

        :param batch: transitions
        :return: shape (1, batch, n_features)
        """
        with th.no_grad():
            return self._features(batch.observations)[:1]

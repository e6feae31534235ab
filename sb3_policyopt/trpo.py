"""TRPO: the natural gradient, scaled to the border of a trust region in KL, with a line search that enforces KL ≤ δ."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import ArrayT
from sb3_policyopt.maths.terms import Means, Terms, mean_terms, value_of
from sb3_policyopt.maths.trust_region import REFUSALS, backtracking_line_search, predicted_kl, step_scale
from sb3_policyopt.models import AnyModel, Model
from sb3_policyopt.models.model import forget_distribution
from sb3_policyopt.models.policy_calls import predict_values
from sb3_policyopt.models.split import buffers_kept
from sb3_policyopt.objectives import (
    LocalTrustRegion,
    Objective,
    TrustRegion,
    closed_form,
    critic_loss,
    critic_slopes,
    surrogate_slopes,
)
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.minibatches import RolloutData
from sb3_policyopt.setup import arguments
from sb3_policyopt.setup.arguments import Coefficient
from sb3_policyopt.setup.devices import Passes
from sb3_policyopt.setup.hooks import HOOKS, refuse_hooks_of_others
from sb3_policyopt.setup.settings import Check, fraction, integer_from, one_of

SelfTRPO = TypeVar("SelfTRPO", bound="TRPO")


class TRPO(PolicyOptimization):
    """
    Trust Region Policy Optimization, with the arguments of sb3-contrib's TRPO.

    Paper: https://arxiv.org/abs/1502.05477 (appendix C for conjugate gradient and Fisher-vector products)

    It differs from sb3-contrib's in three promises. ``target_kl`` bounds the joint KL(π_old‖π_θ) of the whole action in
    every action space (``kl_reduction="mean"`` gives sb3-contrib's scale); ``sub_sampling_factor`` thins only the
    Fisher-vector products; an update that cannot be made leaves the policy as it was, bit for bit, and the log has the reason.

    The critic's passes train only what the actor does not depend on, as in sb3-contrib: nothing of a features extractor that
    both share. Where it has weights (``CnnPolicy``, ``MultiInputPolicy``) give the critic one of its own by
    ``policy_kwargs=dict(share_features_extractor=False)``.

    The coefficients ``learning_rate``, ``target_kl`` and ``cg_damping`` are numbers, callables of ``progress_remaining``,
    or the string "lin_X" (from X linearly to 0).

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class
    :param env: the environment to learn from, or its registered name
    :param learning_rate: of the critic's optimizer
    :param n_steps: steps of each environment per update
    :param batch_size: transitions per minibatch of the critic
    :param gamma: discount γ in [0, 1]
    :param cg_max_steps: most iterations of the conjugate gradient method (T7)
    :param cg_damping: λ of F + λI in it
    :param line_search_shrinking_factor: β of T9 in [0, 1]
    :param line_search_max_iter: most candidates of T9
    :param n_critic_updates: passes of the critic over the rollout per update (T10)
    :param gae_lambda: λ of S4 in [0, 1]
    :param use_sde: whether to use generalised state-dependent exploration (gSDE)
    :param sde_sample_freq: steps between two draws of gSDE's noise matrix, -1 for one draw a rollout
    :param rollout_buffer_class: rollout buffer to use instead of SB3's
    :param rollout_buffer_kwargs: arguments for it
    :param normalize_advantage: whether to normalise the advantages of the rollout
    :param target_kl: radius δ of the trust region (T2) in nats
    :param sub_sampling_factor: use every n-th transition for the Fisher-vector products; 1 or less uses all
    :param stats_window_size: episodes over which the logged return is averaged
    :param tensorboard_log: folder for TensorBoard, None for none
    :param policy_kwargs: arguments for the policy
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: of all random generators
    :param device: "cpu", "cuda", "auto"; "auto" is the fastest for this model on this machine
        (:mod:`sb3_policyopt.setup.devices`)
    :param value_target: "td_lambda" | "td_zero" | "monte_carlo", what the critic is fitted to (T10)
    :param kl_reduction: "sum", the joint KL; "mean", its mean over the dimensions of a Box or MultiBinary action, as
        sb3-contrib measures it
    :param line_search: False takes the bare scaled step (T8) without checking KL or J
    :param engine: "auto" | "closed_form" | "hybrid" | "autograd", how the numbers are computed; "auto" takes the fastest that
        computes exactly what the policy's modules compute
    :param micro_batch_size: most samples that go through the networks at once, None for no bound
    :param log_std_bounds: lowest and highest log standard deviation of a Gaussian policy, None for no bounds
    :param check_observations: whether observations that are not finite raise :class:`sb3_policyopt.NonFiniteError`; False
        for those whose NaN the features extractor masks (what the networks return is checked all the same)
    :param sequence_length: most steps through which a policy with memory is differentiated, None for no limit but a minibatch
    :param _init_setup_model: whether to build the networks at once
    """

    coefficient_names: ClassVar[tuple[str, ...]] = ("target_kl", "cg_damping")
    bounds: ClassVar[dict[str, arguments.Bounds]] = {
        **PolicyOptimization.bounds,
        "target_kl": arguments.NOT_NEGATIVE,
        "cg_damping": arguments.NOT_NEGATIVE,
    }
    settings: ClassVar[Mapping[str, Check]] = {
        **PolicyOptimization.settings,
        "cg_max_steps": integer_from(1),
        "line_search_shrinking_factor": fraction,
        "line_search_max_iter": integer_from(0),
        "n_critic_updates": integer_from(0),
        "sub_sampling_factor": integer_from(None),
        "kl_reduction": one_of("sum", "mean"),
        "line_search": arguments.flag,
    }
    meant_by_stock: ClassVar[Mapping[str, object]] = {"kl_reduction": "mean"}
    cg_max_steps: int
    line_search_shrinking_factor: float
    line_search_max_iter: int
    n_critic_updates: int
    sub_sampling_factor: int
    kl_reduction: str
    line_search: bool
    hooks: ClassVar[tuple[str, ...]] = HOOKS["TRPO"]
    separates_critic: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: Coefficient = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: Coefficient = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: Coefficient = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        value_target: str = "td_lambda",
        kl_reduction: str = "sum",
        line_search: bool = True,
        engine: str = "auto",
        micro_batch_size: int | None = None,
        log_std_bounds: tuple[float, float] | None = None,
        check_observations: bool = True,
        sequence_length: int | None = None,
    ) -> None:
        refuse_methods_of_contrib(type(self))
        refuse_hooks_of_others(type(self), TRPO)
        self._take_settings(
            cg_max_steps=cg_max_steps,
            line_search_shrinking_factor=line_search_shrinking_factor,
            line_search_max_iter=line_search_max_iter,
            n_critic_updates=n_critic_updates,
            sub_sampling_factor=sub_sampling_factor,
            kl_reduction=kl_reduction,
            line_search=line_search,
        )
        self.target_kl: float
        self.cg_damping: float
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            coefficients={"target_kl": target_kl, "cg_damping": cg_damping},
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            value_target=value_target,
            engine=engine,
            micro_batch_size=micro_batch_size,
            log_std_bounds=log_std_bounds,
            check_observations=check_observations,
            sequence_length=sequence_length,
            _init_setup_model=_init_setup_model,
        )

    def _update_passes(self) -> list[Passes]:
        """The passes of one update, each through one network: g and a candidate, Fisher-vector products, the critic."""
        size = self.n_steps * self.n_envs
        actor, thin = Passes(2, size, 0.5), math.ceil(size / max(1, self.sub_sampling_factor))
        return [actor, Passes(self.cg_max_steps, thin, 0.5), Passes.over(size, self.batch_size, self.n_critic_updates, 0.5)]

    def train(self) -> None:
        """T11: one step of the policy to the border of the trust region, then the critic."""
        model = self.start_update()
        data = model.data(self.rollout_buffer, self.sequence_length)
        policy_terms = []
        if model.n_actor > 0:  # else the whole actor is frozen
            with buffers_kept(self.policy):
                for whole in data.whole():  # one, or as sb3-contrib a step for each that a buffer of the user's own yields
                    policy_terms.append(self._lead_policy_update(model, self.normalized(whole)))
            forget_distribution(self.policy)
        critic_terms = self.update_critic(model, data)
        self._n_updates += 1
        self.record_update({**mean_terms(policy_terms), **critic_terms})

    def _lead_policy_update(self, model: Model[ArrayT], batch: Batch[ArrayT]) -> Terms:
        """
        The policy update on the transitions of all processes. The graph that the trust region holds ends with it.

        :param model: whose actor's parameters are changed
        :param batch: all transitions of this process
        :return: what to log
        """
        try:
            with model.threads(batch.size):
                region = self.trust_region(model, batch)
                return self.team.lead(partial(self.update_policy, model), region, model.actor_parameters)
        finally:  # also what an interrupted line search restored
            model.flat.push()

    def trust_region(self, model: Model[ArrayT], batch: Batch[ArrayT]) -> LocalTrustRegion[ArrayT]:
        """
        T1-T5: J, g, F and KL at θ_old.

        :param model: computes them
        :param batch: all transitions of this process
        :return: valid until the parameters change; its ``evaluate`` also afterwards
        """
        self.policy.set_training_mode(False)  # dropout or batch statistics would make π_θ differ from itself
        return LocalTrustRegion(model, batch, self.surrogate, max(1, self.sub_sampling_factor))

    def update_policy(self, model: AnyModel, region: TrustRegion) -> Terms:
        """
        T1-T9: maximise gᵀΔ subject to ½ΔᵀFΔ ≤ δ, then shorten Δ until KL ≤ δ and J is up.

        :param model: whose actor's parameters are changed
        :param region: J, g, F v and KL at θ_old
        :return: what to log
        """
        d = self._kl_dimensions()
        δ, damping = self.target_kl * d, self.cg_damping * d
        g = region.gradient
        cg = region.solve(self.cg_max_steps, damping)  # F x = g, by conjugate gradient
        fisher_x = region.fisher(cg.x)
        α = step_scale(cg.x, fisher_x, δ)  # √(2δ / xᵀFx)

        def evaluate() -> tuple[float, float]:
            self.clamp_log_std(model.flat)
            return region.evaluate()

        search = backtracking_line_search(  # KL ≤ δ and J up, or θ_old bit for bit
            model.actor_parameters,
            α * cg.x,
            evaluate,
            surrogate_before=region.surrogate,
            delta=δ,
            shrinking_factor=self.line_search_shrinking_factor,
            max_iterations=self.line_search_max_iter,
            enforce=self.line_search,
        )
        reason = "non_finite" if cg.status == "non_finite" else search.reason
        return {
            "policy_objective": search.surrogate,
            "surrogate_improvement": search.surrogate - region.surrogate,
            "kl_divergence_loss": search.kl / d,
            "kl_predicted": predicted_kl(search.fraction * α * cg.x, search.fraction * α * fisher_x) / d,
            "target_kl": self.target_kl,
            "is_line_search_success": float(search.reason == "accepted"),
            "step_fraction": search.fraction,
            **{f"line_search_{refusal}": float(reason == refusal) for refusal in REFUSALS},
            "cg_iterations": cg.iterations,
            "cg_residual": cg.residual,
            "grad_norm": float(g @ g) ** 0.5,
        }

    def update_critic(self, model: AnyModel, data: RolloutData[ArrayT]) -> Terms:
        """
        T10: ``n_critic_updates`` passes of the critic's own optimizer; the actor's parameters get no gradient.

        :param model: computes the gradient of the value loss
        :param data: the rollout
        :return: what to log
        """
        self.policy.set_training_mode(True)
        objective, means = Objective.of(self.value_loss, critic_only=True, name="value_loss"), Means()
        with model.updating(self.batch_size, critic_only=True) as optimiser:
            gradient = self.team.gradient(model.gradient, model.flat, model.n_actor)
            for minibatches in self.passes(data, self.n_critic_updates):
                epoch = Means()
                for minibatch in minibatches:
                    terms = gradient(objective, minibatch)
                    step_terms = optimiser.step(math.inf, value_of(terms[objective.name]))
                    epoch.add({**terms, "skipped_updates": step_terms["skipped_updates"]})
                means.extend(epoch)
                self._skips.note(epoch.of("skipped_updates"))
        return means.reduce()

    def _kl_dimensions(self) -> int:
        """
        By how much the joint KL exceeds the one that ``target_kl`` is measured in.

        The mean over d dimensions is the sum over d, and so is its Hessian. A bound δ on the mean is the bound d·δ on
        the sum, and a damping λ of F/d is the damping d·λ of F: the direction is then the same, scaled by 1/d.

        :return: d for ``kl_reduction="mean"`` where sb3-contrib takes the mean, else 1
        """
        if self.kl_reduction == "mean" and isinstance(self.action_space, (spaces.Box, spaces.MultiBinary)):
            return spaces.flatdim(self.action_space)
        return 1

    @closed_form(surrogate_slopes, both_libraries=True)
    def surrogate(self, batch: Batch[th.Tensor], log_prob: th.Tensor) -> th.Tensor:
        """
        T1: J of a batch. Override it to change what TRPO maximises; autograd then computes its gradient.

        :param batch: transitions as tensors on the policy's device, advantages already normalised
        :param log_prob: ln π_θ(a|s), shape (batch,)
        :return: the scalar to maximise
        """
        ratio = losses.probability_ratio(log_prob, batch.old_log_prob)
        return cast(th.Tensor, losses.surrogate(ratio, batch.advantages))

    @closed_form(critic_slopes, both_libraries=True)
    def value_loss(self, batch: Batch[th.Tensor]) -> tuple[th.Tensor, Terms]:
        """
        T10: the critic's loss of a minibatch. Override it to change what the critic minimises.

        :param batch: transitions as tensors on the policy's device
        :return: the scalar to minimise, and scalar tensors to log (as means over the update)
        """
        return critic_loss(predict_values(self.policy, batch), batch)

    def learn(
        self: SelfTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTRPO:
        """See :meth:`PolicyOptimization.learn`."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def refuse_methods_of_contrib(algorithm: type[TRPO]) -> None:
    """
    A subclass that was written for sb3-contrib's TRPO may override methods that are never called here.

    :param algorithm: TRPO or a subclass
    :raises ValueError: if it has such a method
    """
    for name in ("hessian_vector_product", "_compute_actor_grad"):
        if hasattr(algorithm, name):
            raise ValueError(
                f"{algorithm.__name__}.{name}() overrides a method of sb3-contrib's TRPO, which is not called here. What it "
                "changes is changed here in trust_region(), which gives update_policy() the gradient and the Fisher-vector "
                "product; in surrogate() the objective"
            )

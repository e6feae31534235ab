"""PPO: the clipped surrogate objective with entropy bonus and value loss."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import FloatSchedule

from sb3_policyopt.maths.arrays import ArrayT, Scalar
from sb3_policyopt.maths.losses import ValueClipping
from sb3_policyopt.maths.terms import Means, Terms, value_of
from sb3_policyopt.models.policy_calls import evaluate_actions
from sb3_policyopt.objectives import Objective, PPOCoefficients, clipped_loss, clipped_slopes, closed_form
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.optimisation.optimiser import Optimiser
from sb3_policyopt.parallel.team import Gradient
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.setup import arguments
from sb3_policyopt.setup.arguments import Coefficient
from sb3_policyopt.setup.devices import Passes
from sb3_policyopt.setup.hooks import HOOKS, refuse_hooks_of_others
from sb3_policyopt.setup.settings import Check, integer_from, one_of

SelfPPO = TypeVar("SelfPPO", bound="PPO")


class PPO(PolicyOptimization):
    """
    Proximal Policy Optimization (clip version), with the arguments and the results of SB3's PPO.

    Paper: https://arxiv.org/abs/1707.06347

    Every coefficient (``learning_rate``, ``clip_range``, ``clip_range_vf``, ``ent_coef``, ``vf_coef``, ``max_grad_norm``,
    ``target_kl``) is a number, a callable of ``progress_remaining``, or the string "lin_X" (from X linearly to 0).

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class
    :param env: the environment to learn from, or its registered name
    :param learning_rate: of the policy's optimizer
    :param n_steps: steps of each environment per update (T of S5)
    :param batch_size: transitions per minibatch
    :param n_epochs: passes over the rollout per update (K of P6)
    :param gamma: discount γ in [0, 1]
    :param gae_lambda: λ of S4 in [0, 1]
    :param clip_range: ε of P2
    :param clip_range_vf: bound on the change of the value in units of the return, None for none
    :param normalize_advantage: whether to normalise the advantages of each minibatch
    :param ent_coef: c₁ of P5
    :param vf_coef: c₂ of P5
    :param max_grad_norm: bound on the gradient's norm
    :param use_sde: whether to use generalised state-dependent exploration (gSDE)
    :param sde_sample_freq: steps between two draws of gSDE's noise matrix, -1 for one draw a rollout
    :param rollout_buffer_class: rollout buffer to use instead of SB3's
    :param rollout_buffer_kwargs: arguments for it
    :param target_kl: stop the update where the approximate KL exceeds 1.5 times this, None for no such stop
    :param stats_window_size: episodes over which the logged return is averaged
    :param tensorboard_log: folder for TensorBoard, None for none
    :param policy_kwargs: arguments for the policy
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: of all random generators
    :param device: "cpu", "cuda", "auto"; "auto" is the fastest for this model on this machine
        (:mod:`sb3_policyopt.setup.devices`)
    :param value_target: "td_lambda" | "td_zero" | "monte_carlo", what the critic is fitted to (P4)
    :param value_clipping: "clipped" takes the error of the clipped value alone, as SB3; "pessimistic" takes the larger of
        the clipped and the unclipped error; only with ``clip_range_vf``
    :param kl_stop: "minibatch" stops in the middle of an epoch, on one minibatch's KL, as SB3; "epoch" stops after an
        epoch, on its mean KL; only with ``target_kl``
    :param engine: "auto" | "closed_form" | "hybrid" | "autograd", how the numbers are computed; "auto" takes the fastest that
        computes exactly what the policy's modules compute
    :param micro_batch_size: most samples that go through the networks at once, None for no bound
    :param log_std_bounds: lowest and highest log standard deviation of a Gaussian policy, None for no bounds
    :param check_observations: whether observations that are not finite raise :class:`sb3_policyopt.NonFiniteError`; False
        for those whose NaN the features extractor masks (what the networks return is checked all the same)
    :param sequence_length: most steps through which a policy with memory is differentiated, None for no limit but a minibatch
    :param _init_setup_model: whether to build the networks at once
    """

    coefficient_names: ClassVar[tuple[str, ...]] = ("ent_coef", "vf_coef", "max_grad_norm", "target_kl")
    bounds: ClassVar[dict[str, arguments.Bounds]] = {
        **PolicyOptimization.bounds,
        "clip_range": arguments.NOT_NEGATIVE_OR_INFINITE,
        "clip_range_vf": arguments.NOT_NEGATIVE_OR_INFINITE,
        "ent_coef": arguments.FINITE,
        "vf_coef": arguments.NOT_NEGATIVE,
        "max_grad_norm": arguments.NOT_NEGATIVE_OR_INFINITE,
        "target_kl": arguments.NOT_NEGATIVE_OR_INFINITE,
    }
    optional: ClassVar[tuple[str, ...]] = ("target_kl",)
    settings: ClassVar[Mapping[str, Check]] = {
        **PolicyOptimization.settings,
        "n_epochs": integer_from(1),
        "value_clipping": one_of("clipped", "pessimistic"),
        "kl_stop": one_of("minibatch", "epoch"),
    }
    n_epochs: int
    value_clipping: ValueClipping
    kl_stop: str
    hooks: ClassVar[tuple[str, ...]] = HOOKS["PPO"]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: Coefficient = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: Coefficient = 0.2,
        clip_range_vf: Coefficient | None = None,
        normalize_advantage: bool = True,
        ent_coef: Coefficient = 0.0,
        vf_coef: Coefficient = 0.5,
        max_grad_norm: Coefficient = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: Coefficient | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        value_target: str = "td_lambda",
        value_clipping: str = "clipped",
        kl_stop: str = "minibatch",
        engine: str = "auto",
        micro_batch_size: int | None = None,
        log_std_bounds: tuple[float, float] | None = None,
        check_observations: bool = True,
        sequence_length: int | None = None,
    ) -> None:
        refuse_hooks_of_others(type(self), PPO)
        self._take_settings(n_epochs=n_epochs, value_clipping=value_clipping, kl_stop=kl_stop)
        self.clip_range: Any = arguments.coefficient("clip_range", clip_range, self.bounds["clip_range"])
        self.clip_range_vf: Any = None
        if clip_range_vf is not None:
            self.clip_range_vf = arguments.coefficient("clip_range_vf", clip_range_vf, self.bounds["clip_range_vf"])
            if self.clip_range_vf == 0:
                raise ValueError("clip_range_vf must be greater than 0; pass None for no clipping of the value")
        self.target_kl: float | None
        normalize_advantage = arguments.flag("normalize_advantage", normalize_advantage)
        if normalize_advantage and arguments.integer("batch_size", batch_size) == 1:
            raise ValueError("batch_size must be greater than 1 to normalize advantages; or pass normalize_advantage=False")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            coefficients={"ent_coef": ent_coef, "vf_coef": vf_coef, "max_grad_norm": max_grad_norm, "target_kl": target_kl},
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

    def _setup_model(self) -> None:
        """Build the networks, the buffer and the clip schedules."""
        super()._setup_model()
        for name in ("clip_range", "clip_range_vf"):
            if (given := getattr(self, name)) is not None:
                self._schedule(name, given)

    def _schedule(self, name: str, given: arguments.Coefficient) -> None:
        """
        Set a clip range.

        :param name: of the clip range
        :param given: a number, a schedule, or "lin_X"
        :raises ValueError: if it makes no sense
        """
        setattr(self, name, FloatSchedule(arguments.coefficient(name, given, self.bounds[name])))

    def _update_passes(self) -> list[Passes]:
        """The passes of one update: all epochs."""
        return [Passes.over(self.n_steps * self.n_envs, self.batch_size, self.n_epochs)]

    def train(self) -> None:
        """P6: K epochs of minibatch steps along the gradient of the clipped objective."""
        self.policy.set_training_mode(True)
        model = self.start_update()
        objective = Objective.of(self.loss, self.current_coefficients())
        data = model.data(self.rollout_buffer, self.sequence_length)
        means = Means()
        with model.updating(self.batch_size) as optimiser:
            gradient = self.team.gradient(model.gradient, model.flat)
            for minibatches in self.passes(data, self.n_epochs, normalized=True):
                epoch = self.run_epoch(objective, minibatches, gradient, optimiser)
                means.extend(epoch)
                self._n_updates += 1
                self._skips.note(epoch.of("skipped_updates"))
                if self.ends_update(epoch):
                    break
        self.record_update(means.reduce())

    def run_epoch(
        self,
        objective: Objective,
        minibatches: Iterator[Batch[ArrayT]],
        gradient: Gradient[Batch[ArrayT]],
        optimiser: Optimiser,
    ) -> Means:
        """
        One pass over the rollout.

        :param objective: −L of P5
        :param minibatches: the rollout, shuffled and cut
        :param gradient: computes the objective's gradient on a minibatch
        :param optimiser: makes the steps
        :return: the terms of each minibatch; the last one was not stepped on if its KL was too large
        """
        epoch = Means()
        for minibatch in minibatches:
            terms = gradient(objective, minibatch)  # ∇(−L), P1-P5
            epoch.add(terms)
            if self.kl_stop == "minibatch" and self.ends_update(epoch):
                break
            epoch.add(optimiser.step(self.max_grad_norm, value_of(terms[objective.name])))
            self.clamp_log_std(optimiser.flat)
        return epoch

    def current_coefficients(self) -> PPOCoefficients:
        """
        The numbers of P5 where training stands, logged.

        :return: ε, c₁, c₂ and the value clipping
        """
        clip_range = self._clipping("clip_range")
        self.logger.record("train/clip_range", clip_range)
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self._clipping("clip_range_vf")
            self.logger.record("train/clip_range_vf", clip_range_vf)
        return PPOCoefficients(clip_range, clip_range_vf, self.value_clipping, self.ent_coef, self.vf_coef)

    def _clipping(self, name: str) -> float:
        """
        A clip range where training stands.

        :param name: of the schedule, or of a number or "lin_X" that was assigned since
        :return: its value
        """
        if not callable(given := getattr(self, name)):
            self._schedule(name, given)
        return self._in_bounds(name, getattr(self, name)(self._current_progress_remaining))

    def ends_update(self, epoch: Means) -> bool:
        """
        Whether the update should end.

        :param epoch: the terms so far: "approx_kl" of the last minibatch counts, with ``kl_stop="epoch"`` that of all
        :return: see :meth:`too_far`
        :raises ValueError: if ``target_kl`` is set and :meth:`loss` gave no such term
        """
        if self.target_kl is None:
            return False
        if not epoch.of("approx_kl"):
            raise ValueError("target_kl needs 'approx_kl' among the terms that loss() returns; add it, or pass target_kl=None")
        return self.too_far(epoch.of("approx_kl")[-1] if self.kl_stop == "minibatch" else epoch.reduced("approx_kl"))

    def too_far(self, approx_kl: Scalar) -> bool:
        """
        Whether the policy has moved too far from the one that collected the rollout.

        :param approx_kl: a scalar in nats
        :return: True if it exceeds 1.5 ``target_kl``; a NaN counts as too far
        """
        return self.target_kl is not None and not float(approx_kl) <= 1.5 * self.target_kl

    @closed_form(clipped_slopes, both_libraries=True)
    def loss(self, batch: Batch[th.Tensor], coefficients: PPOCoefficients) -> tuple[th.Tensor, Terms]:
        """
        P5: −L of a minibatch. Override it to change what PPO optimises. Autograd then computes its gradient, or slopes that
        the decorator :func:`sb3_policyopt.objectives.closed_form` names.

        :param batch: transitions as tensors on the policy's device, advantages already normalised
        :param coefficients: ε, c₁, c₂ and the value clipping of this update
        :return: the scalar to minimise, and scalar tensors to log (as means over the update)
        """
        values, log_prob, entropy = evaluate_actions(self.policy, batch)
        return clipped_loss(values, log_prob, entropy, batch, coefficients)

    def learn(
        self: SelfPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "PPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPPO:
        """See :meth:`PolicyOptimization.learn`."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

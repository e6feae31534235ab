"""What PPO and TRPO share as SB3 algorithms: arguments, coefficients, the engine, the loop T11/P6 and its metrics."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt import update_log
from sb3_policyopt.global_state import arithmetic_of_updates, training_modes
from sb3_policyopt.maths.arrays import ArrayT
from sb3_policyopt.maths.losses import explained_variance
from sb3_policyopt.maths.terms import Terms, value_of
from sb3_policyopt.models import AnyModel, choose_model, with_whole_actor
from sb3_policyopt.objectives.objective import has_slopes
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.optimisation.skipping import SkipCounter
from sb3_policyopt.parallel import Team, current_team
from sb3_policyopt.rollout import env_workers
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.buffers import real_observation, samples_itself
from sb3_policyopt.rollout.collect import collect
from sb3_policyopt.rollout.minibatches import RolloutData
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer, values_and_returns
from sb3_policyopt.rollout.tensors.collect import collect_tensors
from sb3_policyopt.rollout.tensors.env import is_tensor_env
from sb3_policyopt.setup import arguments
from sb3_policyopt.setup.coefficients import Scheduled
from sb3_policyopt.setup.kinds import WithMasksAndMemory, suited_to_policy
from sb3_policyopt.setup.placement import Placed
from sb3_policyopt.setup.policies import check_policy
from sb3_policyopt.setup.settings import Checked

SelfPolicyOptimization = TypeVar("SelfPolicyOptimization", bound="PolicyOptimization")

DEFAULTS = {"use_sde": False, "sde_sample_freq": -1, "stats_window_size": 100, "verbose": 0, "seed": None, "device": "auto"}
"""Of SB3's arguments, for algorithms that do not name them."""

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class PolicyOptimization(Checked, Scheduled, WithMasksAndMemory, Placed):
    """
    Base class of :class:`sb3_policyopt.PPO` and :class:`sb3_policyopt.TRPO`.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class
    :param env: the environment to learn from, or its registered name; None to load a model without one
    :param learning_rate: of the optimizer; like every coefficient a number, a callable of ``progress_remaining``, or the
        string "lin_X" (from X linearly to 0)
    :param n_steps: steps of each environment per update (T of S5)
    :param batch_size: transitions per minibatch
    :param gamma: discount γ in [0, 1]
    :param gae_lambda: λ of S4 in [0, 1]
    :param normalize_advantage: whether advantages are scaled to mean 0 and standard deviation 1
    :param value_target: "td_lambda" | "td_zero" | "monte_carlo", what the critic is fitted to (T10, P4)
    :param engine: "auto" | "closed_form" | "hybrid" | "autograd", how the numbers are computed; "auto" takes the fastest that
        computes exactly what the policy's modules compute; ``engine_in_use.reason`` is the reason for the choice
    :param micro_batch_size: most samples that go through the networks at once (a bound on memory; the result is the same
        to rounding, except with BatchNorm or Dropout); None for no bound
    :param log_std_bounds: lowest and highest log standard deviation of a Gaussian policy, None for no bounds
    :param check_observations: whether observations that are not finite raise :class:`sb3_policyopt.NonFiniteError`; False
        for those whose NaN the features extractor masks (what the networks return is checked all the same)
    :param sequence_length: most steps through which a policy with memory is differentiated; longer sequences are cut, each
        piece with the states that were stored before it. None cuts nowhere but at episode starts and minibatches
    :param coefficients: further coefficients by name, see ``coefficient_names``
    :param options: SB3's other arguments, passed on
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument's value makes no sense; the message names it
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    hooks: ClassVar[tuple[str, ...]] = ()
    """Methods that say what is optimised; an override, or one without a closed form, sends the computation to autograd."""
    action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = ACTION_SPACES
    """Kinds of actions that it can choose."""
    separates_critic: ClassVar[bool] = False
    """Whether the algorithm steps actor and critic by themselves, so that their parameters have to be separated."""

    policy: ActorCriticPolicy
    rollout_buffer: RolloutBuffer

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        learning_rate: arguments.Coefficient,
        n_steps: int,
        batch_size: int,
        gamma: float,
        gae_lambda: float,
        normalize_advantage: bool = True,
        value_target: str = "td_lambda",
        engine: str = "auto",
        micro_batch_size: int | None = None,
        log_std_bounds: tuple[float, float] | None = None,
        check_observations: bool = True,
        sequence_length: int | None = None,
        coefficients: dict[str, arguments.Coefficient | None] | None = None,
        _init_setup_model: bool = True,
        **options: Any,
    ) -> None:
        check_policy(policy, type(self).__name__)
        if env is None and _init_setup_model:
            raise ValueError("env is None: pass an environment or its name; only a model that is loaded can do without one")
        self._take_settings(
            batch_size=batch_size,
            normalize_advantage=normalize_advantage,
            value_target=value_target,
            engine=engine,
            micro_batch_size=micro_batch_size,
            log_std_bounds=log_std_bounds,
            check_observations=check_observations,
            sequence_length=sequence_length,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        options = {**DEFAULTS, **options}
        options |= arguments.passed_on(options)
        options["verbose"] = options["verbose"] if self.team.rank == 0 else 0
        self.engine_in_use: AnyModel | None = None
        self._skips = SkipCounter()
        self._n_iterations = 0
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # SB3 takes None too, when it loads a model without an environment
            learning_rate=arguments.coefficient("learning_rate", learning_rate, self.bounds["learning_rate"]),
            n_steps=self.n_steps,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            supported_action_spaces=self.action_spaces,
            _init_setup_model=False,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=0.0,
            **options,
        )
        self._take_coefficients(coefficients or {})
        if self.env is not None:
            arguments.check_batches(self.n_steps, self.env.num_envs, self.batch_size, self.normalize_advantage)
        if _init_setup_model:
            self._setup_model()

    @property
    def team(self) -> Team:
        """The processes that train together; one by itself without a launcher."""
        return current_team()

    @property
    def n_iterations(self) -> int:
        """Complete iterations (rollout and update) of the current or last call of :meth:`learn`; a resumed run counts on."""
        return self._n_iterations

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed all random generators and the environments, differently on every rank.

        :param seed: the same on every rank; None for none
        """
        self._seed_given = seed  # until the ranks know each other's n_envs
        super().set_random_seed(self.team.seed(seed, self.n_envs))

    def _setup_model(self) -> None:
        """Build the networks and the buffer, and set scheduled coefficients to their first value."""
        self._check_settings()  # others may have been loaded
        self.learning_rate = arguments.coefficient("learning_rate", self.learning_rate, self.bounds["learning_rate"])
        with suited_to_policy(self, self.sequence_length):
            super()._setup_model()
        self._update_coefficients()

    # ------------------------------------------------------------------ engine

    def prepare_engine(self) -> AnyModel:
        """
        The model for the policy as it is now; a new one if the policy, its parameters or their freezing changed.

        :return: the model, also in ``engine_in_use``
        """
        before = self.engine_in_use.reason if self.engine_in_use is not None else ""
        engine = self.engine_in_use = choose_model(
            self.policy,
            self.engine,
            self.micro_batch_size,
            self.autograd_hooks(),
            self.engine_in_use,
            real_observation(self._last_obs, self.rollout_buffer) if self.separates_critic else None,
        )
        engine.reason += f"; on {self.device}: {self.device_reason}"
        if engine.recorder is not None and (graphs := engine.recorder.reason()):
            engine.reason += f"; {graphs}"
        if self.verbose >= 1 and engine.reason != before:
            print(f"Engine: {engine.name} ({engine.reason})")
        return engine

    def current_engine(self) -> AnyModel:
        """
        The model in the middle of a rollout; a new one if a callback or an environment changed the policy since the last step.

        :return: the model, also in ``engine_in_use``
        """
        engine = self.engine_in_use
        if engine is None or engine.policy is not self.policy or not engine.fits():
            return self.prepare_engine()
        return engine

    def autograd_hooks(self) -> list[str]:
        """
        What only autograd can honour: hooks that a subclass, or the user on this object, replaced, and a buffer that
        makes its own samples.

        :return: their names
        """
        changed = [name for name in self.hooks if not has_slopes(getattr(self, name), self.device)]
        return [*changed, "rollout_buffer.get"] if samples_itself(self.rollout_buffer) else changed

    # ------------------------------------------------------------------ the loop

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        S5: see :mod:`sb3_policyopt.rollout.collect`, and :mod:`sb3_policyopt.rollout.tensors.collect` for tensors.

        :param env: the training environments
        :param callback: called at the start, after each step and at the end
        :param rollout_buffer: filled with n_rollout_steps × n_envs transitions
        :param n_rollout_steps: steps of each environment
        :return: False if the callback asked to stop
        """
        self._check_settings()  # others may have been assigned
        self.clamp_log_std()  # a π_old out of bounds would be outside of every trust region
        if isinstance(rollout_buffer, TensorRolloutBuffer) and is_tensor_env(env):
            return collect_tensors(self, env, callback, rollout_buffer, n_rollout_steps, self.team)
        return collect(self, env, callback, rollout_buffer, n_rollout_steps, self.team)

    def learn(
        self: SelfPolicyOptimization,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPolicyOptimization:
        """
        T11, P6: collect → advantages → update → discard → repeat. Unlike SB3's loop this one logs after the update, so
        that a row of the log holds a rollout and the update made from it, and the last update is written too. What an
        update recorded stays in ``logger.name_to_value`` during the next rollout, as in SB3.

        :param total_timesteps: environment steps to train for, of all environments together
        :param callback: called during training
        :param log_interval: iterations between two logs
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: False continues the count (and the schedules) of an earlier call
        :param progress_bar: whether to show one
        :return: the trained model, itself
        :raises ValueError: if the model has no environment, or an argument makes no sense
        :raises RankLostError: if another rank of a distributed training failed or is gone
        """
        arguments.check_learning(self.env, total_timesteps, callback, log_interval)
        with training_modes(), self.team.training(self), env_workers.guarded(self):
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
            iteration = self._n_iterations = 0
            callback.on_training_start(locals(), globals())
            assert self.env is not None
            while self.num_timesteps < total_timesteps:
                if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
                    break
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                with update_log.recording(self.logger), arithmetic_of_updates():
                    self.train()
                self.team.keep_together(self)
                self._n_iterations += 1
                if log_interval is not None and self._n_iterations % log_interval == 0:
                    with update_log.readable_after(self.logger):
                        self.dump_logs(self._n_iterations)
            callback.on_training_end()
        return self

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """
        The callbacks that run on this rank.

        :param callback: the user's
        :param progress_bar: whether to show one
        :return: one callback that calls them
        """
        return super()._init_callback(*self.team.callbacks(callback, progress_bar))

    # ------------------------------------------------------------------ pieces of an update

    def start_update(self) -> AnyModel:
        """
        Bring model, learning rate and coefficients to where training stands, and log the latter.

        :return: the model
        """
        self._check_settings()  # others may have been assigned
        engine = with_whole_actor(self.prepare_engine(), self.rollout_buffer if self.separates_critic else None, self.engine)
        model = self.engine_in_use = self.team.with_same_layout(engine)
        self._update_learning_rate(self.policy.optimizer)
        for name, value in self._update_coefficients().items():
            self.logger.record(f"train/{name}", value)
        return model

    def passes(self, data: RolloutData[ArrayT], n_passes: int, normalized: bool = False) -> Iterator[Iterator[Batch[ArrayT]]]:
        """
        Passes over the rollout in shuffled minibatches.

        :param data: of :meth:`sb3_policyopt.models.Model.data`
        :param n_passes: number of passes
        :param normalized: whether to normalise advantages, if they are to be at all
        :return: the minibatches of each pass
        """
        return self.team.passes(data, self.batch_size, n_passes, normalized and self.normalize_advantage)

    def normalized(self, batch: Batch[ArrayT]) -> Batch[ArrayT]:
        """
        The batch with advantages normalised, if the algorithm normalises them.

        :param batch: transitions
        :return: the same with normalised advantages, if they are to be
        """
        return batch.with_advantages(self.team.normalize(batch.advantages)) if self.normalize_advantage else batch

    def clamp_log_std(self, flat: FlatParameters | None = None) -> None:
        """
        Hold the policy's log standard deviation within ``log_std_bounds``, if there are any.

        :param flat: holds the parameters as they are now; None if the policy does
        """
        log_std = getattr(self.policy, "log_std", None)
        if self.log_std_bounds is None or log_std is None:
            return
        if flat is not None:
            flat.push()
        with th.no_grad():
            log_std.clamp_(*self.log_std_bounds)
        if flat is not None:
            flat.pull()

    def record_update(self, terms: Terms) -> None:
        """
        Log the terms of an update under ``train/``, with what both algorithms log.

        :param terms: reduced over the update, by name
        """
        values, returns = values_and_returns(self.rollout_buffer)
        logged = {name: value_of(term) for name, term in self.team.reduce_maxima(terms).items()}
        logged["explained_variance"] = explained_variance(values, returns, self.team.variances)
        if isinstance(getattr(self.policy, "log_std", None), th.Tensor):
            std = th.exp(self.policy.log_std.detach())
            logged["std"], logged["std_min"] = std.mean().item(), std.min().item()
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    # ------------------------------------------------------------------ saving

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the engine, which is made anew from the policy: for ``pickle`` and ``copy.deepcopy``."""
        return {**vars(self), "engine_in_use": None}

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Write a zip that stock SB3 opens. Of several ranks rank 0 writes it; between two trainings the others wait for that.

        :param path: a file, its name, or a buffer
        :param exclude: attributes to leave out
        :param include: attributes to write although they would be left out
        """
        if isinstance(path, io.BufferedIOBase):
            return super().save(path, exclude, include)
        with self.team.saving():
            if self.team.rank == 0:
                super().save(path, exclude, include)

    def _excluded_save_params(self) -> list[str]:
        """The engine is made anew from the policy, so it stays out of the zip, which stock SB3 must be able to open."""
        ours = ("engine_in_use", "_skips", "_seed_given", "_last_lstm_states", "_last_action_masks")
        return [*super()._excluded_save_params(), *ours]

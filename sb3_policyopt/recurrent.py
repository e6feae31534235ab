"""RecurrentPPO with sb3-contrib's arguments, and the same for TRPO: policies with memory (R1, R2)."""

from typing import Any, TypeVar

from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.ppo import PPO
from sb3_policyopt.setup.arguments import Coefficient
from sb3_policyopt.trpo import TRPO

SelfRecurrent = TypeVar("SelfRecurrent", bound="_Recurrent")


class _Recurrent(PolicyOptimization):
    """An algorithm whose policies have memory."""

    def _setup_model(self) -> None:
        """
        Build the networks and the buffer.

        :raises ValueError: if the policy has no memory
        """
        if not kind_of(self.policy_class).memory:
            raise ValueError(
                f"policy: {type(self).__name__} trains policies with memory, such as MlpLstmPolicy, CnnLstmPolicy and "
                f"MultiInputLstmPolicy, and {self.policy_class.__name__} has none"
            )
        super()._setup_model()

    def learn(
        self: SelfRecurrent,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRecurrent:
        """
        See :meth:`PolicyOptimization.learn`.

        :param total_timesteps: environment steps to train for, of all environments together
        :param callback: called during training
        :param log_interval: iterations between two logs
        :param tb_log_name: name of the run in TensorBoard, by default that of the class
        :param reset_num_timesteps: False continues the count (and the schedules) of an earlier call
        :param progress_bar: whether to show one
        :return: the trained model, itself
        """
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)


class RecurrentPPO(_Recurrent, PPO):
    """
    PPO for policies with memory: sb3-contrib's RecurrentPPO, its arguments, defaults and results.

    :param policy: "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy" or a class
    :param env: the environment to learn from, or its registered name
    :param options: see :class:`sb3_policyopt.PPO`, whose arguments stand here in sb3-contrib's order
    """

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        learning_rate: Coefficient = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
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
        target_kl: Coefficient | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "auto",
        _init_setup_model: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
            **options,
        )


class RecurrentTRPO(_Recurrent, TRPO):
    """
    TRPO for policies with memory. The trust region is conditional on the states that were stored in the rollout: the KL
    divergence is that of the actions given these states, as what the new policy would have remembered is not known.

    :param policy: "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy" or a class
    :param env: the environment to learn from, or its registered name
    :param options: see :class:`sb3_policyopt.TRPO`
    """

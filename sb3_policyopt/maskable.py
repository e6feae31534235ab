"""MaskablePPO with sb3-contrib's arguments, and the same for TRPO: policies whose actions masks may forbid (M1)."""

from typing import Any, ClassVar, TypeVar

from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.ppo import PPO
from sb3_policyopt.setup.arguments import Coefficient
from sb3_policyopt.trpo import TRPO

SelfMaskable = TypeVar("SelfMaskable", bound="_Maskable")


class _Maskable(PolicyOptimization):
    """An algorithm whose policies have masks, so that their names need not say it, and which can leave the masks out."""

    action_spaces: ClassVar[tuple[type[spaces.Space[Any]], ...]] = (
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )

    def _setup_model(self) -> None:
        """
        Build the networks and the buffer.

        :raises ValueError: if the policy takes no masks
        """
        if not kind_of(self.policy_class).masks:
            raise ValueError(
                f"policy: {type(self).__name__} trains policies with masks, subclasses of sb3_contrib's "
                f"MaskableActorCriticPolicy or names such as MlpPolicy, and {self.policy_class.__name__} takes none"
            )
        super()._setup_model()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        """
        The class of a policy with masks.

        :param policy_name: such as "MlpPolicy" or "MaskableMlpPolicy"
        :return: the class
        """
        prefix = "" if policy_name.startswith("Maskable") else "Maskable"
        return super()._get_policy_from_name(prefix + policy_name)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool | None = None,
    ) -> bool:
        """
        See :meth:`PolicyOptimization.collect_rollouts`.

        :param env: the training environments
        :param callback: called at the start, after each step and at the end
        :param rollout_buffer: filled with n_rollout_steps × n_envs transitions
        :param n_rollout_steps: steps of each environment
        :param use_masking: whether to use masks; None for what :meth:`learn` was told
        :return: False if the callback asked to stop
        """
        if use_masking is not None:
            self.use_masking = use_masking
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def learn(  # type: ignore[override]  # sb3-contrib has use_masking before progress_bar
        self: SelfMaskable,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskable:
        """
        See :meth:`PolicyOptimization.learn`.

        :param total_timesteps: environment steps to train for, of all environments together
        :param callback: called during training
        :param log_interval: iterations between two logs
        :param tb_log_name: name of the run in TensorBoard, by default that of the class
        :param reset_num_timesteps: False continues the count (and the schedules) of an earlier call
        :param use_masking: whether to use masks
        :param progress_bar: whether to show one
        :return: the trained model, itself
        """
        self.use_masking = use_masking
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)


class MaskablePPO(_Maskable, PPO):  # type: ignore[misc]  # sb3-contrib has use_masking before progress_bar
    """
    PPO with masks: sb3-contrib's MaskablePPO, its arguments, defaults and results.

    Paper: https://arxiv.org/abs/2006.14171

    The masks come from the VecEnv's own ``action_masks()``, else from the environments' method of that name, else from
    ``info["action_mask"]``.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a class; "MlpLstmPolicy" has memory, too
    :param env: the environment to learn from, or its registered name
    :param options: see :class:`sb3_policyopt.PPO`, whose arguments stand here in sb3-contrib's order
    """

    def __init__(
        self,
        policy: Any,
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
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
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
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
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


class MaskableTRPO(_Maskable, TRPO):  # type: ignore[misc]  # the same
    """
    TRPO with masks. The trust region is that of the policy with its masks: KL and Fisher matrix are those of the allowed
    actions.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a class; "MlpLstmPolicy" has memory, too
    :param env: the environment to learn from, or its registered name
    :param options: see :class:`sb3_policyopt.TRPO`
    """

"""The seam between the algorithms and how their numbers are computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.engines.parameters import FlatAdam, FlatParameters
from sb3_policyopt.maths.losses import ValueClipping, normalize

Terms: TypeAlias = dict[str, Any]
"""Scalars of one minibatch, by the name under which their mean over the update is logged."""


class Batch(NamedTuple):
    """
    Transitions in an engine's own arrays: NumPy for the closed form, torch tensors on the policy's device for autograd.

    The names are those of SB3's ``RolloutBufferSamples``. Every array has the shape (batch, ...).
    """

    observations: Any
    actions: Any
    old_values: Any
    old_log_prob: Any
    advantages: Any
    returns: Any

    def rows(self, index: Any) -> "Batch":
        """
        Some of the transitions.

        :param index: a slice, or row numbers
        :return: the batch of those rows
        """
        observations, *rest = self
        if isinstance(observations, dict):
            observations = {key: value[index] for key, value in observations.items()}
        else:
            observations = observations[index]
        return Batch(observations, *(array[index] for array in rest))

    def normalized(self) -> "Batch":
        """The same with advantages of mean 0 and standard deviation 1."""
        return self._replace(advantages=normalize(self.advantages))

    @property
    def size(self) -> int:
        """Number of transitions."""
        return len(self.old_log_prob)


@dataclass(frozen=True)
class PPOCoefficients:
    """
    The numbers of P5 for one update.

    :param clip_range: ε of P2
    :param clip_range_vf: bound on the change of the value, None for none
    :param value_clipping: what the bound does, see :func:`sb3_policyopt.maths.losses.value_loss`
    :param ent_coef: c₁
    :param vf_coef: c₂
    """

    clip_range: float
    clip_range_vf: float | None
    value_clipping: ValueClipping
    ent_coef: float
    vf_coef: float


@dataclass(frozen=True)
class Expansion:
    """
    The problem of T6 at θ_old: maximise gᵀΔ subject to ½ΔᵀFΔ ≤ δ.

    :param surrogate: J(θ_old)
    :param gradient: g, shape (n_actor,)
    :param fisher: v ↦ F v, undamped, both of shape (n_actor,); valid until the parameters change
    :param old: the distributions π_old, in a form that :meth:`Engine.surrogate_and_kl` understands
    """

    surrogate: float
    gradient: Any
    fisher: Callable[[Any], Any]
    old: Any


class Engine(ABC):
    """
    Answers the algorithms' questions of mathematics about one policy.

    The engine holds the policy's trainable parameters in one flat vector, actor first: ``parameters[:n_actor]`` is what
    the actor's distribution depends on (with everything it shares with the critic), the rest moves the critic only.

    :param policy: the policy whose numbers are computed
    :param actor: the parameters that the action distribution depends on
    :param critic: the parameters that only the value depends on
    """

    name: ClassVar[str]

    def __init__(self, policy: ActorCriticPolicy, actor: list[nn.Parameter], critic: list[nn.Parameter]) -> None:
        self.policy = policy
        self.flat = FlatParameters(actor + critic)
        self.n_actor = self.flat.offsets[len(actor)]
        self._actor_count = len(actor)
        self._adam: dict[bool, FlatAdam] = {}
        self._fused: FlatAdam | None = None
        self._stepped_gradient = self.flat.gradient

    @property
    def actor_parameters(self) -> th.Tensor:
        """θ, the actor's stretch of the flat vector, shape (n_actor,); writing to it changes the policy."""
        return self.flat.vector[: self.n_actor]

    # ------------------------------------------------------------------ rollout

    @abstractmethod
    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """
        Prepare to act, and draw what randomness can be drawn at once.

        :param n_steps: number of steps to come
        :param n_envs: number of environments
        """

    @abstractmethod
    def act(self, observations: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """
        Sample actions for one step of all environments.

        :param observations: as the VecEnv gives them, first axis n_envs
        :return: actions, shape (n_envs, *action_shape); V(s), shape (n_envs,); ln π(a|s), shape (n_envs,)
        """

    @abstractmethod
    def value(self, observations: Any) -> np.ndarray[Any, Any]:
        """
        V(s).

        :param observations: as the VecEnv gives them, first axis n
        :return: float32, shape (n,)
        """

    # ------------------------------------------------------------------ update

    @abstractmethod
    def load(self, buffer: RolloutBuffer) -> Batch:
        """
        The whole rollout, moved into the engine's arrays once.

        :param buffer: a full rollout buffer
        :return: all transitions, those of the first environment first, as SB3's ``swap_and_flatten`` orders them
        """

    def minibatches(self, rollout: Batch, batch_size: int, normalized: bool = False) -> Iterator[Batch]:
        """
        P6: shuffle, then cut; one ``np.random.permutation`` a pass, as SB3's buffer draws it.

        :param rollout: all transitions
        :param batch_size: transitions a minibatch; the last one may be smaller
        :param normalized: whether to normalise the advantages of each by themselves
        :return: the minibatches
        """
        order = self._index(np.random.permutation(rollout.size))
        for start in range(0, rollout.size, batch_size):
            batch = rollout.rows(order[start : start + batch_size])
            yield batch.normalized() if normalized else batch

    def _index(self, order: np.ndarray[Any, Any]) -> Any:
        """
        Row numbers as the engine's arrays want them.

        :param order: row numbers
        :return: the same for the engine's arrays
        """
        return order

    @abstractmethod
    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """
        P5: the gradient of −L, left in ``flat.gradient`` (and so in every parameter's ``grad``).

        :param minibatch: transitions whose advantages are already normalised, if they are to be
        :param coefficients: ε, c₁, c₂ and the value clipping
        :return: the terms of the loss and its diagnostics
        """

    @abstractmethod
    def value_gradient(self, minibatch: Batch) -> Terms:
        """
        T10: the gradient of the value loss with respect to the critic's own parameters, left in ``flat.gradient``.

        :param minibatch: transitions
        :return: the value loss
        """

    @abstractmethod
    def expansion(self, rollout: Batch, thinning: int = 1) -> Expansion:
        """
        T3, T4: J to first order and the KL to second order, at the current parameters.

        :param rollout: transitions
        :param thinning: use every n-th transition for the Fisher matrix, and only for it
        :return: J, g, F and π_old
        """

    @abstractmethod
    def surrogate_and_kl(self, rollout: Batch, old: Any) -> tuple[float, float]:
        """
        T1, T2: J and the joint KL(π_old‖π_θ) at the current parameters.

        :param rollout: transitions
        :param old: ``expansion(rollout).old`` from θ_old
        :return: J, and the KL in nats
        """

    def serves(self, trainable: list[nn.Parameter]) -> bool:
        """
        Whether the engine is still right for its policy.

        :param trainable: the policy's parameters that require a gradient
        :return: False once a parameter was replaced, added, frozen or moved
        """
        known = {id(parameter) for parameter in self.flat.parameters}
        return {id(parameter) for parameter in trainable} == known and self.flat.is_bound()

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[None]:
        """
        Around a series of :meth:`step`: bind gradients and optimizer state before, and show the state after.

        :param batch_size: transitions per minibatch
        :param critic_only: True if only the critic's own parameters will be stepped
        """
        first = self._actor_count if critic_only else 0
        self.flat.bind_gradients(first)
        self._forget_foreign_gradients()
        self._stepped_gradient = self.flat.gradient[self.flat.offsets[first] :]
        self._fused = None
        if FlatAdam.suits(self.policy.optimizer) and self._owns_all_of_optimizer():
            adam = self._adam.get(critic_only)
            if adam is None or adam.optimizer is not self.policy.optimizer:
                adam = FlatAdam(self.policy.optimizer, self.flat, first, len(self.flat.parameters))
                self._adam[critic_only] = adam
            if len(adam.parameters) and adam.prepare():
                self._fused = adam
        try:
            yield
        finally:
            if self._fused is not None:
                self._fused.finish()
            # It would keep the last graph alive, and the policy could not be deep-copied.
            self.policy.action_dist.distribution = None  # type: ignore[assignment]

    def _forget_foreign_gradients(self) -> None:
        """Drop the gradients of parameters frozen since the last update, along which the optimizer would still step."""
        mine = {id(parameter) for parameter in self.flat.parameters}
        for group in self.policy.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in mine:
                    parameter.grad = None

    def _owns_all_of_optimizer(self) -> bool:
        """
        Whether the optimizer steps all parameters of the flat vector.

        :return: True if so
        """
        theirs = {id(parameter) for group in self.policy.optimizer.param_groups for parameter in group["params"]}
        return {id(parameter) for parameter in self.flat.parameters} <= theirs

    def step(self, max_norm: float, loss: Any) -> Terms:
        """
        Clip the gradient and make one step of the policy's optimizer, unless loss or gradient is not finite: parameters
        and moments then stay as they are. Nothing here waits for the device.

        :param max_norm: bound on the gradient's Euclidean norm, as in ``torch.nn.utils.clip_grad_norm_``; may be infinite
        :param loss: the loss whose gradient it is, a scalar
        :return: the norm before clipping, and whether the step was skipped (0 or 1)
        """
        gradient = self._stepped_gradient
        norm = th.linalg.vector_norm(gradient)
        skipped = (~(th.isfinite(norm) & th.isfinite(loss))).to(norm.dtype)
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        if self._fused is not None:
            self._fused.step(skipped)
        elif not skipped:
            self.policy.optimizer.step()
        return {"grad_norm": norm, "skipped_updates": skipped}

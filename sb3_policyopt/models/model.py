"""The seam between the algorithms and how their numbers are computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.maths.losses import ValueClipping, normalize
from sb3_policyopt.optimisation.adam import FlatAdam
from sb3_policyopt.optimisation.flat_parameters import FlatParameters

Terms: TypeAlias = dict[str, Any]
"""Scalars of one minibatch, by the name under which their mean over the update is logged."""


_WITH_CLOSED_FORM: set[Any] = set()

HookT = TypeVar("HookT", bound=Callable[..., Any])


def in_closed_form(hook: HookT) -> HookT:
    """
    Mark a hook of an algorithm as one whose gradient engines know as a formula.

    :param hook: the method as it is defined in its class
    :return: the same method
    """
    _WITH_CLOSED_FORM.add(hook)
    return hook


def has_closed_form(hook: Any) -> bool:
    """
    Whether a hook is a marked one, by identity: an override in a subclass or on the object is not.

    :param hook: a bound method
    :return: True if so
    """
    return getattr(hook, "__func__", None) in _WITH_CLOSED_FORM


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
    reason: str = ""
    """Why this engine serves the policy, in words."""

    def __init__(self, policy: ActorCriticPolicy, actor: list[nn.Parameter], critic: list[nn.Parameter]) -> None:
        self.policy = policy
        self.flat = FlatParameters(actor + critic)
        self.n_actor = self.flat.offsets[len(actor)]
        self._actor_count = len(actor)
        self._adam: dict[bool, FlatAdam] = {}
        self._fused: FlatAdam | None = None
        self._first = 0
        self._stepped_gradient = self.flat.gradient
        self._without_gradient: set[int] = set()
        self._moments_checked = False  # since code that is not ours ran

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

    @abstractmethod
    def serves(self) -> bool:
        """
        Whether the engine is still right for its policy; asked before a rollout and before an update.

        :return: False once a module or a parameter was replaced, added, frozen or moved to another device
        """

    def fits(self, thorough: bool = True) -> bool:
        """
        Whether the next action can be computed from what the engine has read off the policy; asked before every step.

        :param thorough: whether to look at modules, hooks and methods too, and not only at the parameters' memory
        :return: False if the engine has to be chosen anew
        """
        return True

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[None]:
        """
        Around a series of :meth:`step`: read the optimizer's state before, and show state and gradients after.

        :param batch_size: transitions per minibatch
        :param critic_only: True if only the critic's own parameters will be stepped
        """
        self._first = self._actor_count if critic_only else 0
        self._stepped_gradient = self.flat.gradient[self.flat.offsets[self._first] :]
        self._without_gradient.clear()
        self._moments_checked = False
        self._fused = self._fused_adam(critic_only)
        if self._fused is not None:
            self._fused.start()
        try:
            yield
        finally:
            if self._fused is not None:
                self._fused.finish()
                self._hand_out_gradients()
            # It would keep the last graph alive, and the policy could not be deep-copied.
            self.policy.action_dist.distribution = None  # type: ignore[assignment]

    def _fused_adam(self, critic_only: bool) -> FlatAdam | None:
        """
        Adam in one call for the whole stretch, where that is what the policy's optimizer would do.

        :param critic_only: True if only the critic's own parameters are stepped
        :return: None if the optimizer has to make the steps itself
        """
        optimizer, mine = self.policy.optimizer, {id(parameter) for parameter in self.flat.parameters}
        if self._first == len(self.flat.parameters) or not FlatAdam.suits(optimizer):
            return None
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        if theirs != mine:
            return None
        adam = self._adam.get(critic_only)
        if adam is None or adam.optimizer is not optimizer:
            adam = self._adam[critic_only] = FlatAdam(optimizer, self.flat, self._first)
        return adam

    def _hand_out_gradients(self) -> None:
        """
        Give each parameter its gradient as a tensor of its own, so that whoever keeps one does not see it change.

        A parameter that the loss does not depend on, and the actor's where only the critic is stepped, get none.
        """
        gradients = self.flat.places(self.flat.gradient.clone())
        for i, (parameter, gradient) in enumerate(zip(self.flat.parameters, gradients, strict=True)):
            parameter.grad = None if i < self._first or i in self._without_gradient else gradient

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
        if self._fuses():
            assert self._fused is not None
            self._bring_parameters()
            self._fused.step(skipped)
            self.flat.push()
        else:
            self._step_of_optimizer(skipped)
        return {"grad_norm": norm, "skipped_updates": skipped}

    def _bring_parameters(self, thorough: bool = True) -> None:
        """
        Bring the flat vector up to date in the middle of an update.

        :param thorough: see :meth:`FlatParameters.pull`
        :raises ValueError: if a parameter has another shape, dtype or device than at the update's start
        """
        if not self.flat.pull(thorough):
            raise ValueError(
                "A parameter of the policy was given another shape, dtype or device in the middle of an update; "
                "make such changes between updates, for example in a callback's _on_rollout_start"
            )

    def _fuses(self) -> bool:
        """
        Whether the next step is one fused call; if not, the optimizer goes on from where the fused steps came to.

        :return: False if the optimizer itself has to make the step
        """
        if self._fused is None:
            return False
        if self._without_gradient:
            self._fused.finish()
            self._fused = None
        elif not self._moments_checked and not self._fused.is_bound():
            # The first step, or somebody loaded, moved or stepped the optimizer's state.
            self._fused.finish()
            if self._fused.prepare():
                self._fused.start()
            else:
                self._fused = None
        self._moments_checked = True
        return self._fused is not None

    def _step_of_optimizer(self, skipped: th.Tensor) -> None:
        """
        One step of the policy's own optimizer, undone if it is to be skipped.

        :param skipped: 1.0 or 0.0, on the parameters' device; it is not waited for unless the optimizer has no state yet
        """
        optimizer = self.policy.optimizer
        self._hand_out_gradients()
        states = [tensor for state in optimizer.state.values() for tensor in state.values() if isinstance(tensor, th.Tensor)]
        on_device = [tensor for tensor in states if tensor.device == skipped.device]
        if skipped.device.type == "cpu" or not on_device:
            if not skipped:
                optimizer.step()
            return
        on_device += [parameter for group in optimizer.param_groups for parameter in group["params"]]
        before = [tensor.detach().clone() for tensor in on_device]
        optimizer.step()
        with th.no_grad():
            for tensor, old in zip(on_device, before, strict=True):
                tensor.copy_(th.where(skipped > 0, old, tensor))

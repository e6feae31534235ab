"""Which parameters are the actor's: determined by the autograd graph of a real observation, never by name."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.global_state import unvalidated
from sb3_policyopt.identity.kinds import kind_of, states_dtype, states_shape
from sb3_policyopt.models.model import forget_distribution
from sb3_policyopt.models.policy_calls import step_distribution
from sb3_policyopt.rollout.batch import Observations, n_rows
from sb3_policyopt.rollout.context import NO_CONTEXT, Context, Memory


def split_parameters(
    policy: ActorCriticPolicy, observations: Observations[th.Tensor] | None = None
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """
    Separate the actor's and the critic's parameters by the autograd graph of a real observation, never by name.

    :param policy: any SB3 actor-critic policy
    :param observations: real ones, as tensors on the policy's device; None if nothing needs to be separated, and the policy
        is then not called
    :return: the parameters that the action distribution depends on, shared ones among them; and all others, those that
        only the value or an overridden loss depends on. Frozen parameters are in no list. Without observations all are in the
        first
    :raises ValueError: if the policy has no trainable parameter
    """
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("policy: no parameter is trainable; unfreeze some with requires_grad_(True)")
    # After all layers, where the closed form of the networks has it.
    trainable.sort(key=lambda parameter: parameter is getattr(policy, "log_std", None))
    if observations is None:
        return trainable, []
    in_actor = used_by_actor(policy, observations, trainable)
    actor = [parameter for parameter, used in zip(trainable, in_actor, strict=True) if used]
    critic = [parameter for parameter, used in zip(trainable, in_actor, strict=True) if not used]
    return actor, critic


def used_by_actor(
    policy: ActorCriticPolicy, observations: Observations[th.Tensor], parameters: list[nn.Parameter]
) -> list[bool]:
    """
    Which parameters the distribution of the actions depends on.

    The policy is left as it was: buffers that count what they see, and random generators.

    :param policy: any SB3 actor-critic policy
    :param observations: real ones, on its device
    :param parameters: candidates
    :return: True for each that the graph reaches
    """
    was_training = policy.training
    policy.set_training_mode(False)
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with th.enable_grad(), unvalidated(), buffers_kept(policy), th.random.fork_rng(devices):
            distribution = step_distribution(policy, observations, _beginning(policy, observations))
            log_prob = distribution.log_prob(distribution.mode())
            return _reached(log_prob.sum(), parameters)
    finally:
        policy.set_training_mode(was_training)
        forget_distribution(policy)


def _beginning(policy: ActorCriticPolicy, observations: Observations[th.Tensor]) -> Context:
    """
    A context for observations as if episodes began with them: all actions allowed, states of zero.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param observations: first axis n
    :return: the context
    """
    if not kind_of(policy).memory:
        return NO_CONTEXT
    n = n_rows(observations)
    layers, hidden_size = states_shape(policy)
    zeros = th.zeros((layers, n, hidden_size), dtype=states_dtype(policy), device=policy.device)
    return Context(memory=Memory((zeros, zeros), (zeros, zeros)), episode_starts=np.ones(n, bool))


@contextmanager
def buffers_kept(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    A context after which the policy's buffers hold what they held before: some modules count what they see.

    :param policy: any SB3 actor-critic policy
    :return: the context
    """
    buffers = [(buffer, buffer.clone()) for buffer in policy.buffers()]
    try:
        yield
    finally:
        with th.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _reached(scalar: th.Tensor, parameters: list[nn.Parameter]) -> list[bool]:
    """
    Which parameters a scalar depends on.

    :param scalar: the result of a computation
    :param parameters: candidates
    :return: True for each that the graph reaches
    """
    if not scalar.requires_grad:
        return [False] * len(parameters)
    gradients = th.autograd.grad(scalar, parameters, allow_unused=True)
    return [gradient is not None for gradient in gradients]

"""
The one place that knows how the methods of a plain, a masked and a recurrent policy are called.

Rows are flat. The methods of a recurrent policy take sequences of equal length, so here they get padded ones, and their
results are cut to the rows again. The states are already zero where an episode starts (R1), so inside a sequence one call of
the recurrent network serves all steps.
"""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.identity.kinds import PolicyKind, kind_of
from sb3_policyopt.identity.originals import is_original
from sb3_policyopt.rollout.batch import Batch, Observations
from sb3_policyopt.rollout.context import Context, Memory
from sb3_policyopt.rollout.sequences import Sequences, from_padded, to_padded


def act(
    policy: ActorCriticPolicy, observations: Observations[th.Tensor], context: Context
) -> tuple[th.Tensor, th.Tensor, th.Tensor, Memory | None]:
    """
    The policy's own ``forward`` on one step of all environments.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param observations: tensors on the policy's device, first axis n_envs
    :param context: of the step
    :return: actions, values, log-probabilities, and the states after the step
    """
    results = policy(observations, *_of_step(policy, context), **_masks(context))
    memory = results[3] if len(results) > 3 else None
    return results[0], results[1], results[2], None if memory is None else Memory(memory.pi, memory.vf)


def step_values(policy: ActorCriticPolicy, observations: Observations[th.Tensor], context: Context) -> th.Tensor:
    """
    The policy's own ``predict_values`` on one step.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param observations: tensors on the policy's device, first axis n
    :param context: of the step
    :return: V(s), shape (n, 1)
    """
    values: th.Tensor = policy.predict_values(observations, *_of_step(policy, context, critic_only=True))  # type: ignore[arg-type]
    return values


def step_distribution(policy: ActorCriticPolicy, observations: Observations[th.Tensor], context: Context) -> Distribution:
    """
    The policy's own ``get_distribution`` on one step.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param observations: tensors on the policy's device, first axis n
    :param context: of the step
    :return: SB3's distribution
    """
    arguments = _of_step(policy, context)
    of_actor = (arguments[0].pi, *arguments[1:]) if arguments else ()
    result = policy.get_distribution(observations, *of_actor, **_masks(context))  # type: ignore[arg-type]
    return result[0] if isinstance(result, tuple) else result


def evaluate_actions(policy: ActorCriticPolicy, batch: Batch[th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    The policy's own ``evaluate_actions`` on a batch.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param batch: transitions as tensors on the policy's device
    :return: V(s), ln π(a|s), and the entropies or None if they have no closed form; shape (batch,) each
    """
    sequences, masks = batch.sequences, batch.context.get("action_masks")
    if sequences is None:
        more = {} if masks is None else {"action_masks": masks}
        values, log_prob, entropy = policy.evaluate_actions(batch.observations, batch.actions, **more)  # type: ignore[arg-type]
        return values.flatten(), log_prob, entropy
    more = {} if masks is None else {"action_masks": _padded(masks, sequences)}
    results: Any = policy.evaluate_actions(  # type: ignore[call-arg]  # a recurrent policy takes the states too
        _padded_observations(batch, sequences),  # type: ignore[arg-type]
        _padded(batch.actions, sequences),
        sequences.initial,
        _episode_starts(policy, sequences),
        **more,
    )
    of_rows = [None if part is None else from_padded(part.flatten(), sequences) for part in results]
    assert of_rows[0] is not None and of_rows[1] is not None
    return of_rows[0], of_rows[1], of_rows[2]


def predict_values(policy: ActorCriticPolicy, batch: Batch[th.Tensor]) -> th.Tensor:
    """
    The policy's own ``predict_values`` on a batch.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param batch: transitions as tensors on the policy's device
    :return: V(s), shape (batch,)
    """
    sequences = batch.sequences
    if sequences is None:
        return policy.predict_values(batch.observations).flatten()  # type: ignore[arg-type]
    values = policy.predict_values(  # type: ignore[call-arg]
        _padded_observations(batch, sequences),  # type: ignore[arg-type]
        sequences.initial.vf,
        _episode_starts(policy, sequences),
    )
    return from_padded(values.flatten(), sequences)


def get_distribution(policy: ActorCriticPolicy, batch: Batch[th.Tensor]) -> Distribution:
    """
    The policy's own ``get_distribution`` on a batch.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :param batch: transitions as tensors on the policy's device
    :return: SB3's distribution; of padded sequences where there are sequences
    """
    sequences, masks = batch.sequences, batch.context.get("action_masks")
    if sequences is None:
        more = {} if masks is None else {"action_masks": masks}
        return policy.get_distribution(batch.observations, **more)  # type: ignore[arg-type]
    more = {} if masks is None else {"action_masks": _padded(masks, sequences)}
    result: Any = policy.get_distribution(  # type: ignore[call-arg]
        _padded_observations(batch, sequences),  # type: ignore[arg-type]
        sequences.initial.pi,
        _episode_starts(policy, sequences),
        **more,
    )
    distribution: Distribution = result[0]
    return distribution


def log_prob(distribution: Distribution, batch: Batch[th.Tensor]) -> th.Tensor:
    """
    ln π(a|s).

    :param distribution: of :func:`get_distribution` for the same batch
    :param batch: transitions
    :return: shape (batch,)
    """
    if batch.sequences is None:
        return distribution.log_prob(batch.actions)
    return from_padded(distribution.log_prob(_padded(batch.actions, batch.sequences)), batch.sequences)


def _of_step(policy: ActorCriticPolicy, context: Context, critic_only: bool = False) -> tuple[Any, ...]:
    """
    The arguments after the observations in a rollout.

    :param policy: about to be called
    :param context: of the step
    :param critic_only: whether the critic's states alone are taken
    :return: states and episode starts for a policy with memory, else nothing
    """
    if context.memory is None or context.episode_starts is None:
        return ()
    starts = th.as_tensor(np.asarray(context.episode_starts, np.float32), device=policy.device)
    return (context.memory.vf if critic_only else context.memory, starts)


def _masks(context: Context) -> dict[str, Any]:
    return {} if context.action_masks is None else {"action_masks": context.action_masks}


def _episode_starts(policy: ActorCriticPolicy, sequences: Sequences) -> th.Tensor:
    """
    What a recurrent policy's methods get as ``episode_starts``.

    :param policy: with memory
    :param sequences: of the batch, whose initial states are zero where an episode begins
    :return: float, shape (n_sequences · longest,); all zero for methods of which it is known that they only reset the states
        with it, because sb3-contrib's then make one call of the network
    """
    starts = np.zeros(tuple(sequences.padded.shape), np.float32)
    kind: PolicyKind = kind_of(policy)
    if not is_original(policy, kind.owner, "evaluate_actions", "get_distribution", "predict_values", "_process_sequence"):
        starts[:, 0] = sequences.begins_episode
    return th.as_tensor(starts.reshape(-1), device=policy.device)


def _padded(rows: th.Tensor, sequences: Sequences) -> th.Tensor:
    return to_padded(rows, sequences).flatten(0, 1)


def _padded_observations(batch: Batch[th.Tensor], sequences: Sequences) -> Observations[th.Tensor]:
    """
    Observations of equal numbers of steps. Features extractors see the padding, which is of zeros, as in sb3-contrib.

    :param batch: transitions
    :param sequences: in which they lie
    :return: first axis n_sequences · longest
    """
    padding = sequences.is_padding.flatten()

    def padded(rows: th.Tensor) -> th.Tensor:
        places = padding.to(rows.device).view(-1, *[1] * (rows.dim() - 1))
        return _padded(rows, sequences).masked_fill(places, 0)

    observations = batch.observations
    if isinstance(observations, dict):
        return {key: padded(value) for key, value in observations.items()}
    return padded(observations)

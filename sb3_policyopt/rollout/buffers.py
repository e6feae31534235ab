"""From SB3's rollout buffer to batches of transitions."""

from collections.abc import Iterator

from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Batch, Observations

_STOCK = {
    name: (getattr(RolloutBuffer, name), getattr(DictRolloutBuffer, name))
    for name in ("reset", "add", "compute_returns_and_advantage", "get", "_get_samples", "to_torch")
}
"""SB3's methods as they were when this module was imported, so that one replaced on SB3's own class is noticed too."""

RESIZE = (
    "If n_steps was changed, the buffer has to follow: pass n_steps to load(), or assign to model.rollout_buffer a new buffer "
    "whose buffer_size is n_steps"
)


def is_stock(buffer: RolloutBuffer, *methods: str) -> bool:
    """
    Whether a buffer does what SB3's own would do.

    :param buffer: the rollout buffer of an algorithm
    :param methods: the methods in question
    :return: True if neither the buffer's class nor the object itself replaces one of them
    """
    return all(name not in vars(buffer) and getattr(type(buffer), name, None) in _STOCK[name] for name in methods)


def samples_itself(buffer: RolloutBuffer) -> bool:
    """
    Whether minibatches have to come from the buffer's own ``get``.

    :param buffer: the rollout buffer of an algorithm
    :return: True if a method that makes samples was replaced
    """
    return not is_stock(buffer, "get", "_get_samples", "to_torch")


def not_full(buffer: RolloutBuffer) -> ValueError:
    """
    The error about a buffer some of whose rows were not written.

    :param buffer: the rollout buffer of an algorithm
    :return: the error, which names both sizes
    """
    return ValueError(
        f"rollout_buffer holds {buffer.pos} of its {buffer.buffer_size} steps, and an update would train on rows that were "
        f"never written: collect {buffer.buffer_size} steps of each environment before it. {RESIZE}"
    )


def flattened(buffer: RolloutBuffer) -> Batch[NumpyArray]:
    """
    All transitions of a full buffer, environment by environment: row env · n_steps + t.

    The buffer is left as SB3's ``get`` leaves it: these arrays are its own then, and its ``generator_ready`` is True.

    :param buffer: with arrays of shape (n_steps, n_envs, ...), or already flattened
    :return: NumPy arrays of shape (n_steps · n_envs, ...); per-sample scalars are (n_steps · n_envs,)
    :raises ValueError: if the buffer is not full
    """
    if not buffer.full:
        raise not_full(buffer)
    observations: Observations[NumpyArray] = buffer.observations
    if not buffer.generator_ready:
        if isinstance(observations, dict):
            for key, array in observations.items():
                observations[key] = buffer.swap_and_flatten(array)
        else:
            buffer.observations = observations = buffer.swap_and_flatten(observations)
        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            setattr(buffer, name, buffer.swap_and_flatten(getattr(buffer, name)))
        buffer.generator_ready = True
    scalars = (buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
    old_values, old_log_prob, advantages, returns = (array.reshape(-1) for array in scalars)
    if isinstance(observations, dict):
        observations = dict(observations)
    return Batch(observations, buffer.actions, old_values, old_log_prob, advantages, returns)


def own_samples(buffer: RolloutBuffer, batch_size: int | None) -> Iterator[RolloutBufferSamples | DictRolloutBufferSamples]:
    """
    What the buffer's ``get`` yields.

    :param buffer: the rollout buffer of an algorithm
    :param batch_size: transitions a minibatch, None for all in one
    :return: SB3's ``RolloutBufferSamples``
    :raises ValueError: if ``get`` refuses the buffer because it is not full
    """
    try:
        yield from buffer.get(batch_size)
    except AssertionError as error:
        if buffer.full:
            raise
        raise not_full(buffer) from error

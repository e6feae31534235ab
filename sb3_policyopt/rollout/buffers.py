"""From SB3's and sb3-contrib's rollout buffers to batches of transitions."""

import sys
from collections.abc import Iterator

from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Batch, Observations, each

METHODS = ("reset", "add", "compute_returns_and_advantage", "get", "_get_samples", "to_torch")

_STOCK = {name: [getattr(RolloutBuffer, name), getattr(DictRolloutBuffer, name)] for name in METHODS}
"""SB3's methods as they were when this module was imported, so that one replaced on SB3's own class is noticed too."""

_OPTIONAL = {
    "sb3_contrib.common.maskable.buffers": ("MaskableRolloutBuffer", "MaskableDictRolloutBuffer"),
    "sb3_contrib.common.recurrent.buffers": ("RecurrentRolloutBuffer", "RecurrentDictRolloutBuffer"),
    "sb3_policyopt.rollout.contrib_buffers": (
        "MaskedBuffer",
        "MaskedDictBuffer",
        "MaskedRecurrentBuffer",
        "MaskedRecurrentDictBuffer",
    ),
    "sb3_policyopt.rollout.tensors.buffer": ("TensorRolloutBuffer",),
}
"""By module, further buffers whose methods are known once it is imported."""

STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
"""sb3-contrib's names of the states before each step, shape (n_steps, n_layers, n_envs, hidden) each."""

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
    for module in [module for module in list(_OPTIONAL) if module in sys.modules]:
        kinds = [getattr(sys.modules[module], kind, None) for kind in _OPTIONAL.get(module, ())]
        if None in kinds:
            continue  # another thread is importing it
        for name in METHODS:
            _STOCK[name].extend([getattr(kind, name) for kind in kinds])
        _OPTIONAL.pop(module, None)  # only now, so that no thread misses them; another one may have done the same
    return all(name not in vars(buffer) and getattr(type(buffer), name, None) in _STOCK[name] for name in methods)


def is_of_library(buffer_class: type[RolloutBuffer]) -> bool:
    """
    Whether a buffer's class is one of SB3's or sb3-contrib's, and no subclass of a user.

    :param buffer_class: of a rollout buffer
    :return: True if so
    """
    library = buffer_class.__module__.partition(".")[0]
    own = ("sb3_policyopt.rollout.contrib_buffers", "sb3_policyopt.rollout.tensors.buffer")
    return library in ("stable_baselines3", "sb3_contrib") or buffer_class.__module__ in own


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
        names = ["actions", "values", "log_probs", "advantages", "returns"]
        if "action_masks" in vars(buffer):
            names.append("action_masks")
        if STATES[0] in vars(buffer):
            for name in STATES:  # of (n_steps, n_layers, n_envs, hidden)
                setattr(buffer, name, getattr(buffer, name).swapaxes(1, 2))
            names += ["episode_starts", *STATES]
        for name in names:
            setattr(buffer, name, buffer.swap_and_flatten(getattr(buffer, name)))
        buffer.generator_ready = True
    scalars = (buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
    old_values, old_log_prob, advantages, returns = (array.reshape(-1) for array in scalars)
    if isinstance(observations, dict):
        observations = dict(observations)
    batch = Batch(observations, buffer.actions, old_values, old_log_prob, advantages, returns)
    masks: NumpyArray | None = vars(buffer).get("action_masks")
    if masks is not None:
        batch.context["action_masks"] = masks.astype(bool, copy=False)
    return batch


def memory_columns(buffer: RolloutBuffer) -> tuple[NumpyArray, tuple[NumpyArray, ...]]:
    """
    What a policy with memory needs of a buffer beside its transitions.

    :param buffer: one of sb3-contrib's recurrent buffers, flattened by :func:`flattened`
    :return: whether an episode starts with each row, bool, shape (n_rows,); the states before each row, four arrays of shape
        (n_rows, n_layers, hidden) under the names of :data:`STATES`
    """
    return buffer.episode_starts.reshape(-1).astype(bool), tuple([getattr(buffer, name) for name in STATES])


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


def all_observations(buffer: RolloutBuffer) -> Observations[NumpyArray]:
    """
    The observations of a rollout, in any order.

    :param buffer: a rollout buffer, flattened or not
    :return: views, shape (n_steps · n_envs, ...)
    """

    def rows(array: NumpyArray) -> NumpyArray:
        return array if buffer.generator_ready else array.reshape(-1, *array.shape[2:])

    observations: Observations[NumpyArray] = buffer.observations
    return each(observations, rows)


def real_observation(last: Observations[NumpyArray] | None, buffer: RolloutBuffer) -> Observations[NumpyArray]:
    """
    An observation that environments gave.

    :param last: the last one of all environments; None before any was made
    :param buffer: its first observation is taken instead
    :return: of one environment or of all
    """
    if last is not None:
        return last
    observations: Observations[NumpyArray] = buffer.observations
    first = slice(0, 1) if buffer.generator_ready else 0
    return each(observations, lambda array: array[first])

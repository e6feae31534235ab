"""What a policy needs beside an observation to act: the actions that are allowed, and what it remembers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sb3_policyopt.maths.arrays import NumpyArray

States: TypeAlias = tuple[Any, Any]
"""The hidden and the cell state of a recurrent network, shape (n_layers, n, hidden) each: two tensors, or two arrays."""


class Memory(NamedTuple):
    """
    The states of a policy's recurrent networks, with the names of sb3-contrib's ``RNNStates``.

    :param pi: of the actor's network
    :param vf: of the critic's network; without one of its own as sb3-contrib has them, the actor's
    """

    pi: States
    vf: States

    def of_environments(self, numbers: Sequence[int] | NumpyArray) -> "Memory":
        """
        The states of some environments.

        :param numbers: of the environments
        :return: copies
        """
        pi, vf = [(hidden[:, numbers], cell[:, numbers]) for hidden, cell in self]
        return Memory(pi, vf)


@dataclass(slots=True)
class Context:
    """
    One step of all environments, beside the observations.

    :param action_masks: which actions are allowed, bool, shape (n_envs, n_choices); None without masks
    :param memory: the states before this step; None for a policy without memory
    :param episode_starts: whose episode starts with this step, so that its state is taken to be zero, shape (n_envs,)
    """

    action_masks: NumpyArray | None = None
    memory: Memory | None = None
    episode_starts: NumpyArray | None = None


NO_CONTEXT = Context()
"""Of a policy that needs no more than observations."""

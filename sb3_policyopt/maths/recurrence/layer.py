"""The passes through one recurrent layer, as far as they are the same for all cells (R2)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic

from sb3_policyopt.maths.arrays import ArrayT, namespace
from sb3_policyopt.maths.recurrence.packing import Packing
from sb3_policyopt.maths.recurrence.weights import Block, Weights, pack, unpack
from sb3_policyopt.maths.recurrence.workspace import EVERYTHING, LayerWorkspace


class LayerPass(ABC, Generic[ArrayT]):
    """
    One layer's forward pass, with what its derivatives need. All rows are in the time-major order.

    With z_b the pre-activations of block b, every cell's state moves by δz_b only through products K_b δz_b. K is computed
    once, when the first derivative is asked for. Then a step of the tangent is one product δh Wᵀ and products by entries, and
    a step backward is the reverse. Initial states are constants.

    :param weights: of the layer
    :param x: input, shape (n_rows, n_in)
    :param states: initial, of the sorted sequences, shape (n_seq, hidden) each
    :param packing: of the sequences
    :param workspace: of the layer
    """

    BLOCKS: ClassVar[tuple[Block, ...]]
    """Those that depend on h come first."""

    def __init__(
        self,
        weights: Weights[ArrayT],
        x: ArrayT,
        states: Sequence[ArrayT],
        packing: Packing,
        workspace: LayerWorkspace[ArrayT],
    ) -> None:
        self.packing = packing
        self.workspace: LayerWorkspace[ArrayT] = workspace
        self.xp = namespace(x)
        n_rows, n_in = x.shape
        size: int = weights.weight_hh.shape[1]
        self.size = size
        self.n_recurrent = sum(block.hidden is not None for block in self.BLOCKS)
        n_blocks, n_sequences, width = len(self.BLOCKS), packing.n_sequences, size + n_in + 1
        self.packed: ArrayT = pack(weights, self.BLOCKS, workspace.array("packed", n_blocks, size, width))
        self.columns: ArrayT = workspace.array("columns", n_blocks, width, size)
        """The same transposed: NumPy's products of few rows take several times as long with a view of it."""
        self.columns[...] = self.packed.swapaxes(1, 2)
        self.recurrent: ArrayT = self.columns[: self.n_recurrent, :size]
        """s_b W_bᵀ of the blocks that depend on h, with which the loops over time multiply."""
        self.history: ArrayT = workspace.array("history", n_sequences + n_rows, size)
        """Initial h, then h after each row."""
        self.history[:n_sequences] = states[0]
        self.joint: ArrayT = workspace.array("joint", n_rows, width)
        """[h_{t−1} x_t 1]."""
        self.joint[:, size:-1] = x
        self.joint[:, -1] = 1
        self.work: dict[int, tuple[ArrayT, list[ArrayT]]] = self._work()
        """Pre-activations of the blocks that depend on h and a list of their views, by number of rows."""
        gates = workspace.array("gates", n_blocks, n_rows, size)
        self.xp.matmul(self.joint[:, size:], self.columns[:, size:], out=gates)
        self.run(gates, states)
        self.joint[:, :size] = packing.previous(self.history)
        self._has_factor = False

    @property
    def output(self) -> ArrayT:
        """h after each row, shape (n_rows, hidden)."""
        return self.history[self.packing.n_sequences :]

    @abstractmethod
    def run(self, gates: ArrayT, states: Sequence[ArrayT]) -> None:
        """
        The loop over time: fills ``history`` and keeps what the derivatives need.

        :param gates: s_b (U_b x + b_b), shape (blocks, n_rows, hidden); to be overwritten by the gates
        :param states: initial, shape (n_seq, hidden) each
        """

    @abstractmethod
    def factors(self, factor: ArrayT) -> None:
        """
        Compute K and what else the derivatives need, from what :meth:`run` left.

        :param factor: where K is written, shape (blocks, n_rows, hidden)
        """

    @abstractmethod
    def tangent_loop(self, moved: ArrayT) -> ArrayT:
        """
        :param moved: K_b δz_b as far as δz_b does not depend on δh, shape (blocks, n_rows, hidden); may be overwritten
        :return: δh after each row, shape (n_rows, hidden)
        """

    @abstractmethod
    def backward_loop(self, slopes: ArrayT, weights: ArrayT, z_bar: ArrayT) -> None:
        """
        :param slopes: with respect to h after each row, shape (n_rows, hidden)
        :param weights: s_b W_b of the blocks that depend on h, shape (blocks, hidden, hidden)
        :param z_bar: where the slopes with respect to the pre-activations are written, shape (blocks, n_rows, hidden)
        """

    def _work(self) -> dict[int, tuple[ArrayT, list[ArrayT]]]:
        sizes = self.packing.running
        flat = self.workspace.array("work", self.n_recurrent * sizes[0] * self.size)
        work = {}
        for n in set(sizes):
            array = flat[: self.n_recurrent * n * self.size].reshape(self.n_recurrent, n, self.size)
            work[n] = (array, [array[b] for b in range(self.n_recurrent)])
        return work

    def blocks(self, name: str, array: ArrayT, part: int | slice = EVERYTHING) -> list[ArrayT]:
        """See :meth:`LayerWorkspace.blocks`."""
        return self.workspace.blocks(name, array, self.packing, part)

    @property
    def factor(self) -> ArrayT:
        """K, shape (blocks, n_rows, hidden)."""
        factor = self.workspace.array("factor", len(self.BLOCKS), self.packing.n_rows, self.size)
        if not self._has_factor:
            self.factors(factor)
            self._has_factor = True
        return factor

    def tangent(self, direction: Weights[ArrayT], dx: ArrayT | None) -> ArrayT:
        """
        J v of the layer.

        :param direction: v
        :param dx: δx, shape (n_rows, n_in); None if the input does not move
        :return: δh after each row, shape (n_rows, hidden); valid until the next call
        """
        factor, size = self.factor, self.size
        along = pack(direction, self.BLOCKS, self.workspace.array("along", *self.packed.shape))
        moved = self.workspace.array("moved", *factor.shape)
        self.xp.matmul(self.joint, along.swapaxes(1, 2), out=moved)
        if dx is not None:
            moved += self.xp.matmul(dx, self.columns[:, size:-1], out=self.workspace.array("by_input", *factor.shape))
        moved *= factor
        return self.tangent_loop(moved)

    def backward(self, slopes: ArrayT, into: Weights[ArrayT], to_input: bool) -> ArrayT | None:
        """
        Jᵀ u of the layer.

        :param slopes: u, shape (n_rows, hidden)
        :param into: where the gradient is written
        :param to_input: whether the slope with respect to x is wanted
        :return: that slope if it is, shape (n_rows, n_in)
        """
        factor, size = self.factor, self.size
        z_bar = self.workspace.array("z_bar", *factor.shape)
        weights = self.workspace.array("recurrent", self.n_recurrent, size, size)
        weights[...] = self.packed[: self.n_recurrent, :, :size]  # contiguous, as products of few rows want it
        self.backward_loop(slopes, weights, z_bar)
        gradient = self.workspace.array("gradient", *self.packed.shape)
        unpack(self.xp.matmul(z_bar.swapaxes(1, 2), self.joint, out=gradient), self.BLOCKS, into)
        if not to_input:
            return None
        x_bar, *others = [
            z_bar[b] @ self.packed[b, :, size:-1] for b, block in enumerate(self.BLOCKS) if block.input is not None
        ]
        for other in others:
            x_bar += other
        return x_bar

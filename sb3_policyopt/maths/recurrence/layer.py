"""The passes through one recurrent layer, as far as they are the same for all cells (R2)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic

from sb3_policyopt.maths.arrays import ArrayT, namespace
from sb3_policyopt.maths.recurrence.packing import Packing
from sb3_policyopt.maths.recurrence.weights import Block, Weights, empty, pack, transposed, unpack


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
    """

    BLOCKS: ClassVar[tuple[Block, ...]]
    """Those that depend on h come first."""

    def __init__(self, weights: Weights[ArrayT], x: ArrayT, states: Sequence[ArrayT], packing: Packing) -> None:
        self.packing = packing
        self.xp = xp = namespace(x)
        size: int = weights.weight_hh.shape[1]
        self.size = size
        self.n_recurrent = sum(block.hidden is not None for block in self.BLOCKS)
        self.packed: ArrayT = pack(weights, self.BLOCKS)
        self.columns: ArrayT = transposed(self.packed)
        """Shape (blocks, hidden + n_in + 1, hidden)."""
        self.recurrent: ArrayT = self.columns[: self.n_recurrent, :size]
        """s_b W_bᵀ of the blocks that depend on h, with which the loops over time multiply."""
        self.history: ArrayT = empty(x, packing.n_sequences + packing.n_rows, size)
        """Initial h, then h after each row."""
        self.history[: packing.n_sequences] = states[0]
        self.joint: ArrayT = empty(x, packing.n_rows, size + x.shape[1] + 1)
        """[h_{t−1} x_t 1]."""
        self.joint[:, size:-1] = x
        self.joint[:, -1] = 1
        self.work: dict[int, tuple[ArrayT, list[ArrayT]]] = {
            n: self._work_of(n) for n in sorted(set(packing.running), reverse=True)
        }
        gates = empty(x, len(self.BLOCKS), packing.n_rows, size)
        xp.matmul(self.joint[:, size:], self.columns[:, size:], out=gates)
        self.run(gates, states)
        self.joint[:, :size] = packing.previous(self.history)
        self._buffers: dict[str, ArrayT] = {}
        self._views: dict[str, list[ArrayT]] = {}

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
    def factors(self) -> None:
        """Compute K and what else the derivatives need, from what :meth:`run` left."""

    @abstractmethod
    def tangent_loop(self, moved: ArrayT) -> ArrayT:
        """
        :param moved: K_b δz_b as far as δz_b does not depend on δh, shape (blocks, n_rows, hidden); may be overwritten
        :return: δh after each row, shape (n_rows, hidden)
        """

    @abstractmethod
    def backward_loop(self, slopes: ArrayT, z_bar: ArrayT) -> None:
        """
        :param slopes: with respect to h after each row, shape (n_rows, hidden)
        :param z_bar: where the slopes with respect to the pre-activations are written, shape (blocks, n_rows, hidden)
        """

    def _work_of(self, n: int) -> tuple[ArrayT, list[ArrayT]]:
        array = empty(self.history, self.n_recurrent, n, self.size)
        return array, [array[b] for b in range(self.n_recurrent)]

    def buffer(self, name: str, *shape: int) -> ArrayT:
        """
        An array of this pass, made at the first call.

        :param name: of the array
        :param shape: of the array
        :return: with whatever it held before
        """
        if name not in self._buffers:
            self._buffers[name] = empty(self.history, *shape)
        return self._buffers[name]

    def views(self, name: str, array: ArrayT) -> list[ArrayT]:
        """
        The blocks of an array by time, made at the first call.

        :param name: of the array, always the same one
        :param array: shape (n_rows, n) or (blocks, n_rows, n)
        :return: one view a time
        """
        if name not in self._views:
            self._views[name] = self.packing.blocks(array)
        return self._views[name]

    @property
    def factor(self) -> ArrayT:
        """K, shape (blocks, n_rows, hidden)."""
        if "factor" not in self._buffers:
            self.buffer("factor", len(self.BLOCKS), self.packing.n_rows, self.size)
            self.factors()
        return self._buffers["factor"]

    def tangent(self, direction: Weights[ArrayT], dx: ArrayT | None) -> ArrayT:
        """
        J v of the layer.

        :param direction: v
        :param dx: δx, shape (n_rows, n_in); None if the input does not move
        :return: δh after each row, shape (n_rows, hidden); valid until the next call
        """
        factor, size = self.factor, self.size
        along = pack(direction, self.BLOCKS, self._buffers.get("along"))
        self._buffers["along"] = along
        moved = self.buffer("moved", *factor.shape)
        self.xp.matmul(self.joint, along.swapaxes(1, 2), out=moved)
        if dx is not None:
            moved += self.xp.matmul(dx, self.columns[:, size:-1], out=self.buffer("by_input", *factor.shape))
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
        z_bar = self.buffer("z_bar", *factor.shape)
        self.backward_loop(slopes, z_bar)
        gradient = self.buffer("gradient", *self.packed.shape)
        unpack(self.xp.matmul(z_bar.swapaxes(1, 2), self.joint, out=gradient), self.BLOCKS, into)
        if not to_input:
            return None
        x_bar, *others = [
            z_bar[b] @ self.packed[b, :, size:-1] for b, block in enumerate(self.BLOCKS) if block.input is not None
        ]
        for other in others:
            x_bar += other
        return x_bar

    @property
    def recurrent_backward(self) -> ArrayT:
        """s_b W_b of the blocks that depend on h, contiguous, shape (blocks, hidden, hidden)."""
        if "recurrent" not in self._buffers:
            weights = self.buffer("recurrent", self.n_recurrent, self.size, self.size)
            weights[...] = self.packed[: self.n_recurrent, :, : self.size]
        return self._buffers["recurrent"]

"""
A recurrent network of several layers, from the side of its caller, who need not know which cell it is (R1, R2).

    cell = CELLS["lstm"](n_in, hidden, n_layers)
    weights = cell.views(theta)                             # once: views of a flat vector
    prepared = cell.prepare(weights)                        # after each change of theta
    output, states = cell.step(prepared, x, states)         # each step of the environments
    run = cell.forward(weights, x, Packing(lengths), states, workspace)    # workspace = Workspace(), made once
    moved = run.tangent(cell.views(v))                      # J v
    run.backward(slopes, cell.views(gradient))              # gradient = Jᵀ slopes
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic

from sb3_policyopt.maths.arrays import ArrayT, empty, namespace
from sb3_policyopt.maths.recurrence.layer import LayerPass
from sb3_policyopt.maths.recurrence.packing import Packing
from sb3_policyopt.maths.recurrence.weights import Weights, pack
from sb3_policyopt.maths.recurrence.workspace import Workspace


class Prepared(Generic[ArrayT]):
    """
    What :meth:`Cell.step` multiplies with: copies of the weights, and work arrays by number of rows.

    :param columns: s_b [W_b U_b b_b]ᵀ of each layer, shape (blocks, hidden + n_in + 1, hidden)
    """

    def __init__(self, columns: list[ArrayT]) -> None:
        self.columns: list[ArrayT] = columns
        self._work: dict[int, list[tuple[ArrayT, ArrayT, ArrayT, ArrayT]]] = {}

    def work(self, n: int) -> list[tuple[ArrayT, ArrayT, ArrayT, ArrayT]]:
        """
        :param n: number of rows
        :return: for each layer [h x 1], its parts h and x, and the pre-activations
        """
        if n not in self._work:
            self._work[n] = [self._of_layer(columns, n) for columns in self.columns]
        return self._work[n]

    def _of_layer(self, columns: ArrayT, n: int) -> tuple[ArrayT, ArrayT, ArrayT, ArrayT]:
        n_blocks, width, hidden = columns.shape
        joint = empty(columns, n, width)
        joint[:, -1] = 1
        return joint, joint[:, :hidden], joint[:, hidden:-1], empty(columns, n_blocks, n, hidden)


class Pass(Generic[ArrayT]):
    """
    A forward pass over sequences, at the parameters of that time.

    :param layers: the passes through the layers
    :param packing: of the sequences
    :param workspace: of the pass, which ends when the next one in the same memory begins
    """

    def __init__(self, layers: list[LayerPass[ArrayT]], packing: Packing, workspace: Workspace[ArrayT]) -> None:
        self.layers: list[LayerPass[ArrayT]] = layers
        self.packing = packing
        self.workspace: Workspace[ArrayT] = workspace
        self._number = workspace.passes
        self.outputs: ArrayT = packing.to_flat(layers[-1].output)
        """h of the last layer after each row, shape (n_rows, hidden), in the order in which the input came."""

    def _must_be_the_last(self) -> None:
        if self._number != self.workspace.passes:
            raise RuntimeError("another pass has begun in the memory of this one")

    def tangent(self, direction: Sequence[Weights[ArrayT]], dx: ArrayT | None = None) -> ArrayT:
        """
        R2: J v, δh_t = ∂f/∂h δh_{t−1} + ∂f/∂x δx_t + ∂f/∂θ v, with initial states that do not move.

        :param direction: v, by layer
        :param dx: δx, shape (n_rows, n_in); None if the input does not move
        :return: how the outputs move, shape (n_rows, hidden)
        :raises RuntimeError: if another pass has begun in the same memory
        """
        self._must_be_the_last()
        moved = None if dx is None else self.packing.to_time_major(dx)
        for layer, along in zip(self.layers, direction, strict=True):
            moved = layer.tangent(along, moved)
        assert moved is not None  # there is at least one layer
        return self.packing.to_flat(moved)

    def backward(self, slopes: ArrayT, into: Sequence[Weights[ArrayT]], to_input: bool = False) -> ArrayT | None:
        """
        R2: Jᵀ u, the same recursion in reverse.

        :param slopes: u, of a scalar with respect to the outputs, shape (n_rows, hidden)
        :param into: where the gradient is written, by layer; every entry is
        :param to_input: whether the slope with respect to the input is wanted
        :return: that slope if it is, shape (n_rows, n_in)
        :raises RuntimeError: if another pass has begun in the same memory
        """
        self._must_be_the_last()
        bar: ArrayT | None = self.packing.to_time_major(slopes)
        for i in reversed(range(len(self.layers))):
            assert bar is not None  # the slope with respect to an upper layer's input was wanted
            bar = self.layers[i].backward(bar, into[i], to_input or i > 0)
        return None if bar is None else self.packing.to_flat(bar)


class Cell(ABC):
    """
    Layers of one kind of cell, each on the outputs of the one before. The object holds sizes and no arrays.

    NumPy arrays and torch tensors serve alike, in the dtype of the weights. Tensors must not require a gradient.

    :param n_in: inputs of the first layer
    :param hidden: units of each layer
    :param n_layers: number of layers
    """

    n_gates: ClassVar[int]
    """torch's weights have n_gates · hidden rows."""
    n_states: ClassVar[int]
    """How many arrays the state consists of; h is the first."""
    layer_pass: ClassVar[type[LayerPass[Any]]]

    def __init__(self, n_in: int, hidden: int, n_layers: int = 1) -> None:
        self.n_in = n_in
        self.hidden = hidden
        self.n_layers = n_layers

    def _shapes(self, layer: int) -> list[tuple[int, ...]]:
        rows = self.n_gates * self.hidden
        return [(rows, self.hidden if layer else self.n_in), (rows, self.hidden), (rows,), (rows,)]

    @property
    def size(self) -> int:
        """Number of parameters."""
        n_in = self.n_in + (self.n_layers - 1) * self.hidden
        return self.n_gates * self.hidden * (n_in + self.n_layers * (self.hidden + 2))

    def views(self, vector: ArrayT) -> list[Weights[ArrayT]]:
        """
        Views of a vector of parameters, gradients or tangents, in the order of ``parameters()`` of torch's module.

        :param vector: contiguous, shape (size,)
        :return: one entry a layer
        :raises ValueError: if the vector has another size
        """
        if tuple(vector.shape) != (self.size,):
            raise ValueError(f"expected a vector of {self.size} entries, got the shape {tuple(vector.shape)}")
        start, layers = 0, []
        for layer in range(self.n_layers):
            parts = []
            for shape in self._shapes(layer):
                end = start + shape[0] * (shape[1] if len(shape) == 2 else 1)
                parts.append(vector[start:end].reshape(shape))
                start = end
            layers.append(Weights(*parts))
        return layers

    def prepare(self, weights: Sequence[Weights[ArrayT]]) -> Prepared[ArrayT]:
        """
        Copies of the weights for :meth:`step`, to be made again when the parameters change.

        :param weights: by layer
        :return: what :meth:`step` takes
        """
        blocks, columns = self.layer_pass.BLOCKS, []
        for layer in weights:
            hidden, n_in = layer.weight_hh.shape[1], layer.weight_ih.shape[1]
            packed = pack(layer, blocks, empty(layer.weight_hh, len(blocks), hidden, hidden + n_in + 1))
            turned = empty(packed, len(blocks), hidden + n_in + 1, hidden)
            turned[...] = packed.swapaxes(1, 2)
            columns.append(turned)
        return Prepared(columns)

    def step(self, prepared: Prepared[ArrayT], x: ArrayT, states: Sequence[ArrayT]) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """
        R1: h_t = f(x_t, h_{t−1}) for one time step.

        :param prepared: from :meth:`prepare`
        :param x: shape (n, n_in)
        :param states: shape (n_layers, n, hidden) each, not written to; rows are zero where an episode starts
        :return: h of the last layer, shape (n, hidden), a view of the new states; and the new states in new memory
        """
        matmul = namespace(x).matmul
        new = tuple([empty(x, *state.shape) for state in states])
        for i, (joint, h_part, x_part, z) in enumerate(prepared.work(len(x))):
            x_part[...] = x
            h_part[...] = states[0][i]
            matmul(joint, prepared.columns[i], out=z)
            self.advance(z, [state[i] for state in states], [state[i] for state in new])
            x = new[0][i]
        return x, new

    @abstractmethod
    def advance(self, z: ArrayT, states: Sequence[ArrayT], new: Sequence[ArrayT]) -> None:
        """
        A layer's new states from its pre-activations.

        :param z: shape (blocks, n, hidden); overwritten
        :param states: shape (n, hidden) each
        :param new: where the new states are written, shape (n, hidden) each
        """

    def forward(
        self,
        weights: Sequence[Weights[ArrayT]],
        x: ArrayT,
        packing: Packing,
        states: Sequence[ArrayT],
        workspace: Workspace[ArrayT] | None = None,
    ) -> Pass[ArrayT]:
        """
        R1: all steps of all sequences.

        :param weights: by layer
        :param x: rows of one sequence after another, shape (n_rows, n_in)
        :param packing: of the sequences
        :param states: initial, by sequence, shape (n_layers, n_seq, hidden) each
        :param workspace: to be used again; None for new memory
        :return: the outputs, with what tangent and backward need
        """
        workspace = Workspace() if workspace is None else workspace
        workspace.passes += 1
        initial = [packing.sorted_states(state) for state in states]
        layers: list[LayerPass[ArrayT]] = []
        rows = packing.to_time_major(x)
        for i, layer in enumerate(weights):
            arrays = workspace.layer(i, rows)
            layers.append(self.layer_pass(layer, rows, [state[i] for state in initial], packing, arrays))
            rows = layers[-1].output
        return Pass(layers, packing, workspace)

"""
The LSTM with torch's definitions, with σ(z) = ½ (1 + tanh(z / 2)).

    c_t = f c_{t−1} + i g        h_t = o tanh(c_t)        i, f, o sigmoids and g a tanh of the pre-activations

    δc_t = f δc_{t−1} + K_i δz_i + K_f δz_f + K_g δz_g    K_i = 2 i (1 − i) g, K_f = 2 f (1 − f) c_{t−1}, K_g = (1 − g²) i
    δh_t = m δc_t + K_o δz_o                              m = o (1 − tanh² c_t), K_o = 2 o (1 − o) tanh c_t

2 σ (1 − σ) is the derivative of a sigmoid with respect to half of its argument, which is what z_i, z_f and z_o are here.
"""

from collections.abc import Sequence
from typing import ClassVar

from sb3_policyopt.maths.arrays import ArrayT, namespace
from sb3_policyopt.maths.recurrence.cell import Cell
from sb3_policyopt.maths.recurrence.layer import LayerPass
from sb3_policyopt.maths.recurrence.weights import Block, one_minus


class LSTMPass(LayerPass[ArrayT]):
    """One layer's passes; the blocks are o, i, f and g."""

    BLOCKS: ClassVar[tuple[Block, ...]] = (Block(3, 3, 0.5), Block(0, 0, 0.5), Block(1, 1, 0.5), Block(2, 2, 1.0))

    def run(self, gates: ArrayT, states: Sequence[ArrayT]) -> None:
        """See the base class."""
        xp, rows = self.xp, slice(self.packing.n_sequences, None)
        self.gates: ArrayT = gates
        self.tanh_c: ArrayT = self.workspace.array("tanh_c", *gates.shape[1:])
        self.cells: ArrayT = self.workspace.array("cells", *self.history.shape)
        self.cells[: self.packing.n_sequences] = states[1]
        by_time = zip(
            self.packing.running,
            self.blocks("gates", gates),
            self.blocks("h", self.history, rows),
            self.blocks("c", self.cells, rows),
            self.blocks("tanh_c", self.tanh_c),
            strict=True,
        )
        h, c = states
        for n, gates_t, h_t, c_t, tanh_c in by_time:
            z, (o, i, f, g) = self.work[n]
            xp.matmul(h[:n], self.recurrent, out=z)
            z += gates_t
            xp.tanh(z, out=z)
            sigmoids = z[:3]
            sigmoids *= 0.5
            sigmoids += 0.5
            gates_t[...] = z
            xp.multiply(f, c[:n], out=c_t)
            c_t += xp.multiply(i, g, out=i)
            xp.tanh(c_t, out=tanh_c)
            xp.multiply(o, tanh_c, out=h_t)
            h, c = h_t, c_t

    def factors(self, factor: ArrayT) -> None:
        """See the base class."""
        xp = self.xp
        o, i, _, g = self.gates
        k_o, k_i, k_f, k_g = factor
        sigmoids = self.gates[:3]
        of_sigmoids = one_minus(sigmoids, factor[:3])
        of_sigmoids *= sigmoids
        of_sigmoids *= 2
        k_o *= self.tanh_c
        k_i *= g
        xp.multiply(k_f, self.packing.previous(self.cells), out=k_f)
        xp.multiply(g, g, out=k_g)
        one_minus(k_g, k_g)
        k_g *= i
        self.slope: ArrayT = self.workspace.array("slope", *o.shape)
        slope = self.slope
        xp.multiply(self.tanh_c, self.tanh_c, out=slope)
        one_minus(slope, slope)
        slope *= o

    def tangent_loop(self, moved: ArrayT) -> ArrayT:
        """See the base class."""
        multiply, matmul, recurrent = self.xp.multiply, self.xp.matmul, self.recurrent
        by_cell = moved[1]
        by_cell += moved[2]
        by_cell += moved[3]
        result = self.workspace.array("dh", *by_cell.shape)
        by_time = zip(
            self.blocks("dh", result),
            self.blocks("dc", moved, 1),
            self.blocks("by_o", moved, 0),
            self.blocks("factor", self.factor),
            self.blocks("slope", self.slope),
            self.blocks("f", self.gates, 2),
            strict=True,
        )
        before, c_before, by_o, _, slope, _ = next(by_time)
        multiply(slope, c_before, out=before)
        before += by_o
        for dh_t, dc_t, by_o, factor, slope, f in by_time:
            n = len(dh_t)
            z, (z_o, z_i, z_f, z_g) = self.work[n]
            matmul(before[:n], recurrent, out=z)
            z *= factor
            dc_t += z_i
            dc_t += z_f
            dc_t += z_g
            dc_t += multiply(f, c_before[:n], out=z_i)
            multiply(slope, dc_t, out=dh_t)
            dh_t += z_o
            dh_t += by_o
            before, c_before = dh_t, dc_t
        return result

    def backward_loop(self, slopes: ArrayT, weights: ArrayT, z_bar: ArrayT) -> None:
        """See the base class."""
        multiply, add, matmul = self.xp.multiply, self.xp.add, self.xp.matmul
        h_all = self.workspace.array("h_bar", self.packing.n_sequences, self.size)
        c_all = self.workspace.array("c_bar", self.packing.n_sequences, self.size)
        h_all[...] = 0
        c_all[...] = 0
        by_time = (
            self.packing.blocks(slopes),
            self.blocks("z_bar", z_bar),
            self.blocks("z_bar_o", z_bar, 0),
            self.blocks("z_bar_cell", z_bar, slice(1, 4)),
            self.blocks("factor_o", self.factor, 0),
            self.blocks("factor_cell", self.factor, slice(1, 4)),
            self.blocks("slope", self.slope),
            self.blocks("f", self.gates, 2),
        )
        for given, z_bar_t, z_bar_o, z_bar_cell, k_o, k_cell, slope, f in zip(*map(reversed, by_time), strict=True):
            n = len(slope)
            h_bar, c_bar = h_all[:n], c_all[:n]
            z, (z_0, z_1, z_2, z_3) = self.work[n]
            h_bar += given
            c_bar += multiply(slope, h_bar, out=z_0)
            multiply(k_o, h_bar, out=z_bar_o)
            multiply(k_cell, c_bar, out=z_bar_cell)
            c_bar *= f
            matmul(z_bar_t, weights, out=z)
            add(z_0, z_1, out=h_bar)
            h_bar += z_2
            h_bar += z_3


class LSTM(Cell):
    """Long short-term memory; the states are h and c."""

    n_gates = 4
    n_states = 2
    layer_pass = LSTMPass

    def advance(self, z: ArrayT, states: Sequence[ArrayT], new: Sequence[ArrayT]) -> None:
        """See the base class."""
        xp = namespace(z)
        xp.tanh(z, out=z)
        sigmoids = z[:3]
        sigmoids *= 0.5
        sigmoids += 0.5
        o, i, f, g = z
        h, c = new
        xp.multiply(f, states[1], out=c)
        c += xp.multiply(i, g, out=i)
        xp.tanh(c, out=h)
        h *= o

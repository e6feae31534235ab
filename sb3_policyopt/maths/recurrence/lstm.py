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
        xp, packing = self.xp, self.packing
        self.gates: ArrayT = gates
        self.tanh_c = xp.empty_like(gates[0])
        self.cells = xp.empty_like(self.history)
        self.cells[: packing.n_sequences] = states[1]
        hidden, cells = packing.blocks(self.output), packing.blocks(self.cells[packing.n_sequences :])
        of_time = zip(packing.running, packing.blocks(gates), hidden, cells, packing.blocks(self.tanh_c), strict=True)
        h, c = states
        for n, gates_t, h_t, c_t, tanh_c in of_time:
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

    def factors(self) -> None:
        """See the base class."""
        xp, factor = self.xp, self.factor
        o, i, f, g = self.gates
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
        slope = self.buffer("slope", *o.shape)
        xp.multiply(self.tanh_c, self.tanh_c, out=slope)
        one_minus(slope, slope)
        slope *= o
        self.views("factor", factor)
        self.views("slope", slope)
        self.views("f", f)

    def tangent_loop(self, moved: ArrayT) -> ArrayT:
        """See the base class."""
        xp, packing = self.xp, self.packing
        by_o, by_cell = moved[0], moved[1]
        by_cell += moved[2]
        by_cell += moved[3]
        result = self.buffer("dh", *by_o.shape)
        if "dh" not in self._views:
            self._views["continuing"] = packing.continuing(result)
        dh, dc = self.views("dh", result), self.views("by_cell", by_cell)
        by_o_t, factor, slope, f = self.views("by_o", by_o), *map(self._views.__getitem__, ("factor", "slope", "f"))
        xp.multiply(slope[0], dc[0], out=dh[0])
        dh[0] += by_o_t[0]
        for t, before in enumerate(self._views["continuing"], 1):
            n = len(before)
            z, (z_o, z_i, z_f, z_g) = self.work[n]
            xp.matmul(before, self.recurrent, out=z)
            z *= factor[t]
            dc_t, dh_t = dc[t], dh[t]
            dc_t += z_i
            dc_t += z_f
            dc_t += z_g
            dc_t += xp.multiply(f[t], dc[t - 1][:n], out=z_i)
            xp.multiply(slope[t], dc_t, out=dh_t)
            dh_t += z_o
            dh_t += by_o_t[t]
        return result

    def backward_loop(self, slopes: ArrayT, z_bar: ArrayT) -> None:
        """See the base class."""
        xp = self.xp
        weights = self.recurrent_backward
        h_all, c_all = self.buffer("h_bar", *self.history.shape), self.buffer("c_bar", *self.history.shape)
        if "z_o" not in self._views:
            self.views("z_o", z_bar[0])
            self.views("z_cell", z_bar[1:])
            self.views("k_o", self.factor[0])
            self.views("k_cell", self.factor[1:])
        by_time = [self._views[name] for name in ("z_o", "z_cell", "k_o", "k_cell", "slope", "f")]
        z_views = self.views("z_bar", z_bar)
        given = self.packing.blocks(slopes)
        h_all[: self.packing.n_sequences] = 0
        c_all[: self.packing.n_sequences] = 0
        for t in reversed(range(len(given))):
            z_o, z_cell, k_o, k_cell, slope, f = (views[t] for views in by_time)
            n = len(slope)
            h_bar, c_bar = h_all[:n], c_all[:n]
            z, (z_0, z_1, z_2, z_3) = self.work[n]
            h_bar += given[t]
            c_bar += xp.multiply(slope, h_bar, out=z_0)
            xp.multiply(k_o, h_bar, out=z_o)
            xp.multiply(k_cell, c_bar, out=z_cell)
            if t:
                c_bar *= f
                xp.matmul(z_views[t], weights, out=z)
                xp.add(z_0, z_1, out=h_bar)
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

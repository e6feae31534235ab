"""
The GRU with torch's definitions, with σ(z) = ½ (1 + tanh(z / 2)).

    h_t = (1 − u) n + u h_{t−1}        n = tanh(a + r q)        q = W_n h_{t−1} + b_hn, a = U_n x_t + b_in

    δh_t = u δh_{t−1} + K_r δz_r + K_u δz_u + K_q δq + K_a δa
    K_a = (1 − u)(1 − n²), K_q = K_a r, K_r = 2 r (1 − r) q K_a, K_u = 2 u (1 − u)(h_{t−1} − n)

r and u (torch's z) are sigmoids of the pre-activations; z_r and z_u are half of those here, hence the factors 2.
"""

from collections.abc import Sequence
from typing import ClassVar

from sb3_policyopt.maths.arrays import ArrayT, namespace
from sb3_policyopt.maths.recurrence.cell import Cell
from sb3_policyopt.maths.recurrence.layer import LayerPass
from sb3_policyopt.maths.recurrence.weights import Block, one_minus


class GRUPass(LayerPass[ArrayT]):
    """One layer's passes; the blocks are r, u, q and a."""

    BLOCKS: ClassVar[tuple[Block, ...]] = (Block(0, 0, 0.5), Block(1, 1, 0.5), Block(2, None, 1.0), Block(None, 2, 1.0))

    def run(self, gates: ArrayT, states: Sequence[ArrayT]) -> None:
        """See the base class."""
        xp = self.xp
        self.gates: ArrayT = gates  # a is replaced by n
        by_time = zip(
            self.packing.running,
            self.blocks("gates_h", gates, slice(3)),
            self.blocks("n", gates, 3),
            self.blocks("h", self.history, slice(self.packing.n_sequences, None)),
            strict=True,
        )
        h = states[0]
        for n, rest_t, n_t, h_t in by_time:
            z, (r, u, q) = self.work[n]
            xp.matmul(h[:n], self.recurrent, out=z)
            z += rest_t
            sigmoids = z[:2]
            xp.tanh(sigmoids, out=sigmoids)
            sigmoids *= 0.5
            sigmoids += 0.5
            rest_t[...] = z
            n_t += xp.multiply(r, q, out=q)
            xp.tanh(n_t, out=n_t)
            xp.subtract(h[:n], n_t, out=h_t)
            h_t *= u
            h_t += n_t
            h = h_t

    def factors(self, factor: ArrayT) -> None:
        """See the base class."""
        xp = self.xp
        r, _, q, n = self.gates
        sigmoids = self.gates[:2]
        k_r, k_u, k_q, k_a = factor
        work = self.workspace.array("of_factors", *n.shape)
        of_sigmoids = one_minus(sigmoids, factor[:2])
        xp.multiply(n, n, out=work)
        one_minus(work, work)
        xp.multiply(k_u, work, out=k_a)
        xp.multiply(k_a, r, out=k_q)
        of_sigmoids *= sigmoids
        of_sigmoids *= 2
        k_r *= q
        k_r *= k_a
        xp.subtract(self.packing.previous(self.history), n, out=work)
        k_u *= work

    def tangent_loop(self, moved: ArrayT) -> ArrayT:
        """See the base class."""
        multiply, matmul, recurrent = self.xp.multiply, self.xp.matmul, self.recurrent
        result = moved[0]
        for other in moved[1:]:
            result += other
        by_time = zip(
            self.blocks("dh", moved, 0),
            self.blocks("factor_h", self.factor, slice(3)),
            self.blocks("u", self.gates, 1),
            strict=True,
        )
        before, _, _ = next(by_time)
        for dh_t, factor, u in by_time:
            n = len(dh_t)
            z, (z_r, z_u, z_q) = self.work[n]
            before = before[:n]
            matmul(before, recurrent, out=z)
            z *= factor
            dh_t += z_r
            dh_t += z_u
            dh_t += z_q
            dh_t += multiply(u, before, out=z_r)
            before = dh_t
        return result

    def backward_loop(self, slopes: ArrayT, weights: ArrayT, z_bar: ArrayT) -> None:
        """See the base class."""
        multiply, matmul = self.xp.multiply, self.xp.matmul
        h_all = self.workspace.array("h_bar", self.packing.n_sequences, self.size)
        h_all[...] = 0
        by_time = (
            self.packing.blocks(slopes),
            self.blocks("z_bar", z_bar),
            self.blocks("z_bar_h", z_bar, slice(3)),
            self.blocks("factor", self.factor),
            self.blocks("u", self.gates, 1),
        )
        for given, z_bar_t, z_bar_h, factor, u in zip(*map(reversed, by_time), strict=True):
            n = len(u)
            h_bar = h_all[:n]
            z, (z_r, z_u, z_q) = self.work[n]
            h_bar += given
            multiply(factor, h_bar, out=z_bar_t)
            matmul(z_bar_h, weights, out=z)
            h_bar *= u
            h_bar += z_r
            h_bar += z_u
            h_bar += z_q


class GRU(Cell):
    """Gated recurrent unit; the state is h."""

    n_gates = 3
    n_states = 1
    layer_pass = GRUPass

    def advance(self, z: ArrayT, states: Sequence[ArrayT], new: Sequence[ArrayT]) -> None:
        """See the base class."""
        xp = namespace(z)
        sigmoids = z[:2]
        xp.tanh(sigmoids, out=sigmoids)
        sigmoids *= 0.5
        sigmoids += 0.5
        r, u, q, n = z
        h = new[0]
        q *= r
        n += q
        xp.tanh(n, out=n)
        xp.subtract(states[0], n, out=h)
        h *= u
        h += n

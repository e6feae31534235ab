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
        xp, packing = self.xp, self.packing
        self.gates: ArrayT = gates  # a is replaced by n
        h = states[0]
        rest, last = packing.blocks(gates[:3]), packing.blocks(gates[3])
        for n, rest_t, n_t, h_t in zip(packing.running, rest, last, packing.blocks(self.output), strict=True):
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

    def factors(self) -> None:
        """See the base class."""
        xp, factor = self.xp, self.factor
        r, u, q, n = self.gates
        sigmoids = self.gates[:2]
        k_r, k_u, k_q, k_a = factor
        work = self.buffer("work", *n.shape)
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
        self.views("factor", factor)
        self.views("k_recurrent", factor[:3])
        self.views("u", u)

    def tangent_loop(self, moved: ArrayT) -> ArrayT:
        """See the base class."""
        xp = self.xp
        result = moved[0]
        for other in moved[1:]:
            result += other
        if "dh" not in self._views:
            self._views["continuing"] = self.packing.continuing(result)
        dh, factor, u = self.views("dh", result), self._views["k_recurrent"], self._views["u"]
        for t, before in enumerate(self._views["continuing"], 1):
            z, (z_r, z_u, z_q) = self.work[len(before)]
            xp.matmul(before, self.recurrent, out=z)
            z *= factor[t]
            dh_t = dh[t]
            dh_t += z_r
            dh_t += z_u
            dh_t += z_q
            dh_t += xp.multiply(u[t], before, out=z_r)
        return result

    def backward_loop(self, slopes: ArrayT, z_bar: ArrayT) -> None:
        """See the base class."""
        xp = self.xp
        weights = self.recurrent_backward
        h_all = self.buffer("h_bar", *self.history.shape)
        z_views, recurrent = self.views("z_bar", z_bar), self.views("z_recurrent", z_bar[:3])
        factor, u_views = self._views["factor"], self._views["u"]
        given = self.packing.blocks(slopes)
        h_all[: self.packing.n_sequences] = 0
        for t in reversed(range(len(given))):
            u = u_views[t]
            n = len(u)
            h_bar = h_all[:n]
            h_bar += given[t]
            xp.multiply(factor[t], h_bar, out=z_views[t])
            if t:
                z, (z_r, z_u, z_q) = self.work[n]
                xp.matmul(recurrent[t], weights, out=z)
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

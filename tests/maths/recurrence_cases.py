"""Recurrent networks with random parameters, and the same by torch's modules in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from torch.func import functional_call

from sb3_policyopt.maths.recurrence import CELLS, Cell, Packing

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
MODULES = {"lstm": th.nn.LSTM, "gru": th.nn.GRU}
N_IN, HIDDEN = 3, 5

# Makes an array of a library from one of NumPy.
Library = Callable[[np.ndarray], Any]


class Problem:
    """
    A network with random parameters, inputs, initial states and a direction, in the arrays of one library.

    :param kind: name of the cell
    :param n_layers: number of layers
    :param lengths: of the sequences
    :param seed: of the random numbers
    :param library: makes an array of the library from one of NumPy
    """

    def __init__(
        self, kind: str, n_layers: int, lengths: list[int], seed: int, library: Library = np.asarray, dtype: Any = np.float64
    ) -> None:
        self.rng, self.library, self.dtype = np.random.default_rng(seed), library, dtype
        self.cell: Cell = CELLS[kind](N_IN, HIDDEN, n_layers)
        self.kind, self.lengths, self.n_rows = kind, lengths, sum(lengths)
        self.packing = Packing(np.array(lengths))
        self.theta = self.random(self.cell.size, scale=0.6)
        self.x = self.random(self.n_rows, N_IN)
        self.states = tuple(self.random(n_layers, len(lengths), HIDDEN) for _ in range(self.cell.n_states))

    def random(self, *shape: Any, scale: float = 1.0) -> Any:
        return self.library((scale * self.rng.standard_normal(shape)).astype(self.dtype))

    def forward(self) -> Any:
        return self.cell.forward(self.cell.views(self.theta), self.x, self.packing, self.states)

    def tangent(self, run: Any, v: Any, dx: Any = None) -> Any:
        return run.tangent(self.cell.views(v), dx)

    def backward(self, run: Any, slopes: Any) -> Any:
        """The gradient, and the slope with respect to the input."""
        gradient = self.library(np.full(self.cell.size, np.nan, self.dtype))  # so that an entry not written to shows
        x_bar = run.backward(slopes, self.cell.views(gradient), to_input=True)
        return gradient, x_bar

    def module(self) -> th.nn.Module:
        return MODULES[self.kind](N_IN, HIDDEN, self.cell.n_layers).double()

    def as_torch(self) -> Any:
        """A function of parameters and input, one sequence after another, by torch's module."""
        module = self.module()
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        states = [th.as_tensor(state) for state in self.states]

        def outputs(theta: Any, x: Any) -> Any:
            parts = th.split(theta, [shape.numel() for shape in shapes.values()])
            weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            results = []
            for i, sequence in enumerate(th.split(x, self.lengths)):
                initial = tuple(state[:, i : i + 1] for state in states)
                call = (sequence[:, None], initial if len(initial) == 2 else initial[0])
                results.append(functional_call(module, weights, call)[0][:, 0])
            return th.cat(results)

        return outputs, th.as_tensor(self.theta), th.as_tensor(self.x)


def equal(ours: Any, reference: Any, **tolerance: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(reference), **(tolerance or EXACT))

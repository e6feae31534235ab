"""R1, R2: LSTM and GRU over sequences against torch's modules, and their derivatives against torch's, in float64."""

from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from recurrence_cases import HIDDEN, MODULES, N_IN, Library, Problem, equal

from sb3_policyopt.maths.arrays import copy
from sb3_policyopt.maths.recurrence import CELLS, Packing, Workspace

pytestmark = pytest.mark.fast

cells = pytest.mark.parametrize("kind", CELLS)
libraries = pytest.mark.parametrize("library", [np.asarray, th.from_numpy], ids=["numpy", "torch"])
seeds = st.integers(0, 2**31)
layers = st.integers(1, 2)
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(lengths=lengths)
def test_the_time_major_order_has_contiguous_blocks_of_running_sequences(lengths: list[int]) -> None:
    packing = Packing(np.array(lengths))
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    time = np.concatenate([np.arange(n) for n in lengths])
    by_length = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # Python's sort is stable
    assert packing.sequence_order.tolist() == by_length
    rows = [
        int(np.flatnonzero((sequence == i) & (time == t))[0]) for t in range(max(lengths)) for i in by_length if lengths[i] > t
    ]
    assert packing.order.tolist() == rows
    assert packing.order[packing.inverse].tolist() == list(range(sum(lengths)))
    assert packing.running == [sum(n > t for n in lengths) for t in range(max(lengths))]
    array = np.arange(2 * sum(lengths)).reshape(-1, 2)
    assert (packing.to_flat(packing.to_time_major(array)) == array).all()
    blocks = packing.blocks(packing.to_time_major(time[:, None]))
    assert [block[:, 0].tolist() for block in blocks] == [[t] * n for t, n in enumerate(packing.running)]


@pytest.mark.parametrize("lengths", [[], [2, 0], [-1], [[1, 2]]])
def test_lengths_that_are_none_are_refused(lengths: list[Any]) -> None:
    with pytest.raises(ValueError, match="lengths must be"):
        Packing(np.array(lengths))


@cells
@libraries
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_views_lie_as_torchs_parameters_do(kind: str, library: Library, n_layers: int) -> None:
    cell = CELLS[kind](N_IN, HIDDEN, n_layers)
    module = MODULES[kind](N_IN, HIDDEN, n_layers)
    vector = library(th.nn.utils.parameters_to_vector(module.parameters()).detach().numpy())
    assert cell.size == len(vector)
    for i, layer in enumerate(cell.views(vector)):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            equal(getattr(layer, name), getattr(module, f"{name}_l{i}").detach())
            getattr(layer, name)[...] = i  # a view: the vector sees it
    assert (vector == library(np.repeat(np.arange(n_layers), [p.size for p in per_layer(module)]))).all()
    with pytest.raises(ValueError, match="expected a vector of"):
        cell.views(vector[:-1])


def per_layer(module: Any) -> Any:
    """One vector a layer, as long as its parameters."""
    weights = [[getattr(module, name).detach().numpy().ravel() for name in names] for names in module._all_weights]
    return [np.concatenate(parts) for parts in weights]


@cells
@libraries
@given(lengths=lengths, n_layers=layers, seed=seeds)
def test_R1_forward_is_torchs_module_on_each_sequence(
    kind: str, library: Library, lengths: list[int], n_layers: int, seed: int
) -> None:
    problem = Problem(kind, n_layers, lengths, seed, library)
    outputs, theta, x = problem.as_torch()
    equal(problem.forward().outputs, outputs(theta, x))


@cells
@libraries
@given(lengths=lengths, n_layers=layers, seed=seeds)
def test_R1_repeated_steps_are_forward(kind: str, library: Library, lengths: list[int], n_layers: int, seed: int) -> None:
    problem = Problem(kind, n_layers, lengths, seed, library)
    prepared = problem.cell.prepare(problem.cell.views(problem.theta))
    outputs, start = np.asarray(problem.forward().outputs), 0
    for i, length in enumerate(lengths):
        states = tuple(state[:, i : i + 1] for state in problem.states)
        given_states = [copy(state) for state in states]
        for row in range(start, start + length):
            output, new = problem.cell.step(prepared, problem.x[row : row + 1], states)
            equal(output, outputs[row : row + 1])
            equal(new[0][-1], output, rtol=0)
            for state, before in zip(states, given_states, strict=True):
                equal(state, before, rtol=0)  # a step changes no state that it is given
            states, given_states = new, [copy(state) for state in new]
        start += length


@cells
@libraries
def test_R1_a_step_of_many_rows_is_a_step_of_each(kind: str, library: Library) -> None:
    problem = Problem(kind, 2, [1] * 7, 0, library)
    prepared = problem.cell.prepare(problem.cell.views(problem.theta))
    output, _ = problem.cell.step(prepared, problem.x, problem.states)
    equal(output, problem.forward().outputs)


@cells
@libraries
@given(lengths=lengths, n_layers=layers, seed=seeds, with_input=st.booleans())
def test_R2_tangent_is_the_forward_mode_derivative(
    kind: str, library: Library, lengths: list[int], n_layers: int, seed: int, with_input: Any
) -> None:
    problem = Problem(kind, n_layers, lengths, seed, library)
    v, dx = problem.random(problem.cell.size), problem.random(problem.n_rows, N_IN)
    run = problem.forward()
    moved = problem.tangent(run, v, dx if with_input else None)
    outputs, theta, x = problem.as_torch()
    along = (th.as_tensor(v), th.as_tensor(dx) if with_input else th.zeros_like(x))
    # Forward mode of torch's fused kernels is not implemented: reverse mode twice, as J v = ∂(Jᵀu · v)/∂u.
    u = th.zeros(problem.n_rows, HIDDEN, dtype=th.float64, requires_grad=True)
    inputs = (theta.clone().requires_grad_(), x.clone().requires_grad_())
    pulled = th.autograd.grad(outputs(*inputs), inputs, u, create_graph=True)
    equal(moved, th.autograd.grad(pulled, u, along)[0])
    equal(problem.tangent(run, v, dx if with_input else None), moved, rtol=0)  # the pass can be used again


@cells
@libraries
@given(lengths=lengths, n_layers=layers, seed=seeds)
def test_R2_backward_is_autograds_gradient(kind: str, library: Library, lengths: list[int], n_layers: int, seed: int) -> None:
    problem = Problem(kind, n_layers, lengths, seed, library)
    u = problem.random(problem.n_rows, HIDDEN)
    before = copy(u)
    run = problem.forward()
    gradient, x_bar = problem.backward(run, u)
    outputs, theta, x = problem.as_torch()
    inputs = (theta.clone().requires_grad_(), x.clone().requires_grad_())
    reference = th.autograd.grad(outputs(*inputs), inputs, th.as_tensor(before))
    equal(gradient, reference[0])
    equal(x_bar, reference[1])
    equal(u, before, rtol=0)
    again = problem.library(np.empty(problem.cell.size))
    assert run.backward(u, problem.cell.views(again)) is None
    equal(again, gradient, rtol=0)


@cells
@libraries
@given(lengths=lengths, n_layers=layers, seed=seeds)
def test_R2_tangent_and_backward_are_transposes(
    kind: str, library: Library, lengths: list[int], n_layers: int, seed: int
) -> None:
    """uᵀ (J v) = vᵀ (Jᵀ u), for parameters and input together."""
    problem = Problem(kind, n_layers, lengths, seed, library)
    v, dx = problem.random(problem.cell.size), problem.random(problem.n_rows, N_IN)
    u = problem.random(problem.n_rows, HIDDEN)
    run = problem.forward()
    gradient, x_bar = problem.backward(run, u)
    ours = float((u * problem.tangent(run, v, dx)).sum())
    assert ours == pytest.approx(float((v * gradient).sum() + (dx * x_bar).sum()), rel=1e-9, abs=1e-9)


@cells
@libraries
@pytest.mark.parametrize("n_layers", [1, 2])
def test_R2_fisher_vector_product_is_that_of_double_backward(kind: str, library: Library, n_layers: int) -> None:
    """F v = Jᵀ M J v, with a metric M that has a block for each row."""
    problem = Problem(kind, n_layers, [4, 1, 6, 3], 3, library)
    v, root = problem.random(problem.cell.size), problem.random(problem.n_rows, HIDDEN, HIDDEN)
    metric = root @ root.swapaxes(1, 2)
    run = problem.forward()
    ours, _ = problem.backward(run, (metric @ problem.tangent(run, v)[..., None])[..., 0])
    outputs, theta, x = problem.as_torch()
    theta.requires_grad_()
    # ½ (y − y₀)ᵀ M (y − y₀) at y₀ has the gradient 0 and the Hessian Jᵀ M J.
    y = outputs(theta, x)
    moved = y - y.detach()
    loss = 0.5 * (moved[:, None] @ th.as_tensor(metric) @ moved[..., None]).sum()
    slope = th.autograd.grad(loss, theta, create_graph=True)[0]
    equal(ours, th.autograd.grad(slope @ th.as_tensor(v), theta)[0])


@cells
@libraries
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5), seed=seeds, data=st.data())
def test_R1_a_sequence_does_not_depend_on_the_others(
    kind: str, library: Library, lengths: list[int], seed: int, data: Any
) -> None:
    """What is done to one sequence leaves no trace in the outputs, tangents and slopes of another."""
    problem = Problem(kind, 2, lengths, seed, library)
    i = data.draw(st.integers(0, len(lengths) - 1))
    start = sum(lengths[:i])
    rows = slice(start, start + lengths[i])
    outside = np.ones(problem.n_rows, bool)
    outside[rows] = False
    v, u = problem.random(problem.cell.size), problem.random(problem.n_rows, HIDDEN)
    run = problem.forward()
    first = (run.outputs, problem.tangent(run, v), problem.backward(run, u)[1])
    problem.x[rows] += 1
    u[rows] += 1
    for state in problem.states:
        state[:, i] += 1
    run = problem.forward()
    second = (run.outputs, problem.tangent(run, v), problem.backward(run, u)[1])
    for before, after in zip(first, second, strict=True):
        equal(after[outside], before[outside], rtol=0)
        assert (np.asarray(after)[rows] != np.asarray(before)[rows]).any()
    alone = Problem(kind, 2, [lengths[i]], 0, library)
    alone.theta, alone.x = problem.theta, problem.x[rows]
    alone.states = tuple(state[:, i : i + 1] for state in problem.states)
    run = alone.forward()
    equal(run.outputs, second[0][rows])
    equal(alone.backward(run, u[rows])[1], second[2][rows])


@cells
@libraries
@given(cases=st.lists(st.tuples(lengths, seeds), min_size=2, max_size=4))
def test_a_pass_in_used_memory_is_one_in_new_memory(kind: str, library: Library, cases: Any) -> None:
    memory = Workspace()
    for lengths, seed in cases:
        problem = Problem(kind, 2, lengths, seed, library)
        run = problem.cell.forward(problem.cell.views(problem.theta), problem.x, problem.packing, problem.states, memory)
        new = problem.forward()
        v, u = problem.random(problem.cell.size), problem.random(problem.n_rows, HIDDEN)
        equal(run.outputs, new.outputs, rtol=0)
        equal(problem.tangent(run, v), problem.tangent(new, v), rtol=0)
        for ours, reference in zip(problem.backward(run, u), problem.backward(new, u), strict=True):
            equal(ours, reference, rtol=0)


@cells
@libraries
def test_a_pass_between_two_of_the_same_sequences_leaves_no_stale_views(kind: str, library: Library) -> None:
    """The larger pass makes the arrays of the forward pass anew, and those of the derivatives not."""
    small, large = Problem(kind, 1, [3, 2], 0, library), Problem(kind, 1, [9, 8], 1, library)
    memory, v, u = Workspace(), small.random(small.cell.size), small.random(small.n_rows, HIDDEN)
    for between in (True, False):
        run = small.cell.forward(small.cell.views(small.theta), small.x, small.packing, small.states, memory)
        equal(small.tangent(run, v), small.tangent(small.forward(), v), rtol=0)
        equal(small.backward(run, u)[0], small.backward(small.forward(), u)[0], rtol=0)
        if between:
            large.cell.forward(large.cell.views(large.theta), large.x, large.packing, large.states, memory)
            small.theta *= -1


@cells
@libraries
def test_a_pass_whose_memory_serves_another_is_refused(kind: str, library: Library) -> None:
    problem, memory = Problem(kind, 1, [3, 2], 0, library), Workspace()
    arguments = (problem.cell.views(problem.theta), problem.x, problem.packing, problem.states, memory)
    first, second = (problem.cell.forward(*arguments) for _ in range(2))
    equal(first.outputs, second.outputs, rtol=0)  # the outputs are in memory of their own
    with pytest.raises(RuntimeError, match="another pass has begun"):
        problem.tangent(first, problem.theta)
    with pytest.raises(RuntimeError, match="another pass has begun"):
        problem.backward(first, first.outputs)


@libraries
def test_memory_serves_another_dtype_and_library(library: Library) -> None:
    memory = Workspace()
    for dtype in (np.float32, np.float64):
        for make in (library, np.asarray):
            problem = Problem("lstm", 1, [3, 2], 0, make, dtype)
            run = problem.cell.forward(problem.cell.views(problem.theta), problem.x, problem.packing, problem.states, memory)
            assert run.outputs.dtype == problem.theta.dtype
            equal(run.outputs, problem.forward().outputs, rtol=0)


@cells
@libraries
def test_float32_stays_float32_and_agrees(kind: str, library: Library) -> None:
    single, double = (Problem(kind, 2, [5, 9, 9, 2], 1, library, dtype) for dtype in (np.float32, np.float64))
    results = []
    for problem in (single, double):
        run = problem.forward()
        v, u = problem.random(problem.cell.size), problem.random(problem.n_rows, HIDDEN)
        prepared = problem.cell.prepare(problem.cell.views(problem.theta))
        step, states = problem.cell.step(prepared, problem.x[:4], problem.states)
        results.append((run.outputs, problem.tangent(run, v), *problem.backward(run, u), step, *states))
    for ours, reference in zip(*results, strict=True):
        assert ours.dtype == single.theta.dtype
        equal(ours, reference, rtol=1e-4, atol=1e-4 * np.abs(np.asarray(reference)).max())


@cells
@libraries
def test_saturated_gates_overflow_nowhere(kind: str, library: Library) -> None:
    problem = Problem(kind, 1, [3, 2], 0, library)
    problem.theta *= 1e4
    with np.errstate(all="raise", under="ignore"):
        run = problem.forward()
        moved = problem.tangent(run, problem.random(problem.cell.size))
        gradient, _ = problem.backward(run, problem.random(problem.n_rows, HIDDEN))
    for array in (run.outputs, moved, gradient):
        assert np.isfinite(np.asarray(array)).all()

"""The rule that chooses the library of the closed form, against measured tables, and what it leaves as it was."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch as th

from sb3_policyopt.global_state import blas_thread_functions, torch_threads
from sb3_policyopt.maths.arrays import FEW_THREADS, tanh_in_place
from sb3_policyopt.models.networks.library import LibraryRule, Work, faster_library

INPUTS, ACTIONS = 48, 12  # of the tables below


def work_of(width: int) -> Work:
    """Two networks of two hidden layers: a product forward, one to W̄, one to x̄ but for the first layer."""
    sizes = [[INPUTS * width, width * width, width * n_out] for n_out in (ACTIONS, 1)]
    return Work(sum(3 * sum(layers) - layers[0] for layers in sizes), 4 * width)


ON_16_CORES = {
    # (width, rows): PPO's minibatch on 16 cores, µs: SB3 (torch by autograd, all threads); ours in NumPy, one thread or all
    (64, 64): (3301, 318, "numpy"),
    (64, 512): (5357, 1751, "numpy"),
    (64, 4096): (7274, 11719, "torch"),
    (64, 16384): (14955, 45063, "torch"),
    (256, 64): (3348, 1331, "numpy"),
    (256, 512): (5518, 8025, "torch"),
    (256, 4096): (12502, 46333, "torch"),
    (256, 16384): (59023, 105215, "torch"),
    (512, 64): (5536, 4302, "torch"),
    (512, 512): (7636, 28483, "torch"),
    (512, 4096): (30339, 63169, "torch"),
    (1024, 64): (7416, 18747, "torch"),
    (1024, 512): (12900, 50204, "torch"),
}
PRODUCTS_ON_16_CORES = {
    # (rows, width): a product (rows × width)·(width × width), µs: NumPy with 1 thread, with 16, torch; tanh in NumPy, torch
    (64, 64): (10, 5, 10, 3, 10),
    (64, 256): (80, 56, 30, 8, 11),
    (512, 256): (467, 119, 109, 48, 16),
    (2048, 64): (150, 52, 23, 64, 16),
    (2048, 256): (2324, 275, 252, 399, 54),
    (4096, 512): (15631, 2442, 2573, 2747, 156),
    (16384, 64): (1261, 156, 116, 477, 56),
}
CALLS_IN_TORCH = 550
"""µs that a pass in torch takes longer than one in NumPy besides the products, on 16 threads."""


@pytest.mark.fast
@pytest.mark.parametrize("cell", ON_16_CORES, ids=str)
def test_on_16_cores_torch_serves_wherever_autograd_was_faster_than_numpy(cell: tuple[int, int]) -> None:
    """And NumPy where it was more than twice as fast as autograd, which computes what torch would and a graph."""
    width, rows = cell
    of_sb3, of_numpy, expected = ON_16_CORES[cell]
    assert faster_library(work_of(width), rows, threads=16) == expected
    if of_numpy > of_sb3:
        assert expected == "torch"
    if of_sb3 > 2 * of_numpy:
        assert expected == "numpy"


@pytest.mark.fast
@pytest.mark.parametrize("cell", PRODUCTS_ON_16_CORES, ids=str)
def test_on_16_cores_the_products_and_activations_of_the_table_are_faster_where_the_rule_says(
    cell: tuple[int, int],
) -> None:
    """
    A pass has five products of the largest size a network (three of a layer, two of the first) and two activations. Several
    threads of NumPy are as fast as torch at best, but for the smallest product, where all of them take 10 µs or less.
    """
    rows, width = cell
    one, several, torch, tanh, tanh_in_torch = PRODUCTS_ON_16_CORES[cell]
    networks = 2
    in_numpy = networks * (5 * one + 2 * tanh)
    in_torch = networks * (5 * torch + 2 * tanh_in_torch) + CALLS_IN_TORCH
    assert several + tanh > 0.95 * (torch + tanh_in_torch) or cell == (64, 64)
    assert faster_library(work_of(width), rows, threads=16) == ("torch" if in_torch < in_numpy else "numpy")


@pytest.mark.parametrize("threads", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("width", [32, 64, 256, 512, 1024])
def test_from_some_number_of_rows_on_torch_serves_and_never_with_one_thread(width: int, threads: int) -> None:
    chosen = [faster_library(work_of(width), 2**i, threads) for i in range(18)]
    assert chosen == sorted(chosen)  # "numpy" before "torch"
    assert chosen[0] == "numpy"
    assert chosen[-1] == ("numpy" if threads == 1 else "torch")


def threads() -> tuple[int, int]:
    functions = blas_thread_functions()
    return functions[0]() if functions else 0, th.get_num_threads()


@pytest.fixture
def several_threads() -> Iterator[None]:
    """Two threads of both libraries, wherever the tests run."""
    before, functions = threads(), blas_thread_functions()
    th.set_num_threads(2)
    if functions:
        functions[1](2)
    yield
    th.set_num_threads(before[1])
    if functions:
        functions[1](before[0])


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("error", [False, True])
def test_threads_rest_while_the_other_library_serves_and_come_back(error: bool) -> None:
    of_model, before = LibraryRule(work_of(256)), threads()
    for rows, in_torch in ((64, 1), (16384, 2)):
        try:
            with of_model.threads_for(rows):
                assert threads() == (min(before[0], 1), in_torch)
                with of_model.threads_for(16384):  # within a series nothing changes
                    of_model.look()
                    assert threads() == (min(before[0], 1), in_torch)
                if error:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert threads() == before


@pytest.mark.usefixtures("several_threads")
def test_a_changed_number_of_threads_counts_from_the_next_series_on() -> None:
    of_model = LibraryRule(work_of(256))
    assert of_model.library(4096) == "torch"
    th.set_num_threads(1)
    assert of_model.library(4096) == "torch"
    of_model.look()
    assert of_model.library(4096) == "numpy"


@pytest.mark.fast
@pytest.mark.parametrize("count", [1, FEW_THREADS + 1])
def test_tanh_of_either_library(count: int) -> None:
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    tensor = th.from_numpy(x.copy())
    with torch_threads(count):
        tanh_in_place(tensor)
    np.testing.assert_allclose(tensor, np.tanh(x.astype(np.float64)), rtol=3e-7, atol=1e-7)

"""The array functions that pick their way by size agree on both ways, and with float64."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_policyopt.maths.arrays import FEW, log_sum_exp


@given(
    rows=st.integers(1, 700),
    columns=st.integers(1, 20),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    offset=st.sampled_from([-1e4, 0.0, 1e4]),
    by_columns=st.booleans(),
    seed=st.integers(0, 99),
)
def test_log_sum_exp_of_any_size(rows: int, columns: int, scale: float, offset: float, by_columns: bool, seed: int) -> None:
    """ln Σ e^x = m + ln Σ e^(x − m) for any m; torch computes it in float64 from the same float32 numbers."""
    x = (offset + scale * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)
    expected = th.from_numpy(x).double().logsumexp(1).numpy()
    result = log_sum_exp(np.asfortranarray(x) if by_columns else x)
    assert result.dtype == np.float32
    assert result.shape == (rows,)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("rows", [2, FEW])
def test_log_sum_exp_of_an_impossible_action(rows: int) -> None:
    """e^−∞ = 0 adds nothing: ln(e^1 + 0) = 1."""
    x = np.tile(np.array([1.0, -np.inf], np.float32), (rows, 1))
    np.testing.assert_array_equal(log_sum_exp(x), np.ones(rows, np.float32))

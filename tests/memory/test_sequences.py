"""R1: rows, sequences and padding, without networks."""

from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.context import Memory
from sb3_policyopt.rollout.sequenced_rows import SequencedRows, initial_states, is_a_range
from sb3_policyopt.rollout.sequences import Sequences, cuts, from_padded, to_padded

LAYERS, HIDDEN = 2, 3


def sequences_of(lengths: list[int]) -> Sequences:
    """Sequences whose states hold their own number."""
    states = [th.arange(len(lengths), dtype=th.float32).expand(LAYERS, len(lengths)).clone()[..., None] for _ in range(4)]
    begins = np.arange(len(lengths)) % 2 == 0
    return Sequences(np.array(lengths, np.int64), begins, Memory((states[0], states[1]), (states[2], states[3])))


LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@given(lengths=LENGTHS, shape=st.sampled_from([(), (2,), (2, 3)]))
def test_R1_to_padded_and_back_is_the_identity(lengths: list[int], shape: tuple[int, ...]) -> None:
    sequences, n = sequences_of(lengths), sum(lengths)
    rows = th.arange(n * int(np.prod(shape)), dtype=th.float32).reshape(n, *shape)
    padded = to_padded(rows, sequences)
    assert padded.shape == (len(lengths), max(lengths), *shape)
    start = 0
    for number, length in enumerate(lengths):  # each sequence lies at the start of its own line
        assert th.equal(padded[number, :length], rows[start : start + length])
        start += length
    assert th.equal(from_padded(padded.flatten(0, 1), sequences), rows)


@given(lengths=LENGTHS)
def test_R1_padding_gets_no_gradient_of_its_own(lengths: list[int]) -> None:
    """What is computed from padding is left out: ∂Σ rows/∂rows is 1 for each row, though the last ones are repeated."""
    sequences = sequences_of(lengths)
    rows = th.zeros(sum(lengths), requires_grad=True)
    total: Any = from_padded(to_padded(rows, sequences).flatten(), sequences).sum()
    total.backward()
    assert rows.grad is not None
    assert th.equal(rows.grad, th.ones(sum(lengths)))


@given(lengths=LENGTHS, size=st.integers(1, 12))
def test_R1_pieces_never_cut_a_sequence(lengths: list[int], size: int) -> None:
    batch = batch_of(lengths)
    pieces = list(batch.pieces(size))
    assert sum(piece.size for piece in pieces) == batch.size
    np.testing.assert_array_equal(np.concatenate([piece.returns.numpy() for piece in pieces]), batch.returns.numpy())
    numbers: list[int] = []
    for piece in pieces:
        assert piece.sequences is not None
        assert piece.size <= size or len(piece.sequences.lengths) == 1
        assert piece.sequences.lengths.sum() == piece.size > 0
        assert_same_states(piece, lengths)
        numbers += piece.sequences.initial.pi[0][0, :, 0].int().tolist()
    assert numbers == list(range(len(lengths)))


@given(lengths=LENGTHS, n=st.integers(1, 10))
def test_R1_thinning_takes_every_nth_sequence(lengths: list[int], n: int) -> None:
    thinned = batch_of(lengths).thinned(n)
    assert thinned.sequences is not None
    assert thinned.sequences.lengths.tolist() == lengths[::n]
    ends = np.cumsum(lengths)
    expected = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)][::n]
    np.testing.assert_array_equal(thinned.returns.numpy(), np.concatenate(expected))
    np.testing.assert_array_equal(thinned.context["action_masks"][:, 0].numpy(), np.concatenate(expected))
    assert_same_states(thinned, lengths)


def batch_of(lengths: list[int]) -> Batch[th.Tensor]:
    """A batch whose columns hold the number of the row."""
    rows = th.arange(sum(lengths), dtype=th.float32)
    batch = Batch(rows[:, None], rows[:, None], rows, rows, rows, rows, {"action_masks": rows[:, None]})
    batch.sequences = sequences_of(lengths)
    return batch


def assert_same_states(batch: Batch[th.Tensor], lengths: list[int]) -> None:
    """Lengths, beginnings and all four states are those of the sequence with the number that the states hold."""
    assert batch.sequences is not None
    for states in batch.sequences.initial:
        for part in states:
            numbers = part[0, :, 0].int().tolist()
            assert part.shape == (LAYERS, len(numbers), 1)
            assert batch.sequences.lengths.tolist() == [lengths[number] for number in numbers]
            assert batch.sequences.begins_episode.tolist() == [number % 2 == 0 for number in numbers]


@st.composite
def rollouts(draw: Any) -> tuple[np.ndarray, int, int | None]:
    """Episode starts of several environments one after the other, their steps, and a limit for sequences."""
    n_envs, n_steps = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    starts = draw(st.lists(st.booleans(), min_size=n_envs * n_steps, max_size=n_envs * n_steps))
    return np.array(starts), n_steps, draw(st.one_of(st.none(), st.integers(1, 6)))


@given(rollout=rollouts())
def test_R1_sequences_are_cut_at_environments_episodes_and_the_limit(rollout: tuple[np.ndarray, int, int | None]) -> None:
    starts, n_steps, limit = rollout
    before, expected, since = starts.copy(), [], 0
    for row, start in enumerate(starts):  # the definition, row by row
        cut = bool(start) or row % n_steps == 0 or since == limit
        expected.append(cut)
        since = 1 if cut else since + 1
    assert cuts(starts, n_steps, limit).tolist() == expected
    assert (starts == before).all()


def data_of(starts: np.ndarray, n_steps: int, limit: int | None) -> SequencedRows:
    """A rollout whose columns and states hold the number of the row; states of part k are row + k / 4."""
    n = len(starts)
    rows = th.arange(n, dtype=th.float32)
    states = tuple(
        np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None] + k / 4, (n, LAYERS, HIDDEN)).copy() for k in range(4)
    )
    batch = Batch(rows[:, None], rows[:, None], rows, rows, rows, rows, {"action_masks": rows[:, None]})
    return SequencedRows(batch, starts, states, n_steps, limit)


def assert_right_sequences(data: SequencedRows, batch: Batch[th.Tensor]) -> None:
    """Each sequence's rows follow each other in one environment and one episode, and begin with the state of the first."""
    sequences = batch.sequences
    assert sequences is not None and sequences.lengths.sum() == batch.size
    rows = batch.returns.numpy().astype(int)
    assert isinstance(batch.observations, th.Tensor)
    np.testing.assert_array_equal(batch.observations[:, 0].numpy(), rows)
    first = 0
    for number, length in enumerate(sequences.lengths):
        of_sequence = rows[first : first + length]
        np.testing.assert_array_equal(of_sequence, np.arange(of_sequence[0], of_sequence[0] + length))
        assert not data.cuts[of_sequence[1:]].any(), "a sequence goes on over a cut"
        begins = bool(data.episode_starts[of_sequence[0]])
        assert sequences.begins_episode[number] == begins
        parts = (*sequences.initial.pi, *sequences.initial.vf)
        for k, part in enumerate(parts):
            expected = 0.0 if begins else of_sequence[0] + k / 4
            assert (part[:, number] == expected).all(), "R1: h before the sequence, zero where an episode begins"
            assert part.shape[::2] == (LAYERS, HIDDEN) and part.is_contiguous()
        first += length


@given(rollout=rollouts())
def test_R1_the_whole_rollout_in_order(rollout: tuple[np.ndarray, int, int | None]) -> None:
    data = data_of(*rollout)
    (batch,) = data.whole()
    np.testing.assert_array_equal(batch.returns.numpy(), np.arange(len(rollout[0])))
    assert_right_sequences(data, batch)
    assert batch.sequences is not None and len(batch.sequences.lengths) == data.cuts.sum()


@given(rollout=rollouts(), batch_size=st.integers(1, 20), seed=st.integers(0, 100))
def test_R1_minibatches_are_every_row_once_in_right_sequences(
    rollout: tuple[np.ndarray, int, int | None], batch_size: int, seed: int
) -> None:
    data = data_of(*rollout)
    np.random.seed(seed)
    batches = list(data.minibatches(batch_size, False))
    for batch in batches:
        assert_right_sequences(data, batch)
    sizes = [batch.size for batch in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1) and 0 < sizes[-1] <= batch_size
    rows = np.concatenate([batch.returns.numpy() for batch in batches]).astype(int)
    assert sorted(rows) == list(range(len(rollout[0])))
    if rollout[2] is None:  # sb3-contrib's rotation
        assert is_a_range(np.roll(rows, rows.tolist().index(0) * -1))


def test_R1_without_a_limit_a_pass_is_sb3_contribs_rotation() -> None:
    """``split_index = np.random.randint(size)``: the rows from it on, then those before it."""
    data = data_of(np.zeros(12, bool), 6, None)
    np.random.seed(5)
    split = np.random.randint(12)
    np.random.seed(5)
    rows = np.concatenate([batch.returns.numpy() for batch in data.minibatches(5, False)])
    np.testing.assert_array_equal(rows, [*range(split, 12), *range(split)])


def test_R1_with_a_limit_a_pass_shuffles_sequences() -> None:
    data = data_of(np.zeros(24, bool), 12, 3)
    np.random.seed(0)
    orders = {tuple(np.concatenate([b.returns.numpy() for b in data.minibatches(6, False)]).astype(int)) for _ in range(20)}
    assert len(orders) > 15
    for order in orders:
        assert all(is_a_range(np.array(order[i : i + 3])) for i in range(0, 24, 3))


def test_R1_minibatches_with_normalised_advantages() -> None:
    data = data_of(np.arange(24) % 7 == 0, 12, None)
    for batch in data.minibatches(8, True):
        assert batch.sequences is not None
        assert float(batch.advantages.mean()) == pytest.approx(0, abs=1e-6)
        assert float(batch.advantages.std()) == pytest.approx(1, rel=1e-5)


def test_R1_initial_states_are_copies() -> None:
    states = np.ones((3, LAYERS, HIDDEN), np.float32)
    found = initial_states(states, np.array([0, 2]), np.array([True, False]))
    np.testing.assert_array_equal(found, np.stack([np.zeros((LAYERS, HIDDEN)), np.ones((LAYERS, HIDDEN))], 1))
    assert (states == 1).all()


def test_an_empty_batch_has_no_rows_and_no_sequences() -> None:
    batch = batch_of([3, 2]).rows(slice(0, 0))
    assert batch.size == 0
    assert sequences_of([2]).some(np.empty(0, int)).rows_of(np.empty(0, int)).shape == (0,)

"""Without a launcher, or with one rank, nothing is initialised and nothing changes; and what each rank is given."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from launch import surroundings
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import RunRecorder
from sb3_policyopt.maths import losses
from sb3_policyopt.objectives import TrustRegion
from sb3_policyopt.parallel import launcher, leader, minibatches
from sb3_policyopt.parallel.callbacks import ProgressBar, WithChild, callbacks_of_this_rank
from sb3_policyopt.parallel.minibatches import passes
from sb3_policyopt.parallel.rollouts import increment
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.minibatches import RolloutData

LAUNCHER: dict[str, Any] = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
LEARN = """
import torch.distributed as dist
from sb3_policyopt import PPO
from sb3_policyopt.callbacks import RunRecorder
for name in ("init_process_group", "TCPStore"):
    setattr(dist, name, None)
PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1).learn(32)
assert not dist.is_initialized()
"""


@pytest.mark.parametrize(
    "launcher",
    [pytest.param({"WORLD_SIZE": "8"}, id="no_launcher", marks=pytest.mark.slow), pytest.param(LAUNCHER, id="one_rank")],
)
def test_nothing_is_initialised(launcher: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", LEARN], env=surroundings(**launcher), check=True, timeout=600)


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be one of three ranks, as far as one can without meeting the others."""

    def pretend(rank: int) -> None:
        for name, value in {**LAUNCHER, "RANK": str(rank), "WORLD_SIZE": "3"}.items():
            monkeypatch.setenv(name, value)

    return pretend


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_timeout_must_be_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(launcher.TIMEOUT, text)
    with pytest.raises(ValueError, match=f"{launcher.TIMEOUT} must be a positive number of seconds, got '{text}'"):
        launcher.timeout()


def first_observations(n_envs: int, seed: int) -> np.ndarray:
    env = make_vec_env("CartPole-v1", n_envs=n_envs)
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=seed)
    observations = env.reset()
    assert isinstance(observations, np.ndarray)
    return observations


def test_the_environments_of_all_ranks_are_seeded_as_those_of_one_process(as_rank: Any) -> None:
    one_process = first_observations(6, seed=7)
    for rank in range(3):
        as_rank(rank)
        np.testing.assert_array_equal(first_observations(2, seed=7), one_process[2 * rank : 2 * rank + 2])


class Custom(BaseCallback):
    def _on_step(self) -> bool:
        return True


class OnRank0(Custom):
    rank_zero_only = True


def names(callback: Any) -> list[str]:
    if isinstance(callback, CallbackList):
        return [name for child in callback.callbacks for name in names(child)]
    return [type(callback).__name__]


def some_callbacks() -> Any:
    return [
        Custom(),
        OnRank0(),
        RunRecorder("."),
        EvalCallback(make_vec_env("CartPole-v1")),
        CallbackList([CheckpointCallback(1, "x"), StopTrainingOnMaxEpisodes(1)]),
        EveryNTimesteps(1, CheckpointCallback(1, "x")),
        EveryNTimesteps(1, Custom()),
        CallbackList([ProgressBarCallback()]),
        ConvertCallback(lambda local_variables, global_variables: True),
    ]


def test_rank_0_runs_all_callbacks_and_the_others_those_that_belong_to_training(as_rank: Any) -> None:
    as_rank(0)
    callback, bar = callbacks_of_this_rank(some_callbacks(), progress_bar=True)
    user_callbacks = ["Custom", "OnRank0", "RunRecorder", "EvalCallback", "CheckpointCallback", "StopTrainingOnMaxEpisodes"]
    assert names(callback) == [
        *user_callbacks,
        "EveryNTimesteps",
        "EveryNTimesteps",
        "ProgressBar",
        "ConvertCallback",
        "ProgressBar",
    ]
    assert bar is False
    as_rank(1)
    callback, bar = callbacks_of_this_rank(some_callbacks(), progress_bar=True)
    assert names(callback) == ["Custom", "StopTrainingOnMaxEpisodes", "EveryNTimesteps", "ConvertCallback"]
    assert bar is False


class Counted(Custom):
    """Counts its steps, and what its parent counts."""

    def _on_training_start(self) -> None:
        self.steps, self.events = 0, [0]

    def _on_step(self) -> bool:
        assert isinstance(self.parent, EveryNTimesteps) and "rewards" in self.locals
        self.steps += 1
        self.events.append(self.parent.n_calls)
        return True


class Forbidden(OnRank0):
    """May not even be prepared on another rank."""

    def _init_callback(self) -> None:
        raise AssertionError("this belongs to rank 0")


@pytest.mark.parametrize("depth", [1, 2])
def test_callbacks_on_events_call_on_another_rank_what_belongs_to_training(
    as_rank: Any, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """Their counts go on in the user's objects, which call all again when the training is over."""
    counted, forbidden = Counted(), Forbidden()
    whole = CallbackList([forbidden, counted])
    events = EveryNTimesteps(8, whole)
    user_callback = events if depth == 1 else EveryNTimesteps(4, CallbackList([forbidden, events]))
    outer_child = user_callback.callback
    as_rank(1)
    callback, _ = callbacks_of_this_rank(user_callback, progress_bar=False)
    assert isinstance(callback, WithChild)
    monkeypatch.undo()  # a training without the others
    PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1).learn(32, callback)
    # Of 32 steps every eighth is an event; the outer one has an event in every fourth.
    assert (counted.steps, counted.n_calls) == (4, 4)
    assert counted.events == ([0, 8, 16, 24, 32] if depth == 1 else [0, 2, 4, 6, 8])
    assert events.last_time_trigger == 32
    assert user_callback.callback is outer_child and events.callback is whole
    assert whole.callbacks == [forbidden, counted]


def test_a_callback_on_events_of_which_nothing_is_left_does_not_run(as_rank: Any) -> None:
    as_rank(1)
    evaluation = EvalCallback(make_vec_env("CartPole-v1"))
    assert callbacks_of_this_rank(EveryNTimesteps(8, CallbackList([evaluation, OnRank0()])), False) == (None, False)
    kept = EveryNTimesteps(8, CallbackList([Custom()]))
    assert callbacks_of_this_rank(kept, False) == (kept, False)


def test_the_progress_bar_counts_the_steps_of_all_ranks() -> None:
    bar = ProgressBar()
    bar.model = type("Model", (), {"num_timesteps": 100})()
    bar.locals = {"total_timesteps": 700}
    bar.on_training_start(bar.locals, {})
    assert bar.pbar.total == 600
    for steps in (106, 112, 700):
        bar.model.num_timesteps = steps
        bar.on_step()
        assert bar.pbar.n == steps - 100
    bar.on_training_end()


def test_only_rank_0_writes_the_model(as_rank: Any, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    as_rank(1)
    model.save(tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()
    as_rank(0)
    model.save(tmp_path / "model.zip")
    assert PPO.load(tmp_path / "model.zip").num_timesteps == 0


numbers = st.floats(-1e3, 1e3)


@given(st.lists(numbers, max_size=20), st.lists(numbers, min_size=1, max_size=20))
def test_what_was_added_to_a_running_mean_is_recovered(before: Any, added: Any) -> None:
    moments = RunningMeanStd()
    if before:
        moments.update(np.array(before))
    then = moments.copy()
    moments.update(np.array(added))
    found = increment(then, moments)
    assert found.count == pytest.approx(len(added))
    assert found.mean == pytest.approx(np.mean(added), abs=1e-8)
    # The variance comes out of squares of up to 1e6, of which float64 keeps 16 digits.
    assert found.var == pytest.approx(np.var(added), abs=1e-6)


def test_nothing_was_added() -> None:
    moments = RunningMeanStd(shape=(2,))
    assert increment(moments, moments.copy()).count == 0


@pytest.fixture(scope="module")
def n_ranks() -> Iterator[Any]:
    """Several ranks, all of which have what this process has; without any connection."""
    n = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minibatches, "gather", lambda thing: [thing] * n)
        patch.setattr(minibatches, "sum_", lambda tensor: tensor.mul_(n))
        yield n


def batch_of(advantages: Any) -> Batch[Any]:
    """A minibatch of which only the advantages matter."""
    column = np.zeros(len(advantages), np.float32)
    return Batch(column, column, column, column, advantages, column)


class Given(RolloutData[Any]):
    """Passes with the given minibatches."""

    def __init__(self, *passes: Any) -> None:
        self.passes = iter(passes)

    def whole(self) -> Iterator[Batch[Any]]:
        raise NotImplementedError

    def minibatches(self, batch_size: int, normalized: Any) -> Any:
        return iter(next(self.passes))


def normalized_together(pieces: Any) -> list[np.ndarray]:
    """The advantages of the minibatches that this rank takes in one pass."""
    (one_pass,) = passes(Given([batch_of(piece) for piece in pieces]), batch_size=8, n_passes=1, normalized=True)
    return [np.asarray(batch.advantages) for batch in one_pass]


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    mean=st.floats(-1e4, 1e4),
    deviation=st.floats(1e-2, 1e3),
    as_tensor=st.booleans(),
)
def test_minibatches_are_normalised_together_as_each_by_itself(
    n_ranks: int, seed: int, sizes: Any, mean: Any, deviation: Any, as_tensor: Any
) -> None:
    rng = np.random.default_rng(seed)
    pieces = [(mean + deviation * rng.standard_normal(size)).astype(np.float32) for size in sizes]
    one = next(i for i, piece in enumerate(pieces) if len(piece))
    for spoiled in (False, True):  # a number that is not finite spoils its own minibatch and no other
        if spoiled:
            pieces[one][0] = np.inf
        given_pieces = [th.from_numpy(piece) for piece in pieces] if as_tensor else pieces
        for i, (normal, piece) in enumerate(zip(normalized_together(given_pieces), pieces, strict=True)):
            if not (spoiled and i == one):
                # All ranks together have each advantage once per rank.
                expected = losses.normalize(np.tile(piece, n_ranks).astype(np.float64))[: len(piece)]
                np.testing.assert_allclose(normal, expected, rtol=1e-4, atol=1e-5)


def test_equal_advantages_become_zero(n_ranks: int) -> None:
    for normal in normalized_together([np.full(5, 3.0, np.float32), np.full(7, -2.0, np.float32)]):
        np.testing.assert_allclose(normal, 0, atol=1e-6)


def test_a_buffer_that_gives_more_minibatches_than_before_is_refused(n_ranks: int) -> None:
    """The ranks agreed in the first pass on how many they take together."""
    row = batch_of(np.arange(4.0, dtype=np.float32))
    three = passes(Given([row] * 3, [row] * 2, [row] * 4), batch_size=8, n_passes=3, normalized=True)
    assert [minibatch.size for minibatch in next(three)] == [4, 4, 4]
    assert [minibatch.size for minibatch in next(three)] == [4, 4, 0]
    with pytest.raises(ValueError, match=r"rollout_buffer_class: its get\(\) gave 4 minibatches.* more than 3"):
        next(three)


class Own(TrustRegion):
    """Of a rank with 30 transitions, 10 of them in the Fisher matrix."""

    size, fisher_size = 30, 10
    surrogate, gradient = 2.0, th.ones(3)

    def fisher(self, vector: Any) -> Any:
        return 5 * vector

    def evaluate(self) -> Any:
        return 4.0, 8.0


def test_a_rank_counts_by_its_share_of_the_transitions_and_of_those_of_the_fisher_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other rank has 10 and 5, and here nothing to say: shares of 30/40 and 10/15."""
    monkeypatch.setattr(leader, "gather", lambda mine: [mine, (10, 5)])
    monkeypatch.setattr(leader, "sum_", lambda tensor: tensor)
    monkeypatch.setattr(leader, "broadcast_", lambda tensor: tensor)
    region = leader.SharedTrustRegion(Own(), th.zeros(3))
    assert (region.size, region.fisher_size) == (40, 15)
    assert region.surrogate == pytest.approx(2.0 * 30 / 40)
    th.testing.assert_close(region.gradient, th.full((3,), 30 / 40))
    th.testing.assert_close(region.fisher(th.ones(3)), th.full((3,), 5 * 10 / 15))
    assert region.evaluate() == pytest.approx((4.0 * 30 / 40, 8.0 * 30 / 40))

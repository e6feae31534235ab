"""The rollout buffer is as in SB3 what it holds when, who keeps its arrays, and how full it has to be."""

import copy
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from buffer_models import ARRAYS, N_STEPS, STOCK, arrays, assert_same_update, both, make
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from toy_environments import ACTION_SPACES, IMAGE, OBSERVATION_SPACES, collect, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO

# ---------------------------------------------------------------------- what is kept of it


class AtRollouts(BaseCallback):
    """A callback of an on-policy algorithm: SB3 declares the model as any algorithm."""

    model: Any


class Keep(AtRollouts):
    """Keeps the buffer's arrays, views of them and a shallow copy of the buffer at each rollout's end, and what they held."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def keep(self) -> None:
        buffer = copy.copy(self.model.rollout_buffer)
        if isinstance(buffer.observations, dict):  # SB3's own get() puts flat arrays into the dict that a shallow copy shares
            buffer.observations = dict(buffer.observations)
        pieces: list[Any] = list(arrays(buffer).values())
        pieces += [piece[1:] for piece in pieces] + [memoryview(piece) for piece in pieces] + [piece[-1] for piece in pieces]
        self.kept.append((pieces, [np.array(piece) for piece in pieces], buffer, copy.deepcopy(buffer)))

    def _on_rollout_end(self) -> None:
        self.keep()

    def _on_rollout_start(self) -> None:
        if len(self.kept):  # the arrays as the update has left them are gone by now, in SB3 too
            assert not self.model.rollout_buffer.full

    def _on_step(self) -> bool:
        return True


def assert_kept(kept: list[tuple[list[Any], list[Any], Any, Any]]) -> None:
    for pieces, truth, buffer, copied in kept:
        for piece, was in zip(pieces, truth, strict=True):
            np.testing.assert_array_equal(np.asarray(piece), was)
        for name, array in arrays(buffer).items():
            np.testing.assert_array_equal(array, arrays(copied)[name])
        assert (buffer.pos, buffer.full, buffer.generator_ready) == (copied.pos, copied.full, copied.generator_ready)


@both
@pytest.mark.parametrize("observation", ["box", "discrete", "dict"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", ["auto", "autograd"])
def test_arrays_of_a_rollout_that_somebody_keeps_do_not_change(
    cls: type[Any], observation: str, n_envs: int, name: str
) -> None:
    keep = Keep()
    model = make(cls, observation=OBSERVATION_SPACES[observation], n_envs=n_envs, engine=name)
    model.learn(4 * N_STEPS * n_envs, callback=keep)
    assert len(keep.kept) == 4
    assert_kept(keep.kept)
    keep.keep()  # what the last update left, too
    collect(model)
    assert_kept(keep.kept)


def test_arrays_that_are_kept_while_they_are_filled(engine: str) -> None:
    """Who takes them at the start of a rollout sees them being filled, advantages too, as in SB3."""

    class Take(AtRollouts):
        def _on_rollout_start(self) -> None:
            self.taken = arrays(self.model.rollout_buffer)

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            self.same = {name for name, array in arrays(buffer).items() if array is self.taken[name]}

    same = []
    sides: list[tuple[Any, ...]] = [(StockPPO, {}), (PPO, {"engine": engine})]
    for algorithm, options in sides:
        callback = Take()
        make(PPO, algorithm, **options).learn(2 * N_STEPS, callback=callback)
        same.append(callback.same)
    assert same[0] == same[1] == set(ARRAYS) - {"returns"}


# ---------------------------------------------------------------------- how an update leaves it


@both
@pytest.mark.parametrize("observation", ["box", "discrete", "dict"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", ["auto", "autograd"])
def test_after_learning_it_is_as_sb3_leaves_it(cls: type[Any], observation: str, n_envs: int, name: str) -> None:
    """The same shapes, flags and order of rows."""
    models = [
        make(cls, algorithm, OBSERVATION_SPACES[observation], n_envs, **options).learn(2 * N_STEPS * n_envs)
        for algorithm, options in ((STOCK[cls], {}), (cls, {"engine": name}))
    ]
    stock, ours = (model.rollout_buffer for model in models)
    assert (stock.pos, stock.full, stock.generator_ready) == (ours.pos, ours.full, ours.generator_ready)
    for key, array in arrays(stock).items():
        mine = arrays(ours)[key]
        assert (mine.shape, mine.dtype) == (array.shape, array.dtype), key
    flat = arrays(ours)
    np.testing.assert_array_equal(flat["returns"], flat["advantages"] + flat["values"])
    with th.no_grad():
        rows = next(iter(ours.get(batch_size=None)))
    assert rows.returns.shape == (N_STEPS * n_envs,)
    if cls is PPO and name == "autograd":  # which draws the random numbers of SB3
        for key, array in arrays(stock).items():
            np.testing.assert_allclose(flat[key], array, rtol=1e-4, atol=1e-5, err_msg=key)


@both
def test_a_callback_may_flatten_it_before_the_update(cls: type[Any], engine: str) -> None:
    """As imitation and reward models do that take their samples by ``get`` when the rollout ends."""

    class Sampling(AtRollouts):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            state = np.random.get_state()
            self.returns = sum(float(batch.returns.sum()) for batch in self.model.rollout_buffer.get(8))
            np.random.set_state(state)

    results = []
    for callback in (None, Sampling()):
        model = make(cls, engine=engine).learn(4 * N_STEPS, callback=callback)
        results.append(parameter_vector(model.policy))
    assert th.equal(*results)


@both
def test_what_a_callback_writes_into_it_is_trained_on(cls: type[Any], engine: str) -> None:
    class Shaping(AtRollouts):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            buffer.advantages = buffer.advantages * 0
            buffer.returns = buffer.values.copy()

    model = make(cls, engine=engine, normalize_advantage=False)
    actor = model.policy.action_net.weight.detach().clone()
    model.learn(2 * N_STEPS, callback=Shaping())
    # Adam makes steps of up to its learning rate of gradients that are nothing but rounding.
    moved = float((model.policy.action_net.weight - actor).abs().max())
    assert moved == 0 if cls is TRPO else moved < 1e-3


@both
def test_two_updates_from_one_rollout(cls: type[Any], engine: str) -> None:
    model = make(cls, engine=engine)
    collect(model)
    model.train()
    before = parameter_vector(model.policy)
    model.train()
    assert not th.equal(before, parameter_vector(model.policy))


@pytest.mark.parametrize("cls", [PPO])
def test_images(cls: type[Any]) -> None:
    """Large arrays of bytes: new ones each rollout, flat after the update."""
    keep = Keep()
    model = cls("CnnPolicy", toy(IMAGE, ACTION_SPACES["discrete"], 2), n_steps=4, batch_size=8, n_epochs=1, device="cpu")
    model.learn(24, callback=keep)
    assert_kept(keep.kept)
    assert model.rollout_buffer.observations.shape == (8, 1, 36, 36)


# ---------------------------------------------------------------------- how full it is


class Resize(AtRollouts):
    """Changes n_steps at the start of a rollout, which holds from the next one on."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps

    def _on_rollout_start(self) -> None:
        self.model.n_steps = self.n_steps

    def _on_step(self) -> bool:
        return True


@both
@pytest.mark.parametrize(("n_steps", "error"), [(10, AssertionError), (20, IndexError)])
def test_another_n_steps_than_the_buffer_has_is_refused_with_both_numbers(
    cls: type[Any], engine: str, n_steps: int, error: type[Any]
) -> None:
    """SB3 refuses both, without a word of why."""
    with pytest.raises(error):
        make(cls, STOCK[cls]).learn(100, callback=Resize(n_steps))
    model = make(cls, engine=engine)
    with pytest.raises(ValueError, match=rf"\b16\b.*\b{n_steps}\b|\b{n_steps}\b.*\b16\b") as caught:
        model.learn(100, callback=Resize(n_steps))
    assert "n_steps" in str(caught.value) and "rollout_buffer" in str(caught.value)
    assert model._n_updates == (2 if cls is PPO else 1)  # that of the first rollout, which was whole
    assert model.num_timesteps == (52 if n_steps == 10 else 32)  # too long a one does not even start


@both
def test_what_the_errors_advise(cls: type[Any], engine: str, tmp_path: Path) -> None:
    model = make(cls, engine=engine).learn(2 * N_STEPS)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=model.env, n_steps=10, device="cpu").learn(40)
    assert loaded.rollout_buffer.buffer_size == 10 and loaded.rollout_buffer.full
    model.n_steps = 10
    model.rollout_buffer = model.rollout_buffer_class(
        10, model.observation_space, model.action_space, model.device, model.gae_lambda, model.gamma, model.n_envs
    )
    n_updates = model._n_updates
    assert model.learn(20)._n_updates > n_updates


@both
@pytest.mark.parametrize("n_collected", [0, 10])
def test_train_and_load_by_hand_refuse_a_buffer_that_is_not_full(cls: type[Any], engine: str, n_collected: int) -> None:
    sides: list[tuple[Any, ...]] = [(STOCK[cls], {}, AssertionError), (cls, {"engine": engine}, ValueError)]
    for algorithm, options, error in sides:
        model = make(cls, algorithm, **options)
        callback = start(model)
        collect(model)
        model.train()
        before = parameter_vector(model.policy)
        model.rollout_buffer.reset()
        if n_collected:
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_collected)
        with pytest.raises(error) as caught:
            model.train()
        assert th.equal(before, parameter_vector(model.policy))
    assert f"{n_collected} of its 16 steps" in str(caught.value)
    with pytest.raises(ValueError, match=f"{n_collected} of its 16 steps"):
        list(model.prepare_engine().data(model.rollout_buffer).whole())


@both
def test_fewer_steps_than_it_has_rows_look_as_in_sb3(cls: type[Any]) -> None:
    """They may be collected, if not trained on: the other rows are zero, not those of the last rollout."""
    buffers = []
    sides: list[tuple[Any, ...]] = [(STOCK[cls], {}), (cls, {"engine": "autograd"})]
    for algorithm, options in sides:
        model = make(cls, algorithm, **options)
        callback = start(model)
        for n_steps in (16, 10):
            th.manual_seed(0)
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps)
        buffers.append(model.rollout_buffer)
    stock, ours = buffers
    assert (ours.pos, ours.full) == (stock.pos, stock.full) == (10, False)
    assert not ours.rewards[10:].any() and not ours.observations[10:].any()
    for name, array in arrays(stock).items():
        np.testing.assert_allclose(arrays(ours)[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_buffer_of_ones_own_beside_the_models(engine: str) -> None:
    """``collect_rollouts`` by hand; the buffer's γ and λ count, as in SB3, not those of the model."""
    buffers = []
    sides: list[tuple[Any, ...]] = [(StockPPO, {}), (PPO, {"engine": engine})]
    for algorithm, options in sides:
        model = make(PPO, algorithm, **options)
        callback = start(model)
        own = RolloutBuffer(10, model.observation_space, model.action_space, "cpu", gae_lambda=0.3, gamma=0.5, n_envs=2)
        assert model.collect_rollouts(model.env, callback, own, 10)
        assert own.full and not model.rollout_buffer.full
        reference = copy.deepcopy(own)
        with th.no_grad():
            last_values = model.policy.predict_values(th.as_tensor(model._last_obs))
        reference.compute_returns_and_advantage(last_values, model._last_episode_starts)
        for name in ("advantages", "returns"):
            np.testing.assert_allclose(getattr(own, name), getattr(reference, name), rtol=1e-4, atol=1e-5)
        buffers.append(own)


@both
def test_a_callback_changes_the_buffers_discount(cls: type[Any], engine: str) -> None:
    class Annealing(AtRollouts):
        def _on_rollout_start(self) -> None:
            self.model.rollout_buffer.gamma, self.model.rollout_buffer.gae_lambda = 0.0, 0.0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            np.testing.assert_allclose(buffer.returns, buffer.rewards, rtol=1e-4, atol=1e-5)

    make(cls, engine=engine).learn(4 * N_STEPS, callback=Annealing())


class AsFarAsItGoes(RolloutBuffer):
    """A buffer that is made for rollouts of any length up to its size, with a ``get`` of its own."""

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        rows = self.pos * self.n_envs
        flat = [
            array[: self.pos].swapaxes(0, 1).reshape(rows, -1)
            for array in (self.observations, self.actions, self.values, self.log_probs, self.advantages, self.returns)
        ]
        order = np.random.permutation(rows)
        for first in range(0, rows, batch_size or rows):
            yield from [self.samples(flat, order[first : first + (batch_size or rows)])]

    def samples(self, flat: list[np.ndarray], rows: np.ndarray) -> RolloutBufferSamples:
        observations, actions, *scalars = (th.as_tensor(array[rows].astype(np.float32)) for array in flat)
        return RolloutBufferSamples(observations, actions, *(scalar.flatten() for scalar in scalars))


@both
def test_a_get_of_ones_own_decides_by_itself_whether_it_is_full_enough(cls: type[Any]) -> None:
    models = []
    for algorithm in (STOCK[cls], cls):
        model = make(cls, algorithm, rollout_buffer_class=AsFarAsItGoes)
        callback = start(model)
        th.manual_seed(0)
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 10)
        np.random.seed(0)
        before = parameter_vector(model.policy)
        model.train()
        models.append(model)
        assert not th.equal(before, parameter_vector(model.policy))
    assert_same_update(cls, *models)


@both
def test_a_get_of_ones_own_that_calls_sb3s_is_refused_in_words_too(cls: type[Any]) -> None:
    class Counted(RolloutBuffer):
        def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
            yield from super().get(batch_size)

    model = make(cls, rollout_buffer_class=Counted)
    callback = start(model)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 10)
    with pytest.raises(ValueError, match="10 of its 16 steps"):
        model.train()


@both
def test_an_assertion_of_a_get_of_ones_own_is_left_alone(cls: type[Any]) -> None:
    class Asserting(RolloutBuffer):
        def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
            assert batch_size == 7, "seven"
            yield

    model = make(cls, rollout_buffer_class=Asserting)
    collect(model)
    with pytest.raises(AssertionError, match="seven"):
        model.train()

"""Methods of the rollout buffer that somebody replaced, on a class or on the object, do what they do in SB3."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch as th
from buffer_models import N_STEPS, SMALL, STOCK, arrays, assert_same_update, both, make
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, parameter_vector, start, toy

from sb3_policyopt import PPO, NonFiniteError

# ---------------------------------------------------------------------- what replaces its methods

METHODS = ("reset", "add", "compute_returns_and_advantage", "get", "_get_samples", "swap_and_flatten", "to_torch")


def counted(calls: dict[str, Any], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        return original(*args, **kwargs)

    return method


def on_the_object(model: Any, names: tuple[Any, ...], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names:
        setattr(model.rollout_buffer, name, counted(calls, name, getattr(model.rollout_buffer, name)))


def on_sb3s_class(model: Any, names: tuple[Any, ...], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cls = type(model.rollout_buffer)
    for name in names:
        method = counted(calls, name, getattr(cls, name))
        monkeypatch.setattr(cls, name, staticmethod(method) if name == "swap_and_flatten" else method)


@pytest.mark.thinned(2)
@both
@pytest.mark.parametrize("replace", [on_the_object, on_sb3s_class])
@pytest.mark.parametrize("observation", ["box", "dict"])
@pytest.mark.parametrize("names", [*((name,) for name in METHODS), METHODS], ids=lambda names: "+".join(names)[:30])
def test_replaced_methods_are_called_as_often_as_in_sb3(
    cls: type[Any], monkeypatch: pytest.MonkeyPatch, replace: Callable[..., Any], observation: str, names: tuple[Any, ...]
) -> None:
    calls: list[dict[str, int]] = []
    parameters = []
    sides: list[tuple[Any, ...]] = [(STOCK[cls], {}), (cls, {}), (cls, {"engine": "autograd"})]
    for algorithm, options in sides:
        with monkeypatch.context() as patch:
            model = make(cls, algorithm, OBSERVATION_SPACES[observation], **options)
            calls.append({})
            replace(model, names, calls[-1], patch)
            model.learn(4 * N_STEPS)
            parameters.append(parameter_vector(model.policy))
    assert calls[1] == calls[2] == calls[0] and set(calls[0]) == set(names)
    if cls is PPO:  # on autograd, which draws the random numbers of SB3
        assert float((parameters[2] - parameters[0]).abs().max()) < 3e-6


def reset_and_set_gamma(buffer: Any, reset: Callable[[], None]) -> None:
    reset()
    buffer.gamma = 0.0


def compute_and_square(buffer: Any, compute: Callable[..., None], last_values: th.Tensor, dones: np.ndarray) -> None:
    compute(last_values, dones)
    buffer.advantages = buffer.advantages**2


REPLACEMENTS: dict[str, Callable[[Any, Callable[..., Any]], Callable[..., Any]]] = {
    "reset": lambda buffer, reset: lambda: reset_and_set_gamma(buffer, reset),
    "add": lambda buffer, add: lambda obs, action, reward, *rest: add(obs, action, reward * 3 - 1, *rest),
    "compute_returns_and_advantage": lambda buffer, compute: (
        lambda last_values, dones: compute_and_square(buffer, compute, last_values, dones)
    ),
    "get": lambda buffer, get: (
        lambda batch_size=None: (batch._replace(advantages=batch.advantages**2) for batch in get(batch_size))
    ),
    "_get_samples": lambda buffer, samples: lambda rows, env=None: samples(rows[::2], env),
    "to_torch": lambda buffer, to_torch: lambda array, copy=True: to_torch(np.round(array, 1)),
    "swap_and_flatten": lambda buffer, flatten: lambda array: flatten(array)[::-1].copy(),
}


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_what_a_replaced_method_does_reaches_the_parameters_as_in_sb3(name: str, engine: str) -> None:
    """From one stock rollout and one seed, through the closed form's own loading too where it may serve."""
    after = {}
    sides: list[tuple[str, type[Any], dict[str, Any]]] = [
        ("stock", StockPPO, {}),
        ("ours", PPO, {"engine": "auto" if engine == "closed_form" else engine}),
        ("without", PPO, {"engine": "autograd"}),
    ]
    for what, algorithm, options in sides:
        model = make(PPO, algorithm, **options)
        buffer, callback = model.rollout_buffer, start(model)
        if what != "without":
            setattr(buffer, name, REPLACEMENTS[name](buffer, getattr(buffer, name)))
        if what == "ours" and engine == "closed_form":
            collect_by_autograd(model, callback)
        else:
            th.manual_seed(0)
            assert model.collect_rollouts(model.env, callback, buffer, N_STEPS)
        np.random.seed(1)
        model.train()
        after[what] = parameter_vector(model.policy)
    assert float((after["ours"] - after["stock"]).abs().max()) < 3e-6
    assert float((after["without"] - after["stock"]).abs().max()) > 1e-4, "the replacement makes no difference"


def collect_by_autograd(model: Any, callback: BaseCallback) -> None:
    """A rollout with the random numbers of SB3 for an engine that draws others."""
    model.engine, wanted = "autograd", model.engine
    th.manual_seed(0)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    model.engine = wanted


class Elsewhere(RolloutBuffer):
    """Keeps its steps in lists of its own and gives them out by itself, as a buffer for other storage does."""

    def reset(self) -> None:
        super().reset()
        for name in ("observations", "actions", "values", "log_probs"):
            setattr(self, name, None)
        self.steps: list[Any] = []

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        self.steps.append((obs.copy(), action.copy(), value.clone(), log_prob.clone()))
        self.rewards[self.pos], self.episode_starts[self.pos] = reward, episode_start
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        self.values = np.stack([step[2].numpy().flatten() for step in self.steps])
        super().compute_returns_and_advantage(last_values, dones)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        columns = [np.stack([np.asarray(step[k]) for step in self.steps]) for k in range(4)]
        columns += [self.advantages, self.returns]
        flat = [array.swapaxes(0, 1).reshape(self.buffer_size * self.n_envs, -1).astype(np.float32) for array in columns]
        order = np.random.permutation(len(flat[0]))
        for first in range(0, len(order), batch_size or len(order)):
            rows = order[first : first + (batch_size or len(order))]
            observations, actions, *scalars = (th.as_tensor(array[rows]) for array in flat)
            yield RolloutBufferSamples(observations, actions, *(scalar.flatten() for scalar in scalars))


@both
def test_a_buffer_that_keeps_its_steps_elsewhere(cls: type[Any]) -> None:
    models = []
    for algorithm in (STOCK[cls], cls):
        model = make(cls, algorithm, rollout_buffer_class=Elsewhere)
        callback = start(model)
        th.manual_seed(0)
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
        np.random.seed(0)
        model.train()
        models.append(model)
    assert_same_update(cls, *models)


@both
def test_a_buffer_with_its_own_methods_lets_nothing_in_that_is_not_finite(cls: type[Any]) -> None:
    env: Any = toy(action=ACTION_SPACES["discrete"])
    step_wait = env.step_wait

    def poisoned() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, bool]]]:
        observations, rewards, dones, infos = step_wait()
        rewards[2] = np.nan
        return observations, rewards, dones, infos

    env.step_wait = poisoned
    model = cls("MlpPolicy", env, rollout_buffer_class=Elsewhere, **SMALL)
    with pytest.raises(NonFiniteError, match="Non-finite reward in environment 2 at step 0 "):
        model.learn(100)


@both
def test_a_dict_buffer_whose_class_adds_a_column(cls: type[Any]) -> None:
    """Its ``get`` flattens what it added only if nobody has flattened the rest."""

    class Costs(DictRolloutBuffer):
        def reset(self) -> None:
            super().reset()
            self.costs = np.zeros((self.buffer_size, self.n_envs), np.float32)

        def add(self, *args: Any, **kwargs: Any) -> None:
            self.costs[self.pos] = self.pos
            super().add(*args, **kwargs)

        def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
            if not self.generator_ready:
                self.costs = self.swap_and_flatten(self.costs)
            for samples in super().get(batch_size):
                assert self.costs.shape == self.values.shape
                yield samples

    make(cls, observation=OBSERVATION_SPACES["dict"], rollout_buffer_class=Costs).learn(4 * N_STEPS)


class InTheMiddle(BaseCallback):
    """Changes the buffer in the middle of the second rollout."""

    model: Any  # to SB3 it is any algorithm

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.change = change

    def _on_step(self) -> bool:
        if self.n_calls == N_STEPS + 5:
            self.change(self.model.rollout_buffer)
        return True


def triple_rewards_from_now_on(buffer: Any) -> None:
    add = buffer.add
    buffer.add = lambda obs, action, reward, *rest: add(obs, action, reward * 3, *rest)


def other_arrays(buffer: Any) -> None:
    for name in ("observations", "rewards", "values"):
        setattr(buffer, name, getattr(buffer, name).copy())


@both
@pytest.mark.parametrize("change", [triple_rewards_from_now_on, other_arrays])
def test_a_change_in_the_middle_of_a_rollout(cls: type[Any], change: Callable[..., Any]) -> None:
    buffers = []
    sides: list[tuple[Any, ...]] = [(STOCK[cls], {}), (cls, {"engine": "autograd"})]
    for algorithm, options in sides:
        model = make(cls, algorithm, **options)
        callback = InTheMiddle(change)
        callback.init_callback(model)
        start(model)
        for _ in range(2):
            th.manual_seed(0)
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
        buffers.append(model.rollout_buffer)
    for name, array in arrays(buffers[0]).items():
        np.testing.assert_allclose(arrays(buffers[1])[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@both
def test_a_reset_in_the_middle_of_a_rollout_leaves_it_unfit_for_an_update(cls: type[Any], engine: str) -> None:
    with pytest.raises(AssertionError):
        make(cls, STOCK[cls]).learn(100, callback=InTheMiddle(lambda buffer: buffer.reset()))
    with pytest.raises(ValueError, match="12 of its 16 steps"):  # the 5th step of the 16 is stored after it, the first of 12
        make(cls, engine=engine).learn(100, callback=InTheMiddle(lambda buffer: buffer.reset()))

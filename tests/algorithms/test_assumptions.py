"""What the formulas take for granted of a policy, and what they leave to a callback: stock's numbers, or autograd's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from edited_models import ALGORITHMS, OPTIONS, parameters_of, update_twice
from gymnasium import spaces
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from torch import nn
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, collect, start, toy

from sb3_policyopt import PPO, TRPO


def started(model: Any) -> Any:
    start(model)
    return model


def twins(policy: Any, action: str = "box_6") -> tuple[Any, Any]:
    env = OBSERVATION_SPACES["box"], ACTION_SPACES[action]
    stock, ours = (cls(policy, toy(*env), **OPTIONS[PPO]) for cls in (StockPPO, PPO))
    for model in (stock, ours):
        start(model)
    return stock, ours


def assert_equal_parameters(stock: Any, ours: Any) -> None:
    theirs = parameters_of(stock)
    for name, parameter in parameters_of(ours).items():
        np.testing.assert_allclose(parameter, theirs[name], rtol=1e-4, atol=4e-5, err_msg=name)


def with_log_std(shape: tuple[int, ...]) -> type[ActorCriticPolicy]:
    class WithLogStd(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.log_std = nn.Parameter(th.full(shape, -0.5))
            self.optimizer = th.optim.Adam(self.parameters(), lr_schedule(1), eps=1e-5)

    return WithLogStd


@pytest.mark.parametrize(
    ("shape", "engine"),
    [((1,), "autograd"), ((), "autograd"), ((1, 1), "autograd"), ((1, 6), "closed_form"), ((6,), "closed_form")],
)
def test_a_standard_deviation_that_dimensions_share(shape: tuple[int, ...], engine: str) -> None:
    """SB3 broadcasts it. The formulas have an entry for each dimension."""
    stock, ours = twins(with_log_std(shape))
    update_twice(stock, ours)
    assert ours.engine_in_use.name == engine, ours.engine_in_use.reason
    assert_equal_parameters(stock, ours)
    assert float((ours.policy.log_std - -0.5).detach().abs().max()) > 1e-4  # it learns
    trained = TRPO(with_log_std(shape), toy(OBSERVATION_SPACES["box"], ACTION_SPACES["box_6"]), **OPTIONS[TRPO]).learn(32)
    assert trained.engine_in_use is not None and trained.engine_in_use.name == engine


def test_a_critic_with_two_outputs_is_left_to_torch() -> None:
    class TwoValues(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 2)
            self.optimizer = th.optim.Adam(self.parameters(), lr_schedule(1), eps=1e-5)

    model = PPO(TwoValues, toy(OBSERVATION_SPACES["box"], ACTION_SPACES["box_6"]), **OPTIONS[PPO])
    assert model.prepare_engine().name == "autograd"


class Called(ActorCriticPolicy):
    """Its actions are within a tenth."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        actions, values, log_probs = super().__call__(*args, **kwargs)
        return actions.clamp(-0.1, 0.1), values, log_probs


@contextmanager
def replaced_call(kind: type, scale: float) -> Iterator[None]:
    """``kind.__call__`` returns everything times ``scale``."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return tuple(scale * output for output in nn.Module.__call__(self, *args, **kwargs))

    kind.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        del kind.__call__


@ALGORITHMS
def test_another_call_of_a_policy_or_of_its_layers_is_honoured(cls: type[Any]) -> None:
    env = toy(OBSERVATION_SPACES["box"], ACTION_SPACES["box_6"])
    model = started(cls(Called, env, **OPTIONS[cls]))
    collect(model)
    assert model.engine_in_use.name == "autograd" and "__call__" in model.engine_in_use.reason
    assert float(np.abs(model.rollout_buffer.actions).max()) <= np.float32(0.1)
    for kind in (ActorCriticPolicy, MlpExtractor):
        model = started(cls("MlpPolicy", env, **OPTIONS[cls]))
        with replaced_call(kind, 0.0):
            collect(model)
            assert model.engine_in_use.name == "autograd", kind
        assert np.abs(model.rollout_buffer.values).max() < 1e-6, kind
        collect(model)
        assert model.engine_in_use.name == "closed_form" and np.abs(model.rollout_buffer.values).max() > 1e-3


class Corrects(BaseCallback):
    """Edits in place what the step stores."""

    def _on_step(self) -> bool:
        self.locals["values"][:] = 3.0 + self.locals["n_steps"]
        self.locals["log_probs"][:] -= 7.0
        self.locals["rewards"][:] = 0.5
        return True


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_a_callback_may_edit_values_and_log_probabilities_in_place(engine: str) -> None:
    env = OBSERVATION_SPACES["box"], ACTION_SPACES["discrete"]
    buffers = []
    stock_and_ours: list[tuple[Any, dict[str, Any]]] = [(StockPPO, {}), (PPO, {"engine": engine})]
    for cls, options in stock_and_ours:
        model = started(cls("MlpPolicy", toy(*env), **OPTIONS[PPO], **options))
        assert model.collect_rollouts(model.env, model._init_callback(Corrects()), model.rollout_buffer, model.n_steps)
        buffers.append(model.rollout_buffer)
    stock, ours = buffers
    np.testing.assert_array_equal(ours.values, stock.values)
    np.testing.assert_array_equal(ours.values[:, 0], 3.0 + np.arange(len(ours.values)))
    np.testing.assert_array_equal(ours.rewards, 0.5)
    assert ours.log_probs.max() < -7.0 and stock.log_probs.max() < -7.0
    np.testing.assert_allclose(ours.returns - ours.advantages, ours.values, rtol=1e-5)


class Seen(VecEnvWrapper):
    """The largest action that arrived."""

    largest = 0.0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        self.largest = max(self.largest, float(np.abs(actions).max()))
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@pytest.mark.parametrize("bound", [0.1, 5.0])
def test_actions_are_clipped_to_the_space_of_the_model(bound: float) -> None:
    """The policy's own may be another: it was trained elsewhere, or the model's was narrowed."""
    largest = []
    for cls in (StockPPO, PPO):
        env = Seen(toy(OBSERVATION_SPACES["box"], ACTION_SPACES["box_6"]))
        model = started(cls("MlpPolicy", env, **OPTIONS[PPO]))
        model.action_space = spaces.Box(-bound, bound, model.action_space.shape)
        model.policy.log_std.data.fill_(1.0)
        collect(model)
        largest.append(env.largest)
    assert all(found == pytest.approx(0.1) for found in largest) if bound == 0.1 else all(found > 1.5 for found in largest)


@pytest.mark.parametrize("action", ["discrete", "multi_discrete"])
def test_a_bias_of_minus_infinity_forbids_an_action(action: str) -> None:
    stock, ours = twins("MlpPolicy", action)
    for model in (stock, ours):
        model.ent_coef = 0.1
        model.policy.action_net.bias.data[1] = -np.inf
    update_twice(stock, ours)
    assert ours.engine_in_use.name == "closed_form"
    for model in (stock, ours):
        assert (model.rollout_buffer.actions[..., 0] != 1).all() and model.policy.action_net.bias[1] == -np.inf
    assert_equal_parameters(stock, ours)
    trpo: Any = TRPO("MlpPolicy", toy(OBSERVATION_SPACES["box"], ACTION_SPACES[action]), **OPTIONS[TRPO])
    trpo.policy.action_net.bias.data[1] = -np.inf
    before = parameters_of(trpo)
    trpo.learn(32)
    after = parameters_of(trpo)
    assert th.isfinite(after["action_net.weight"]).all() and not th.equal(
        after["action_net.weight"], before["action_net.weight"]
    )


class Shifted(ActorCriticPolicy):
    """SB3 gives it final observations at time limits, and no others."""

    def obs_to_tensor(self, observation: Any) -> Any:
        tensor: Any
        tensor, vectorized = super().obs_to_tensor(observation)
        return tensor + 3.0, vectorized


@pytest.mark.parametrize("policy", [Shifted, "MlpPolicy"])
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_final_observations_go_through_the_policys_own_preparation(engine: str, policy: Any) -> None:
    rewards = []
    for cls, options in [(StockPPO, {}), (PPO, {"engine": engine})]:
        env = DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=3)] * 2)
        model: Any = cls(policy, env, **OPTIONS[PPO], **options)  # type: ignore[arg-type]
        model.policy.log_std.data.fill_(-20.0)  # so that actions differ by nothing
        collect(model)
        rewards.append(model.rollout_buffer.rewards)
    np.testing.assert_allclose(rewards[1], rewards[0], rtol=1e-5, atol=1e-5)
    assert len(rewards[0]) == 8


class WholeNumbersAtFirst(VecEnvWrapper):
    """Its reset gives other numbers than its steps."""

    def reset(self) -> Any:
        observations: Any = self.venv.reset()
        return (100 * observations).astype(np.int64)

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_callbacks_see_the_observations_of_a_step_in_their_own_type() -> None:
    seen = []

    class Compares(BaseCallback):
        def _on_step(self) -> bool:
            observations = self.locals["self"]._last_obs
            np.testing.assert_array_equal(self.locals["obs_tensor"], observations)
            seen.append(observations.dtype)
            return True

    env = WholeNumbersAtFirst(toy(OBSERVATION_SPACES["box"], ACTION_SPACES["box_6"]))
    PPO("MlpPolicy", env, **OPTIONS[PPO]).learn(32, callback=Compares())
    assert seen[0] == np.int64 and {*seen[1:]} == {np.dtype(np.float32)}

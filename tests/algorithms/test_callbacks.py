"""SB3's callbacks find everything where SB3 has it."""

import copy
from collections.abc import Generator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, all_observations, collect, parameter_vector, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}
STOCK: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
both = pytest.mark.parametrize("cls", [PPO, TRPO])


class Locals(BaseCallback):
    """Notes type, shape and dtype of every local variable, at the steps and at the end of a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.at_step: dict[str, Any] = {}
        self.at_rollout_end: dict[str, Any] = {}
        self.at_start: dict[str, Any] = {}
        self.events: list[str] = []

    def describe(self) -> dict[str, Any]:
        def description(value: Any) -> tuple[Any, ...] | type[Any]:
            array_like = isinstance(value, (np.ndarray, th.Tensor))
            return (type(value), tuple(value.shape), str(value.dtype)) if array_like else type(value)

        return {name: description(value) for name, value in self.locals.items()}

    def _on_training_start(self) -> None:
        self.at_start = self.describe()
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        self.at_step = self.describe()
        self.events.append("step")
        return True

    def _on_rollout_end(self) -> None:
        self.at_rollout_end = self.describe()
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


@both
@pytest.mark.parametrize(
    ("observation", "action"),
    [
        ("box", "box_6"),
        ("box", "box_1"),
        ("discrete", "discrete"),
        ("box", "multi_discrete"),
        ("multi_binary", "multi_binary"),
    ],
)
def test_locals_are_those_of_sb3(cls: type[Any], observation: str, action: str, engine: str) -> None:
    notes = []
    sides: list[tuple[Any, ...]] = [(STOCK[cls], {}), (cls, {"engine": engine})]
    for algorithm, options in sides:
        callback = Locals()
        model = algorithm("MlpPolicy", toy(OBSERVATION_SPACES[observation], ACTION_SPACES[action]), **SMALL, **options)
        model.learn(128, callback=callback)
        notes.append(callback)
    stock, ours = notes
    assert ours.events == stock.events
    # Variables of SB3's loop over environments that were cut off, which here is no loop.
    loop_variables = {"idx", "done", "terminal_obs", "terminal_value"}
    own = {"self", "callback", "progress_bar", "iteration", "__class__"}
    for moment in ("at_step", "at_rollout_end"):
        theirs, mine = getattr(stock, moment), getattr(ours, moment)
        assert theirs.keys() - loop_variables <= mine.keys(), moment
        for name in theirs.keys() - loop_variables - own:
            assert mine[name] == theirs[name], (moment, name)
    assert {"total_timesteps", "callback", "log_interval", "tb_log_name", "self"} <= ours.at_start.keys()


@both
def test_locals_with_dict_observations(cls: type[Any]) -> None:
    callback = Locals()
    model = cls("MultiInputPolicy", toy(OBSERVATION_SPACES["dict"]), **SMALL)
    model.learn(64, callback=callback)
    assert callback.at_step["obs_tensor"] is dict


class Keep(BaseCallback):
    """Keeps the tensors of each step beside copies of them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[th.Tensor, th.Tensor]] = []

    def _on_step(self) -> bool:
        for name in ("obs_tensor", "values", "log_probs"):
            self.kept.append((self.locals[name], self.locals[name].clone()))
        observations = self.locals["self"]._last_obs
        np.testing.assert_array_equal(self.locals["obs_tensor"], observations)
        assert self.locals["obs_tensor"].cpu().numpy().dtype == observations.dtype
        return True


@both
@pytest.mark.parametrize("width", [3, 3000], ids=["copied", "viewed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tensors_that_a_callback_keeps_do_not_change(cls: type[Any], width: int, dtype: type[Any]) -> None:
    keep = Keep()
    env = toy(spaces.Box(-1, 1, (width,), dtype), ACTION_SPACES["box_6"], n_envs=2)
    cls("MlpPolicy", env, n_steps=8, batch_size=16, policy_kwargs={"net_arch": [4]}, seed=0).learn(32, callback=keep)
    assert len(keep.kept) == 3 * 16
    assert all(th.equal(tensor, copy) for tensor, copy in keep.kept)


class StopAfter(BaseCallback):
    """Stops in the middle of a rollout."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.n_calls < self.steps


@both
def test_a_stop_in_mid_rollout_makes_no_update_and_can_go_on(cls: type[Any], engine: str) -> None:
    model = cls("MlpPolicy", toy(), engine=engine, **SMALL)
    before = parameter_vector(model.policy)
    model.learn(1000, callback=StopAfter(5))
    assert model.num_timesteps == 20 and model._n_updates == 0
    assert th.equal(parameter_vector(model.policy), before)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 84 and model._n_updates > 0


@both
def test_evaluation_checkpoints_and_stopping(cls: type[Any], tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    stop = StopTrainingOnRewardThreshold(reward_threshold=5, verbose=0)
    evaluation = EvalCallback(
        gym.make("CartPole-v1"),
        callback_on_new_best=stop,
        eval_freq=20,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
        warn=False,
    )
    checkpoints = CheckpointCallback(save_freq=8, save_path=str(tmp_path), name_prefix="model")
    model = cls("MlpPolicy", env, **SMALL)
    model.learn(10_000, callback=CallbackList([checkpoints, evaluation]))
    # Every CartPole episode lasts at least 8 steps, so the first evaluation (20 calls of 4 steps) ends the training.
    assert model.num_timesteps == 80
    assert {path.name for path in tmp_path.glob("*.zip")} == {"model_32_steps.zip", "model_64_steps.zip"}
    best = cls.load(tmp_path / "best" / "best_model", device="cpu")
    observation = env.reset()
    np.testing.assert_array_equal(
        best.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    assert np.load(tmp_path / "log" / "evaluations.npz")["timesteps"].tolist() == [80]


@both
def test_vec_normalize(cls: type[Any], engine: str) -> None:
    env = VecNormalize(toy())
    model = cls("MlpPolicy", env, engine=engine, **SMALL).learn(128)
    assert model.get_vec_normalize_env() is env
    assert abs(float(model.rollout_buffer.observations.mean())) < 1


@both
def test_progress_bar(cls: type[Any], capfd: pytest.CaptureFixture[str]) -> None:
    cls("MlpPolicy", toy(), **SMALL).learn(128, progress_bar=True)
    captured = capfd.readouterr()
    assert "128/128" in captured.out + captured.err


@both
def test_tensorboard(cls: type[Any], tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = cls("MlpPolicy", toy(), tensorboard_log=str(tmp_path), **SMALL).learn(192)
    (run,) = tmp_path.iterdir()
    assert run.name == f"{cls.__name__}_1"
    events = event_accumulator.EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("train/value_loss")] == [64, 128, 192]
    assert {"rollout/ep_rew_mean", "time/fps", "train/explained_variance", "train/std"} <= set(events.Tags()["scalars"])
    assert model.num_timesteps == 192


class ScaledRewards(RolloutBuffer):
    """A buffer whose ``add`` is its own; SB3 hands it discrete actions as a column."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale
        self.shapes: set[tuple[Any, ...]] = set()

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        self.shapes.add((action.shape, value.shape, log_prob.shape, type(value), type(log_prob)))
        super().add(obs, action, self.scale * reward, episode_start, value, log_prob)


@both
@pytest.mark.parametrize("action", ["discrete", "box_6"])
def test_a_buffer_with_its_own_add(cls: type[Any], action: str) -> None:
    env = toy(action=ACTION_SPACES[action])
    options: dict[str, Any] = {"rollout_buffer_class": ScaledRewards, "rollout_buffer_kwargs": {"scale": 0.0}}
    stock = STOCK[cls]("MlpPolicy", env, **SMALL, **options).learn(64)
    ours = cls("MlpPolicy", env, **SMALL, **options).learn(64)
    assert ours.rollout_buffer.shapes == stock.rollout_buffer.shapes
    assert ours.rollout_buffer.full and not ours.rollout_buffer.rewards.any()


class Halves(RolloutBuffer):
    """A buffer whose ``get`` is its own: two fixed halves."""

    calls = 0

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        type(self).calls += 1
        np.random.seed(0)  # whatever order, it is not drawn from the generator of the training
        yield from super().get(self.buffer_size * self.n_envs // 2)


@both
def test_a_buffer_with_its_own_get(cls: type[Any]) -> None:
    calls = {}
    for algorithm in (STOCK[cls], cls):
        Halves.calls = 0
        model = algorithm("MlpPolicy", toy(), rollout_buffer_class=Halves, **{**SMALL, "batch_size": 8})
        collect(model)
        model.train()
        calls[algorithm] = Halves.calls
    assert calls[cls] == calls[STOCK[cls]]
    epochs = model.n_epochs if cls is PPO else model.n_critic_updates
    state = model.policy.optimizer.state_dict()["state"]
    assert {float(entries["step"]) for entries in state.values()} == {2.0 * epochs}


class DictBuffer(DictRolloutBuffer):
    """A buffer with its own everything, for Dict observations."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        yield from super().get(batch_size)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= 2


@both
@pytest.mark.parametrize("value_target", ["td_lambda", "td_zero", "monte_carlo"])
def test_a_dict_buffer_of_its_own(cls: type[Any], value_target: str) -> None:
    env = toy(OBSERVATION_SPACES["dict"])
    model = cls("MultiInputPolicy", env, rollout_buffer_class=DictBuffer, value_target=value_target, **SMALL)
    assert model.learn(128)._n_updates > 0


@both
@pytest.mark.parametrize("value_target", ["td_lambda", "td_zero", "monte_carlo"])
def test_value_targets_by_their_recursions(cls: type[Any], value_target: str, engine: str) -> None:
    """G = r + γ V(s'), the return to the end of the episode (or V after the rollout), or A + V; written as plain loops."""
    model = cls("MlpPolicy", toy(), engine=engine, value_target=value_target, gamma=0.9, gae_lambda=0.8, **SMALL)
    buffer = collect(model)
    last = model.policy.predict_values(th.as_tensor(model._last_obs, device=model.device)).detach().cpu().numpy().flatten()
    expected = np.zeros_like(buffer.rewards)
    over = np.concatenate((buffer.episode_starts[1:], model._last_episode_starts[None]))
    for env in range(model.n_envs):
        after = last[env]  # G of the step after, or its value at the end of the rollout
        for t in reversed(range(model.n_steps)):
            value = buffer.values[t + 1, env] if t + 1 < model.n_steps else last[env]
            alive = 1 - over[t, env]
            weight = {"td_lambda": 0.8, "td_zero": 0.0, "monte_carlo": 1.0}[value_target]
            # G_t = r_t + γ ((1 − λ) V_{t+1} + λ G_{t+1}), the λ-return in its recursive form
            expected[t, env] = buffer.rewards[t, env] + 0.9 * alive * ((1 - weight) * value + weight * after)
            after = expected[t, env]
    np.testing.assert_allclose(buffer.returns, expected, rtol=1e-4, atol=1e-5)


@both
def test_predict(cls: type[Any], engine: str) -> None:
    model = cls("MlpPolicy", toy(action=ACTION_SPACES["box_6"]), engine=engine, **SMALL).learn(64)
    one = VECTOR.sample()
    action, state = model.predict(one)
    assert action.shape == (6,) and state is None and np.all(np.abs(action) <= 1)
    actions, _ = model.predict(np.stack([one, one]), deterministic=True)
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_allclose(actions[0], model.predict(one, deterministic=True)[0], rtol=1e-5)


@both
def test_a_deep_copy_of_the_policy_is_its_own(cls: type[Any], engine: str) -> None:
    model = cls("MlpPolicy", toy(), engine=engine, **SMALL).learn(128)
    twin = copy.deepcopy(model.policy)
    before = parameter_vector(twin)
    assert th.equal(before, parameter_vector(model.policy))
    model.learn(128)
    assert th.equal(parameter_vector(twin), before)
    assert not th.equal(parameter_vector(model.policy), before)


@both
def test_a_replaced_policy_is_the_one_that_trains(cls: type[Any], engine: str) -> None:
    model = cls("MlpPolicy", toy(), engine=engine, **SMALL).learn(128)
    old = model.policy
    model.policy = copy.deepcopy(old)
    before = parameter_vector(old)
    model.learn(128)
    assert th.equal(parameter_vector(old), before)
    assert not th.equal(parameter_vector(model.policy), before)
    with th.no_grad():
        values = model.policy.predict_values(all_observations(model)).cpu().numpy().flatten()
    assert np.isfinite(values).all()


@both
def test_moving_the_policy(cls: type[Any]) -> None:
    """``to`` may give the parameters new storage; training goes on with what the policy has."""
    model = cls("MlpPolicy", toy(), **SMALL).learn(128)
    model.policy.to("cpu")
    for parameter in model.policy.parameters():
        parameter.data = parameter.data.clone()
    before = parameter_vector(model.policy)
    model.learn(128)
    assert not th.equal(parameter_vector(model.policy), before)


@both
def test_freezing_parameters_midway(cls: type[Any]) -> None:
    model = cls("MlpPolicy", toy(), **SMALL).learn(128)
    frozen = [model.policy.mlp_extractor.policy_net[0].weight, model.policy.mlp_extractor.value_net[0].weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    others = parameter_vector(model.policy.action_net), parameter_vector(model.policy.value_net)
    model.learn(128)
    for parameter, value in zip(frozen, before, strict=True):
        assert th.equal(parameter, value)
    assert not th.equal(parameter_vector(model.policy.action_net), others[0])
    assert not th.equal(parameter_vector(model.policy.value_net), others[1])
    for parameter in frozen:
        parameter.requires_grad_(True)
    model.learn(128)
    assert not any(th.equal(parameter, value) for parameter, value in zip(frozen, before, strict=True))


@both
def test_a_wholly_frozen_actor_is_refused_with_a_sentence(cls: type[Any]) -> None:
    model = cls("MlpPolicy", toy(), **SMALL)
    model.policy.requires_grad_(False)
    with pytest.raises(ValueError, match=r"trainable|frozen"):
        model.learn(64)

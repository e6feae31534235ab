"""The learning rate follows the divergence of the updates, in our PPO and in stock's, and survives a kill."""

from pathlib import Path
from typing import Any

import pytest
import stable_baselines3
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_policyopt import PPO, TRPO, RecurrentPPO
from sb3_policyopt.callbacks import AdaptiveLearningRate, ResumableCheckpointCallback
from sb3_policyopt.callbacks.adaptive_rate import adapted_rate

BOUNDS = (1e-5, 1e-2)


class Seen(BaseCallback):
    """As each rollout begins: the rate of the update before, and its divergence."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.divergences: list[float] = []
        self.stop_after = stop_after

    def _on_step(self) -> bool:
        return self.stop_after is None or self.num_timesteps < self.stop_after

    def _on_rollout_start(self) -> None:
        if (kl := self.logger.name_to_value.get("train/approx_kl")) is not None:
            self.rates += [group["lr"] for group in self.model.policy.optimizer.param_groups]
            self.divergences.append(kl)


def agent(cls: type[Any], policy: str = "MlpPolicy", **arguments: Any) -> Any:
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    return cls(policy, env, n_steps=64, device="cpu", seed=0, **{"batch_size": 64, "learning_rate": 1e-3, **arguments})


def test_the_rule() -> None:
    assert adapted_rate(3e-4, kl=0.03, desired_kl=0.01, bounds=BOUNDS) == pytest.approx(2e-4)
    assert adapted_rate(3e-4, kl=0.004, desired_kl=0.01, bounds=BOUNDS) == pytest.approx(4.5e-4)
    assert adapted_rate(3e-4, kl=0.01, desired_kl=0.01, bounds=BOUNDS) == 3e-4
    assert adapted_rate(3e-4, kl=float("nan"), desired_kl=0.01, bounds=BOUNDS) == 3e-4


@given(rate=st.floats(1e-5, 1e-2), kl=st.floats(0, 10), desired_kl=st.floats(1e-4, 1))
def test_the_rate_stays_within_its_bounds_and_moves_against_the_divergence(rate: float, kl: float, desired_kl: float) -> None:
    following = adapted_rate(rate, kl, desired_kl, BOUNDS)
    assert BOUNDS[0] <= following <= BOUNDS[1]
    assert (following <= rate) if kl > desired_kl else (following >= rate)


@pytest.mark.parametrize("cls", [PPO, stable_baselines3.PPO])
@pytest.mark.parametrize("log_interval", [1, 4])
def test_every_update_has_the_rate_that_the_one_before_asks_for(cls: type[Any], log_interval: int) -> None:
    seen = Seen()
    agent(cls).learn(7 * 128, callback=[AdaptiveLearningRate(desired_kl=0.02), seen], log_interval=log_interval)
    assert seen.rates[0] == 1e-3 and len(seen.rates) == 6
    expected = 1e-3
    for kl, rate in zip(seen.divergences, seen.rates[1:], strict=False):
        expected = adapted_rate(expected, kl, 0.02, BOUNDS)
        assert rate == expected
    assert seen.rates[-1] != 1e-3  # it moved


def test_with_memory() -> None:
    model = agent(RecurrentPPO, "MlpLstmPolicy", policy_kwargs={"lstm_hidden_size": 4})
    model.learn(4 * 128, callback=AdaptiveLearningRate(desired_kl=1e-4))
    assert model.policy.optimizer.param_groups[0]["lr"] < 1e-3


@pytest.mark.parametrize("cls", [PPO, stable_baselines3.PPO])
def test_two_trainings_with_the_same_callback_are_one(cls: type[Any]) -> None:
    """Also the first update of the second one answers to the divergence of the last of the first, which the log lacks then."""
    model, adaptive, seen = agent(cls), AdaptiveLearningRate(desired_kl=1e-4), Seen()
    model.learn(3 * 128, callback=[adaptive, seen])
    before = adaptive.rate
    last = model.logger.name_to_value["train/approx_kl"]
    model.learn(2 * 128, callback=[adaptive, seen], reset_num_timesteps=False)
    assert seen.rates[:2] == [1e-3, pytest.approx(1e-3 / 1.5)] and before == pytest.approx(1e-3 / 1.5**2)
    assert seen.rates[2] == adapted_rate(before, last, 1e-4, BOUNDS) < before


@pytest.mark.parametrize("cls", [PPO, stable_baselines3.PPO])
def test_a_rollout_that_a_callback_ends_leaves_the_divergence_for_the_next_training(cls: type[Any]) -> None:
    model, adaptive, seen = agent(cls), AdaptiveLearningRate(desired_kl=1e-4), Seen()
    model.learn(9 * 128, callback=[adaptive, Seen(stop_after=300)])
    before = adaptive.rate
    model.learn(2 * 128, callback=[adaptive, seen], reset_num_timesteps=False)
    assert seen.rates == [pytest.approx(before / 1.5)]


@pytest.mark.parametrize("cls", [PPO, stable_baselines3.PPO])
def test_the_own_schedule_comes_back(cls: type[Any]) -> None:
    """For a training without this callback, for one with a new one, and for one that begins to count anew."""
    model, adaptive = agent(cls, learning_rate=lambda progress: 1e-3 * progress), AdaptiveLearningRate(desired_kl=1e-4)
    own = model.lr_schedule
    model.learn(4 * 128, callback=adaptive)
    assert adaptive.rate < 1e-3 and model.lr_schedule is own
    for callback in (AdaptiveLearningRate(desired_kl=1e-4), adaptive):
        seen = Seen()
        model.learn(2 * 128, callback=[callback, seen], reset_num_timesteps=callback is adaptive)
        assert seen.rates == [1e-3] and model.lr_schedule is own
    seen = Seen()
    model.learn(3 * 128, callback=seen)
    assert seen.rates == [pytest.approx(own(2 / 3)), pytest.approx(own(1 / 3))]


class Fails(BaseCallback):
    """An error in a rollout, or as its update is about to begin."""

    def __init__(self, in_update: bool) -> None:
        super().__init__()
        self.in_update = in_update

    def fail(self) -> None:
        if self.num_timesteps > 300:
            raise KeyboardInterrupt

    def _on_step(self) -> bool:
        if not self.in_update:
            self.fail()
        return True

    def _on_rollout_end(self) -> None:
        self.fail()


@pytest.mark.parametrize("in_update", [False, True])
def test_after_an_error_the_own_schedule_comes_back(in_update: bool) -> None:
    model = agent(PPO)
    own = model.lr_schedule
    with pytest.raises(KeyboardInterrupt):
        model.learn(9 * 128, callback=[AdaptiveLearningRate(desired_kl=1e-4), Fails(in_update)])
    assert (model.lr_schedule is own) == (not in_update)
    model.learn(128, callback=AdaptiveLearningRate())
    assert model.lr_schedule is own


class Dumps(BaseCallback):
    """Writes a row of the log as a rollout starts."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.logger.record("own/number", 1)
        self.logger.dump(self.num_timesteps)


@pytest.mark.parametrize("cls", [PPO, stable_baselines3.PPO])
def test_a_callback_that_writes_the_log_before_it_is_named(cls: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"list AdaptiveLearningRate before callbacks that call logger\.dump"):
        agent(cls).learn(3 * 128, callback=[Dumps(), AdaptiveLearningRate()])
    agent(cls).learn(3 * 128, callback=[AdaptiveLearningRate(), Dumps()])


@pytest.mark.parametrize("cls", [PPO, stable_baselines3.PPO])
def test_evaluations_change_nothing(cls: type[Any]) -> None:
    """They write a row of the log in the middle of a rollout, which removes the numbers of the update from it."""
    rates = []
    for evaluates in (False, True):
        adaptive = AdaptiveLearningRate(desired_kl=0.02)
        evaluation = EvalCallback(make_vec_env("Pendulum-v1", 1), n_eval_episodes=1, eval_freq=50, verbose=0)
        agent(cls).learn(7 * 128, callback=[adaptive, evaluation] if evaluates else adaptive)
        rates.append(adaptive.rate)
    assert rates[0] == rates[1] != 1e-3


@pytest.mark.parametrize("checkpoint_first", [False, True])
def test_a_killed_run_ends_with_the_same_bits(checkpoint_first: bool, tmp_path: Path) -> None:
    def train(folder: Path, stop_after: int | None = None) -> Any:
        adaptive = AdaptiveLearningRate()
        both = [adaptive, ResumableCheckpointCallback(folder, 256)]
        model = agent(PPO)
        model.learn(7 * 128, callback=[*(reversed(both) if checkpoint_first else both), Seen(stop_after)])
        assert model.lr_schedule(1.0) == 1e-3
        return model, adaptive.rate

    whole, rate = train(tmp_path / "whole")
    train(tmp_path / "killed", stop_after=450)
    resumed, rate_of_resumed = train(tmp_path / "killed")
    assert rate == rate_of_resumed != 1e-3
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert th.equal(one, other)


def test_stock_opens_the_zip(tmp_path: Path) -> None:
    model = agent(PPO).learn(4 * 128, callback=AdaptiveLearningRate())
    model.save(tmp_path / "agent")
    stable_baselines3.PPO.load(tmp_path / "agent", env=model.env, device="cpu").learn(128)


def test_changes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    agent(PPO).learn(4 * 128, callback=AdaptiveLearningRate(desired_kl=1e-4, verbose=1))
    assert "Learning rate 0.000667, as the KL divergence was" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [{"desired_kl": 0}, {"desired_kl": float("inf")}, {"desired_kl": -0.01}])
def test_a_divergence_that_makes_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="desired_kl must be a number greater than 0"):
        AdaptiveLearningRate(**arguments)


@pytest.mark.parametrize("bounds", [(0, 1), (1e-2, 1e-5), (1e-5, float("inf"))])
def test_bounds_that_make_no_sense(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="bounds must be two numbers greater than 0"):
        AdaptiveLearningRate(bounds=bounds)


def test_trpo_is_told_that_this_is_for_ppo() -> None:
    with pytest.raises(ValueError, match=r"updates of TRPO do not log.*target_kl"):
        agent(TRPO).learn(3 * 128, callback=AdaptiveLearningRate())

"""What was tried, and is no part of the algorithms, computes what its name says."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.scores.trials import (
    ColouredNoise,
    DecayingDivergence,
    FasterCritic,
    NormedTanh,
    RecomputedAdvantages,
    StaggeredEpisodes,
    coloured,
    recompute,
)
from sb3_policyopt import PPO
from sb3_policyopt.callbacks.adaptive_rate import adapted_rate


class Trained(PPO):
    """Recomputes before its update, while the critic is still the one of the rollout."""

    differences: list[float]

    def train(self) -> None:
        self.prepare_engine().data(self.rollout_buffer, None)
        buffer = self.rollout_buffer
        before = [column.copy() for column in (buffer.values, buffer.advantages, buffer.returns)]
        recompute(self)
        after = (buffer.values, buffer.advantages, buffer.returns)
        self.differences = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(after, before, strict=True)]
        super().train()


@pytest.mark.parametrize("engine", ["closed_form", "autograd"])
def test_with_the_critic_of_the_rollout_nothing_changes(engine: str) -> None:
    """Three environments, rollouts in the middle of which episodes are cut off."""
    env = make_vec_env("Pendulum-v1", 3)
    model = Trained("MlpPolicy", env, n_steps=120, batch_size=60, n_epochs=1, engine=engine, device="cpu", seed=0)
    model.learn(2 * 360)
    assert max(model.differences) < 1e-5


def test_the_targets_move_with_the_critic() -> None:
    def trained(callback: BaseCallback | None) -> Any:
        env = make_vec_env("Pendulum-v1", 2)
        model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=3, device="cpu", seed=0)
        return model.learn(128, callback=callback)

    with_it, without = trained(RecomputedAdvantages()), trained(None)
    assert not np.allclose(with_it.rollout_buffer.returns, without.rollout_buffer.returns, rtol=1e-4)
    assert "passes" not in vars(with_it)  # the model is as it was


class RatesSeen(BaseCallback):
    """The rates of the optimizer's groups as each rollout begins, that is after the update before."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[list[float]] = []
        self.divergences: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.rates.append([group["lr"] for group in self.model.policy.optimizer.param_groups])
        if (kl := self.logger.name_to_value.get("train/approx_kl")) is not None:
            self.divergences.append(kl)


def pendulum_agent(**arguments: Any) -> PPO:
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    return PPO("MlpPolicy", env, n_steps=64, batch_size=64, device="cpu", seed=0, **arguments)


def test_every_update_has_the_rate_that_the_falling_divergence_asks_for() -> None:
    seen = RatesSeen()
    pendulum_agent(n_epochs=3, learning_rate=1e-3).learn(6 * 128, callback=[DecayingDivergence(), seen])
    (first, *rates), rate = [group for (group,) in seen.rates[1:]], 1e-3
    assert first == rate and len(rates) == 4
    for i, (kl, used) in enumerate(zip(seen.divergences[:-1], rates, strict=True)):
        rate = adapted_rate(rate, kl, desired_kl=0.01 * (1 - (i + 1) / 6), bounds=(1e-5, 1e-2))
        assert used == rate
    assert rate != first  # it moved


def test_the_critic_alone_is_faster(tmp_path: Path) -> None:
    """Adam's first step of a parameter is its rate times the sign of the gradient, whatever the gradient's size."""
    eps = {"optimizer_kwargs": {"eps": 1e-20}}
    model = pendulum_agent(n_epochs=1, learning_rate=1e-3, max_grad_norm=1e9, policy_kwargs=eps)
    model.batch_size = 128
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(128, callback=FasterCritic())
    for name, parameter in model.policy.named_parameters():
        steps = (parameter.detach() - before[name]).abs()
        assert float(steps.median()) == pytest.approx(3e-3 if "value" in name else 1e-3, rel=0.01), name
    (group,) = model.policy.optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model.policy.parameters()]
    model.save(tmp_path / "agent")
    PPO.load(tmp_path / "agent", env=model.get_env()).learn(128)


def test_layers_are_normed_before_the_hyperbolic_tangent() -> None:
    module, x = NormedTanh(), th.randn(5, 7, generator=th.Generator().manual_seed(0))
    expected = th.tanh((x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
    assert th.allclose(module(x), expected, atol=1e-6)
    model = pendulum_agent(n_epochs=1, policy_kwargs={"activation_fn": NormedTanh}).learn(256)
    assert model.engine_in_use is not None and model.engine_in_use.name == "autograd"


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_noise_has_variance_1_and_the_spectrum_of_its_colour(beta: float) -> None:
    n = 1024
    noise = np.array(list(islice(coloured(np.random.default_rng(0), beta, n, (4, 50)), n)))
    assert noise.shape == (n, 4, 50)
    assert float(noise.var()) == pytest.approx(1.0, abs=0.01)
    power = (np.abs(np.fft.rfft(noise, axis=0)) ** 2).mean(axis=(1, 2))[1:-1]
    slope, _ = np.polyfit(np.log(np.arange(1, len(power) + 1)), np.log(power), 1)
    assert slope == pytest.approx(-beta, abs=0.03)


def test_actions_have_the_coloured_noise(tmp_path: Path) -> None:
    """(action - mean) / standard deviation of every stored step is the noise that the seed gives."""
    model = pendulum_agent(n_epochs=1)
    model.learn(128, callback=ColouredNoise())
    buffer = model.rollout_buffer
    fresh = pendulum_agent(n_epochs=1)  # the parameters of before the update
    with th.no_grad():
        observations = th.as_tensor(buffer.observations.reshape(2, 64, 3).swapaxes(0, 1).reshape(128, 3))
        distribution: Any = fresh.policy.get_distribution(observations).distribution
        actions = buffer.actions.reshape(2, 64).T.reshape(128, 1)
        noise = ((actions - distribution.mean.numpy()) / distribution.stddev.numpy()).reshape(64, 2)
    drawn = coloured(np.random.default_rng(0), ColouredNoise.BETA, ColouredNoise.STEPS, (2, 1))
    assert np.allclose(noise, np.array(list(islice(drawn, 64)))[:, :, 0], atol=1e-4)
    assert "sample" not in vars(model.policy.action_dist)
    model.save(tmp_path / "agent")


class Ends(BaseCallback):
    """Keeps the steps at which episodes end, by environment."""

    def _on_step(self) -> bool:
        for i in np.flatnonzero(self.locals["dones"]):
            self.of.setdefault(int(i), []).append(self.n_calls)
        return True

    def _on_training_start(self) -> None:
        self.of: dict[int, list[int]] = {}


def test_the_first_episode_alone_is_cut_off_at_a_random_step() -> None:
    env = make_vec_env("Pendulum-v1", 4, wrapper_class=StaggeredEpisodes)
    ends = Ends()
    PPO("MlpPolicy", env, n_steps=250, batch_size=100, n_epochs=1, device="cpu", seed=0).learn(4000, callback=ends)
    first = [steps[0] for steps in ends.of.values()]
    assert len(set(first)) == 4 and max(first) <= 200
    for i, steps in ends.of.items():
        assert np.diff(steps).tolist() == [200] * (len(steps) - 1), i

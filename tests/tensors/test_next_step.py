"""Environments that reset themselves in a step of their own: such steps are no transitions, and nothing is learned of them."""

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from emulated_graph import emulate
from fake_simulator import LIMIT, Clock, FakeTensorEnv
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecMonitor

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.envs.tensors import TensorStep, TensorVecEnv, TensorVecNormalize, from_gymnasium_vector
from sb3_policyopt.models import choice

if not hasattr(gym.vector, "AutoresetMode"):
    pytest.skip("needs Gymnasium 1.1", allow_module_level=True)

N, T = 7, 24
GAMMA, LAMBDA = 0.9, 0.8
ALGORITHMS: list[tuple[type[Any], dict[str, Any]]] = [
    (PPO, {"n_epochs": 2}),
    (TRPO, {"n_critic_updates": 2, "cg_max_steps": 5, "sub_sampling_factor": 2}),
]


def next_step(dicts: bool = False) -> TensorVecEnv:
    return from_gymnasium_vector(SyncVectorEnv([functools.partial(Clock, number, dicts) for number in range(N)]))


def model_on(algorithm: type[Any], env: Any, policy: str = "MlpPolicy", **options: Any) -> Any:
    settings = {"n_steps": T, "batch_size": 32, "seed": 0, "gamma": GAMMA, "gae_lambda": LAMBDA, "device": "cpu"}
    return algorithm(policy, env, **{**settings, **options})


def of_own(number: int, episode: int) -> int:
    """After how many steps an episode of :class:`Clock` ends of its own."""
    return 2 + (3 * number + 2 * episode) % 7


class Keeps(BaseCallback):
    """Copies of each rollout, and what is learned from it."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = model.rollout_buffer
        names = ("observations", "actions", "rewards", "values", "episode_starts", "advantages", "returns", "resets")
        kept: dict[str, Any] = {name: getattr(buffer, name).clone().numpy() for name in names}
        (kept["whole"],) = model.start_update().data(buffer).whole()
        kept["last"] = model.policy.predict_values(th.from_numpy(model._last_obs)).detach().numpy()[:, 0]
        self.rollouts.append(kept)


@pytest.fixture(params=["NumPy", pytest.param("torch", marks=pytest.mark.slow), "autograd", "graphs"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: request.param in ("torch", "graphs"))
    if request.param == "graphs":
        emulate(monkeypatch)
    return "autograd" if request.param == "autograd" else "auto"


@pytest.mark.parametrize("algorithm, options", ALGORITHMS)
def test_what_is_learned_from(algorithm: Any, options: Any, engine: str) -> None:
    """The observations of :class:`Clock` say which rows are the last of an episode; advantages are those of a plain loop."""
    keeps = Keeps()
    model = model_on(algorithm, next_step(), engine=engine, **options).learn(3 * N * T, callback=keeps)
    assert len(keeps.rollouts) == 3 and model.num_timesteps == 3 * N * T
    for rollout in keeps.rollouts:
        number, episode, steps, _ = np.moveaxis(rollout["observations"], -1, 0).astype(int)
        length = np.minimum(2 + (3 * number + 2 * episode) % 7, LIMIT)
        np.testing.assert_array_equal(rollout["resets"], steps == length)
        np.testing.assert_array_equal(rollout["episode_starts"], (steps == 0) | (steps == length))
        advantages = np.full((T, N), np.nan)
        for i in range(N):
            following, last_value = 0.0, float(rollout["last"][i])
            for t in reversed(range(T)):
                if rollout["resets"][t, i]:
                    following = 0.0
                    continue
                n, e, s = i, episode[t, i], steps[t, i] + 1
                reward = 100.0 * n + 10.0 * e + s + np.clip(rollout["actions"][t, i, 0], -1, 1)
                next_value = last_value if t == T - 1 else float(rollout["values"][t + 1, i])
                ends, of_its_own = s == length[t, i], s == of_own(n, e)
                δ = reward + GAMMA * next_value * (not (ends and of_its_own)) - float(rollout["values"][t, i])
                following = δ + GAMMA * LAMBDA * (0.0 if ends else following)
                advantages[t, i] = following
        kept = ~rollout["resets"].T.flatten()
        expected = advantages.T.flatten()[kept]
        np.testing.assert_allclose(rollout["whole"].advantages, expected, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(
            rollout["whole"].returns, expected + rollout["values"].T.flatten()[kept], rtol=1e-4, atol=1e-2
        )
        assert 0 < kept.sum() < N * T and np.isfinite(expected).all()
    # The last rollout is what the last update was logged for.
    values, returns = (rollout[name][~rollout["resets"]] for name in ("values", "returns"))
    explained = 1 - np.var(returns - values) / np.var(returns)
    assert model.logger.name_to_value["train/explained_variance"] == pytest.approx(explained, abs=1e-4)
    lengths = sorted(info["l"] for info in model.ep_info_buffer)
    begun = rollout["observations"][-1, :, 1].astype(int)  # the number of each environment's last episode
    complete = begun + model._last_episode_starts
    ended = [min(of_own(i, episode), LIMIT) for i in range(N) for episode in range(complete[i])]
    assert len(ended) < 100 and lengths == sorted(ended)


@pytest.mark.parametrize("algorithm, options", ALGORITHMS)
def test_graphs_leave_to_functions_what_has_rows_of_varying_number(algorithm: Any, options: Any) -> None:
    def trained(graphs: bool) -> tuple[Any, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "computes_as_on_gpu", lambda _: True)
            if graphs:
                emulate(patch)
            model = model_on(algorithm, next_step(), **options).learn(3 * N * T)
        return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), model.engine_in_use.reason

    eager, reason = trained(graphs=False)
    assert "CUDA graph" not in reason
    replayed, reason = trained(graphs=True)
    assert "CUDA graphs of acting, advantages" in reason and "no CUDA graph of gradients (some steps only reset" in reason
    np.testing.assert_allclose(replayed, eager, rtol=0, atol=1e-4)


def test_graphs_come_back_with_environments_that_waste_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
    emulate(monkeypatch)
    model = model_on(PPO, next_step()).learn(2 * N * T)
    engine = model.engine_in_use
    assert engine.of_rows is engine.passing and "gradients" in engine.recorder.refusals
    model.set_env(FakeTensorEnv(N))
    model.learn(2 * N * T)
    assert model.engine_in_use is engine and engine.of_rows is engine.networks and engine.recorder.refusals == {}
    assert "gradients" in engine.recorder.reason()


@pytest.mark.parametrize("algorithm, options", ALGORITHMS)
def test_dicts(algorithm: Any, options: Any) -> None:
    model = model_on(algorithm, next_step(dicts=True), "MultiInputPolicy", **options).learn(2 * N * T)
    resets = model.rollout_buffer.resets
    (whole,) = model.start_update().data(model.rollout_buffer).whole()
    assert whole.size == int((~resets).sum()) < N * T
    assert sum(len(samples.returns) for samples in model.rollout_buffer.get(32)) == whole.size


class RewardsResets(TensorVecEnv):
    """A wrapper that passes on what it does not know, and gives a reward for a reset, which no policy could have earned."""

    def __init__(self, inner: TensorVecEnv) -> None:
        super().__init__(inner.num_envs, inner.observation_space, inner.action_space, inner.device, inner.bootstrap)
        self.inner = inner

    def reset_tensors(self, seed: int | None = None) -> Any:
        return self.inner.reset_tensors(seed)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        step = self.inner.step_tensors(actions)
        rewards = step.rewards.masked_fill(step.extras["reset_rows"], 5.0)
        return TensorStep(step.observations, rewards, step.terminated, step.truncated, step.extras)


def test_a_wrapper_need_not_know_of_it() -> None:
    model = model_on(PPO, RewardsResets(next_step())).learn(2 * N * T)
    (whole,) = model.start_update().data(model.rollout_buffer).whole()
    assert whole.size == int((~model.rollout_buffer.resets).sum()) < N * T
    plain = model_on(PPO, next_step()).learn(2 * N * T)
    for name, parameter in plain.policy.state_dict().items():
        np.testing.assert_array_equal(parameter, model.policy.state_dict()[name])
    assert [info["r"] for info in model.ep_info_buffer] == [info["r"] for info in plain.ep_info_buffer]
    with pytest.raises(ValueError, match=r"autoreset_mode = 'next_step'"):  # arrays cannot tell
        evaluate_policy(model, VecMonitor(RewardsResets(next_step())), n_eval_episodes=1)


def test_statistics_of_returns_leave_resets_out() -> None:
    env = TensorVecNormalize(RewardsResets(next_step()), gamma=GAMMA)
    env.reset_tensors(0)
    expected, returns = RunningMeanStd(shape=()), np.zeros(N)
    generator = np.random.default_rng(0)
    for _ in range(30):
        actions = th.from_numpy(generator.uniform(-1, 1, (N, 2)).astype(np.float32))
        _, _, terminated, truncated, extras = env.step_tensors(actions)
        counted = ~extras["reset_rows"].numpy()
        returns = returns * GAMMA + env.get_original_reward()
        expected.update(returns[counted])
        returns[(terminated | truncated).numpy() | ~counted] = 0
    assert float(env.ret_rms.var) == pytest.approx(float(expected.var), rel=1e-9)
    assert float(env.ret_rms.count) == pytest.approx(expected.count)


def test_evaluation() -> None:
    model = model_on(PPO, next_step())
    returns: Any
    expected: Any
    returns, lengths = evaluate_policy(model, VecMonitor(next_step()), n_eval_episodes=14, return_episode_rewards=True)
    same_step = SyncVectorEnv(
        [functools.partial(Clock, number) for number in range(N)], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    expected, of_same_step = evaluate_policy(
        model, VecMonitor(from_gymnasium_vector(same_step)), n_eval_episodes=14, return_episode_rewards=True
    )
    np.testing.assert_allclose(sorted(returns), sorted(expected), rtol=1e-5)
    # Each environment's second episode has the step of the reset before it, too.
    assert sum(lengths) == sum(of_same_step) + N  # type: ignore[arg-type]


def test_what_cannot_be_told_apart_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"VecMonitor works with arrays.*SAME_STEP"):
        model_on(PPO, VecMonitor(next_step())).learn(N * T)
    env = FakeTensorEnv(N)
    env.autoreset_mode = "next_step"
    with pytest.raises(ValueError, match=r"extras\['reset_rows'\]"):
        model_on(PPO, env).learn(N * T)
    with pytest.raises(ValueError, match=r"n_steps: .* nothing but reset"):
        alone = from_gymnasium_vector(SyncVectorEnv([functools.partial(Clock, 0)] * 2))
        model_on(PPO, alone, n_steps=1, batch_size=2).learn(20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm, options", [(PPO, {"n_epochs": 10, "learning_rate": 1e-3}), (TRPO, {"n_critic_updates": 10})]
)
def test_gymnasiums_environments_of_arrays_are_learned(algorithm: Any, options: Any) -> None:
    """CartPole-v1 as one environment of arrays, which Gymnasium has with resets of their own only. Random play gives 22."""
    env = from_gymnasium_vector(gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="vector_entry_point"))
    model = model_on(algorithm, env, n_steps=128, batch_size=128, gamma=0.99, gae_lambda=0.95, **options).learn(60_000)
    mean_return: Any = evaluate_policy(model, VecMonitor(env), n_eval_episodes=16)[0]
    assert mean_return > 150

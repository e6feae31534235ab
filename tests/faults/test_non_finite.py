"""Nothing non-finite gets in or stays in: faults of every kind, at moments that hypothesis chooses, on both engines."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_policyopt import PPO, TRPO, NonFiniteError
from sb3_policyopt.maths import losses
from sb3_policyopt.optimisation import skipping
from sb3_policyopt.rollout import collect as rollout
from sb3_policyopt.rollout import finiteness as guards

N_STEPS, N_ENVS = 16, 3
KINDS = st.sampled_from([math.nan, math.inf, -math.inf])
ENGINES = ["autograd", "closed_form"]


class FaultyEnv(gym.Env):
    """
    A random walk whose observation or reward is ``value`` at its ``fault_step``-th step (counted from 1), else finite.
    """

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self, quantity: str | None = None, fault_step: int = 0, value: float = math.nan, dictionary: bool = False
    ) -> None:
        self.quantity, self.fault_step, self.value, self.dictionary = quantity, fault_step, value, dictionary
        box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = spaces.Dict({"speed": box, "height": box}) if dictionary else box
        self.steps, self.generator = 0, np.random.default_rng(0)

    def observation(self, faulty: bool = False) -> dict[str, np.ndarray] | np.ndarray:
        vector = self.generator.normal(size=3).astype(np.float32)
        if faulty:
            vector[1] = self.value
        return {"speed": np.zeros(3, np.float32), "height": vector} if self.dictionary else vector

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, ...]:
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        faulty = self.steps == self.fault_step
        reward = self.value if faulty and self.quantity == "reward" else float(np.ravel(action)[0])
        return (
            self.observation(faulty and self.quantity == "observation"),
            reward,
            self.steps % 7 == 0 and not faulty,
            False,
            {},
        )


def make_model(
    algorithm: type[Any], engine: str = "auto", faulty_env: int = 0, policy: str = "MlpPolicy", **fault: Any
) -> Any:
    """A small model on N_ENVS environments, of which one has a fault."""

    def env(index: int) -> Callable[..., Any]:
        return lambda: FaultyEnv(**(fault if index == faulty_env else {"dictionary": fault.get("dictionary", False)}))

    venv = DummyVecEnv([env(i) for i in range(N_ENVS)])
    settings_ = {"n_epochs": 2} if algorithm is PPO else {"n_critic_updates": 2}
    return algorithm(policy, venv, n_steps=N_STEPS, batch_size=12, seed=0, device="cpu", engine=engine, **settings_)


def assert_healthy(model: Any, folder: Path) -> None:
    """The policy is finite, and the model can be saved, loaded and asked."""
    assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters())
    model.save(folder / "model.zip")
    loaded = type(model).load(folder / "model.zip", device="cpu")
    for mine, theirs in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(mine, theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
@settings(max_examples=8)
@given(
    quantity=st.sampled_from(["observation", "reward"]),
    fault_step=st.integers(1, 2 * N_STEPS),
    faulty_env=st.integers(0, N_ENVS - 1),
    value=KINDS,
)
def test_environment_faults_are_named(
    tmp_path_factory: pytest.TempPathFactory,
    algorithm: type[Any],
    engine: str,
    quantity: str,
    fault_step: int,
    faulty_env: int,
    value: float,
) -> None:
    model = make_model(algorithm, engine, faulty_env, quantity=quantity, fault_step=fault_step, value=value)
    with pytest.raises(NonFiniteError) as caught:
        model.learn(3 * N_STEPS * N_ENVS)
    message = str(caught.value)
    assert f"Non-finite {quantity} in environment {faulty_env} " in message
    # Steps of a rollout count from 0. The k-th step's reward belongs to step k−1; its observation is what step k starts
    # from, which after a rollout's last step is either noticed at once (as step 16) or in the next one (as step 0).
    steps = {(fault_step - 1) % N_STEPS} if quantity == "reward" else {fault_step % N_STEPS}
    if quantity == "observation" and fault_step % N_STEPS == 0:
        steps.add(N_STEPS)
    assert any(f"at step {step} of the rollout" in message for step in steps)
    assert "Likely cause" in message
    assert_healthy(model, tmp_path_factory.mktemp("zip"))


def test_a_fault_in_a_dict_observation_names_its_key() -> None:
    model = make_model(PPO, policy="MultiInputPolicy", faulty_env=1, quantity="observation", fault_step=5, dictionary=True)
    with pytest.raises(NonFiniteError, match=r"observation \(key 'height'\) in environment 1 at step 5 "):
        model.learn(N_STEPS * N_ENVS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "named"), [("value_net", "value"), ("action_net", "action")])
def test_parameters_that_overflowed_are_named_by_what_they_break(engine: str, name: str, named: str) -> None:
    model = make_model(PPO, engine)
    with th.no_grad():
        getattr(model.policy, name).bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=f"Non-finite {named} in environment 0 at step 0"):
        model.learn(N_STEPS * N_ENVS)


def test_an_infinite_reward_does_not_pass_vec_normalize_unnoticed() -> None:
    model = make_model(PPO, quantity="reward", fault_step=3, value=math.nan)
    model = PPO("MlpPolicy", VecNormalize(model.env), n_steps=N_STEPS, batch_size=12, device="cpu")
    with pytest.raises(NonFiniteError, match="Non-finite reward in environment"):
        model.learn(N_STEPS * N_ENVS)


def poison(model: Any, bad_calls: set[int]) -> list[Any]:
    """Make the ``bad_calls``-th gradients (from 0) of a model hold a NaN."""
    used = model.prepare_engine()
    original, calls, snapshots = used.gradient, [0], []

    def poisoned(*arguments: Any) -> dict[str, Any]:
        snapshots.append([parameter.detach().clone() for parameter in model.policy.parameters()])
        terms = original(*arguments)
        if calls[0] in bad_calls:
            used.flat.gradient[-1] = math.nan
        calls[0] += 1
        return terms

    used.gradient = poisoned
    return snapshots


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
@settings(max_examples=6)
@given(bad_calls=st.sets(st.integers(0, 7), min_size=1, max_size=3))
def test_a_bad_minibatch_is_skipped_and_counted(algorithm: type[Any], engine: str, bad_calls: set[int]) -> None:
    model = make_model(algorithm, engine)
    snapshots = poison(model, bad_calls)
    model.learn(N_STEPS * N_ENVS)  # 48 transitions in 4 minibatches, twice: 8 calls
    for call in range(7):
        same = all(th.equal(a, b) for a, b in zip(snapshots[call], snapshots[call + 1], strict=True))
        assert same == (call in bad_calls)
    steps = {float(state["step"]) for state in model.policy.optimizer.state.values()}
    assert steps == {8.0 - len(bad_calls)}
    assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters())
    assert all(
        bool(th.isfinite(state[name]).all())
        for state in model.policy.optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_training_stops_after_several_bad_minibatches_in_a_row(tmp_path: Path, algorithm: type[Any], engine: str) -> None:
    model = make_model(algorithm, engine)
    snapshots = poison(model, set(range(2, 100)))
    with pytest.raises(NonFiniteError, match=f"{skipping.PATIENCE} updates in a row"):
        model.learn(10 * N_STEPS * N_ENVS)
    last_good = snapshots[3]  # before the fourth call, after the second and last good step
    if algorithm is PPO:
        assert all(th.equal(a, b) for a, b in zip(last_good, model.policy.parameters(), strict=True))
    assert_healthy(model, tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=6)
@given(where=st.sampled_from(["gradient", "fisher", "evaluation"]), value=KINDS)
def test_a_trpo_update_that_is_not_finite_leaves_the_actor_bit_for_bit(engine: str, where: str, value: float) -> None:
    model = make_model(TRPO, engine)
    used, make_region = model.prepare_engine(), model.trust_region

    def broken_region(*arguments: Any) -> Any:
        region = make_region(*arguments)
        evaluate = region.evaluate
        if where == "gradient":
            region.gradient[0] = value
        elif where == "fisher":
            region.fisher = lambda v: v * value
        else:
            region.evaluate = lambda: (evaluate()[0], value)
        return region

    model.trust_region = broken_region
    before = used.actor_parameters.clone()
    logged: dict[str, Any] = {}
    model.record_update = logged.update
    model.learn(N_STEPS * N_ENVS)
    assert th.equal(before, used.actor_parameters)
    assert logged["is_line_search_success"] == 0
    assert logged["line_search_non_finite"] == 1
    assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_with_finite_numbers_the_guards_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, algorithm: type[Any], engine: str
) -> None:
    def final(guarded: bool) -> th.Tensor:
        with monkeypatch.context() as patch:
            if not guarded:
                patch.setattr(rollout, "is_finite", lambda *vectors: True)
                patch.setattr(guards, "check_rows", lambda buffer, start, stop, check_observations: None)
                patch.setattr(losses, "LOG_RATIO_BOUND", math.inf)
                patch.setattr(skipping.SkipCounter, "note", lambda self, skipped: None)
            model = make_model(algorithm, engine).learn(4 * N_STEPS * N_ENVS)
        return th.nn.utils.parameters_to_vector(model.policy.parameters())

    assert th.equal(final(True), final(False))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_log_std_stays_within_its_bounds(algorithm: type[Any], engine: str) -> None:
    venv = DummyVecEnv([FaultyEnv] * 2)
    bounds = (-0.01, 0.005)
    model = algorithm("MlpPolicy", venv, n_steps=64, learning_rate=0.01, log_std_bounds=bounds, engine=engine, device="cpu")
    model.learn(512)
    assert bounds[0] - 1e-7 <= float(model.policy.log_std.detach().min())
    assert float(model.policy.log_std.detach().max()) <= bounds[1] + 1e-7
    free = algorithm("MlpPolicy", venv, n_steps=64, learning_rate=0.01, engine=engine, device="cpu").learn(512)
    assert float(free.policy.log_std.detach().abs().max()) > 0.01  # without the bounds it would have left them


@pytest.mark.parametrize("rounds", [1, 70])
def test_what_went_wrong_first_is_named_among_many_steps(rounds: int) -> None:
    """In a block of steps the earliest one is named, and there the cause before its effects."""
    model = make_model(PPO)
    buffer = type(model.rollout_buffer)(2 * rounds, model.observation_space, model.action_space, n_envs=N_ENVS)
    buffer.reset()
    guards.check_rows(buffer, 0, 2 * rounds)
    buffer.values[rounds:, 1] = math.nan
    buffer.rewards[rounds:, 1] = math.inf
    with pytest.raises(NonFiniteError, match=f"Non-finite value in environment 1 at step {rounds} "):
        guards.check_rows(buffer, 0, 2 * rounds)
    guards.check_rows(buffer, 0, rounds)
    buffer.rewards[rounds - 1, 0] = -math.inf
    with pytest.raises(NonFiniteError, match=f"Non-finite reward in environment 0 at step {rounds - 1} "):
        guards.check_rows(buffer, 0, 2 * rounds)


def test_large_numbers_are_no_fault() -> None:
    """Their sum overflows in float32, but each of them is finite."""
    model = make_model(PPO)
    model.rollout_buffer.rewards[:] = 3e38
    guards.check_rows(model.rollout_buffer, 0, N_STEPS)


ACTION_SPACES = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
    spaces.Box(-1, 1, (2,), np.float32),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_faults_are_named_whatever_the_actions_are(
    monkeypatch: pytest.MonkeyPatch, space: spaces.Space[Any], engine: str
) -> None:
    """Torch refuses to draw a discrete action from NaN, with words that name no cause; a continuous one it draws as NaN."""
    monkeypatch.setattr(FaultyEnv, "action_space", space)
    model = make_model(PPO, engine, faulty_env=1, quantity="observation", fault_step=5)
    with pytest.raises(NonFiniteError, match="Non-finite observation in environment 1 at step 5 "):
        model.learn(N_STEPS * N_ENVS)
    model = make_model(PPO, engine)
    with th.no_grad():
        model.policy.action_net.bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"Non-finite (action|log-probability) in environment 0 at step 0 "):
        model.learn(N_STEPS * N_ENVS)

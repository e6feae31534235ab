"""Rollouts that stay on the device: numbers as through NumPy, SB3's callbacks, time limits, and no step that waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from emulated_graph import emulate
from gymnasium import spaces
from no_waiting import NoWaiting
from stable_baselines3.common.vec_env import VecMonitor
from tensor_models import ThroughNumpy, model_on

from sb3_policyopt import PPO, TRPO, NonFiniteError
from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum, TensorStep, TensorVecEnv, TensorVecNormalize
from sb3_policyopt.maths.advantages import gae, value_targets
from sb3_policyopt.models import choice
from sb3_policyopt.models.closed_form import ClosedFormModel
from sb3_policyopt.models.closed_form_tensors import TensorClosedForm
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer
from sb3_policyopt.rollout.tensors.rollout import TensorRollout

ALGORITHMS: list[tuple[type[Any], dict[str, Any]]] = [
    (PPO, {"batch_size": 64, "n_epochs": 2}),
    (TRPO, {"batch_size": 64, "n_critic_updates": 2, "cg_max_steps": 5}),
]
CARTPOLE, PENDULUM = TensorCartPole, TensorPendulum


@pytest.mark.parametrize("make", [CARTPOLE, PENDULUM])
@pytest.mark.parametrize("target", ["td_lambda", pytest.param("monte_carlo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("algorithm, options", ALGORITHMS)
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_numbers_are_those_of_the_loop_through_numpy(
    algorithm: Any, options: Any, target: str, make: Any, as_on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit of 10 steps cuts episodes off in each rollout, so that values of final observations count."""
    envs = [make(6, device="cpu", seed=3, max_episode_steps=10), VecMonitor(ThroughNumpy(make(6, "cpu", 3, 10)))]
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: as_on_gpu)
    tensors = model_on(algorithm, envs[0], value_target=target, **options).learn(3 * 6 * 24)
    monkeypatch.undo()
    arrays = model_on(algorithm, envs[1], value_target=target, **options).learn(3 * 6 * 24)
    assert type(tensors.rollout_buffer) is TensorRolloutBuffer
    assert type(tensors.engine_in_use) is (TensorClosedForm if as_on_gpu else ClosedFormModel)
    assert type(arrays.rollout_buffer).__name__ == "RolloutBuffer"
    assert tensors.num_timesteps == arrays.num_timesteps == 3 * 6 * 24
    for name, parameter in tensors.policy.state_dict().items():
        np.testing.assert_allclose(parameter, arrays.policy.state_dict()[name], rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(tensors._last_obs, arrays._last_obs, rtol=0, atol=1e-4)
    assert (tensors._last_episode_starts == arrays._last_episode_starts).all()
    for ours, theirs in zip(tensors.ep_info_buffer, arrays.ep_info_buffer, strict=True):
        assert ours["l"] == theirs["l"] and ours["r"] == pytest.approx(theirs["r"], abs=1e-2)
    assert len(tensors.ep_info_buffer) > 30
    for name, value in arrays.logger.name_to_value.items():
        if isinstance(value, float) and not name.startswith("time/"):
            assert tensors.logger.name_to_value[name] == pytest.approx(value, rel=1e-2, abs=1e-3, nan_ok=True), name


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("make", [CARTPOLE, PENDULUM])
def test_no_step_waits_for_the_device(make: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored(Exception):
        pass

    def stop(self: TensorRollout, *_: object) -> None:
        assert self.buffer.full
        raise Stored

    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
    model = model_on(PPO, make(5, device="cpu", seed=0, max_episode_steps=7), engine=engine)
    model.learn(1)  # constants are made in the first
    monkeypatch.setattr(TensorRollout, "finish", stop)
    _, callback = model._setup_learn(10**6)
    with pytest.raises(Stored), NoWaiting():  # type: ignore[no-untyped-call]
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 24)


# ---------------------------------------------------------------------- time limits and what is not finite


class Counting(TensorVecEnv):
    """
    Environment i observes (i, its step). Its episodes end by themselves after 3 steps if i is odd, by a time limit if i is
    even; those of environment 4 by both at once. Buffers are written in place, and extras persist.
    """

    def __init__(self, bootstrap: Any, dictionary: bool = False, with_final: bool = True) -> None:
        box = spaces.Box(-100, 100, (2,))
        space = spaces.Dict({"clock": box}) if dictionary else box
        super().__init__(5, space, spaces.Discrete(2), "cpu", bootstrap)
        self.dictionary, self.with_final = dictionary, with_final
        self.clock, self.observed = th.zeros(5), th.zeros(5, 2)
        self.rewards, self.terminated, self.truncated = th.zeros(5), th.zeros(5, dtype=th.bool), th.zeros(5, dtype=th.bool)
        self.final = th.full((5, 2), float("nan"))
        self.extras: dict[str, Any] = {}
        self.spoil: dict[int, Any] = {}
        self.n_steps = 0

    def observe(self) -> Any:
        self.observed[:, 0], self.observed[:, 1] = th.arange(5.0), self.clock
        return {"clock": self.observed} if self.dictionary else self.observed

    def reset_tensors(self, seed: int | None = None) -> Any:
        self.clock.zero_()
        return self.observe()

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        self.clock += 1
        over = self.clock == 3
        numbers = th.arange(5)
        self.truncated.copy_(over & (numbers % 2 == 0))
        self.terminated.copy_(over & ((numbers % 2 == 1) | (numbers == 4)))
        self.observe()
        self.final[over] = self.observed[over]
        if self.with_final:
            self.extras["final_obs"] = {"clock": self.final} if self.dictionary else self.final
        self.rewards.copy_(10 * numbers + self.clock)
        self.clock[over] = 0
        observations = self.observe()
        if self.n_steps in self.spoil:
            self.spoil[self.n_steps](self)
        self.n_steps += 1
        return TensorStep(observations, self.rewards, self.terminated, self.truncated, self.extras)


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("bootstrap", ["final", "previous", "none"])
def test_S3_values_of_time_limits_and_ownership(bootstrap: str, dictionary: bool) -> None:
    policy = "MultiInputPolicy" if dictionary else "MlpPolicy"
    model = PPO(policy, Counting(bootstrap, dictionary), n_steps=7, batch_size=35, seed=0, device="cpu", n_epochs=1)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(35)
    buffer: Any = model.rollout_buffer
    observations = buffer.observations["clock"] if dictionary else buffer.observations
    steps = th.arange(7.0)[:, None] % 3  # 0 1 2 0 1 2 0: the clock before each step
    assert (observations[..., 0] == th.arange(5.0)).all() and (observations[..., 1] == steps).all()
    assert (buffer.episode_starts == (steps == 0)).all()

    model.policy.load_state_dict(before)

    def value(clock: float, number: int) -> float:
        row = th.tensor([[float(number), clock]])
        with th.no_grad():
            return float(model.policy.predict_values({"clock": row} if dictionary else row))  # type: ignore[arg-type]

    for t in range(7):
        for i in range(5):
            expected = 10 * i + float(steps[t]) + 1
            if steps[t] == 2 and i in (0, 2) and bootstrap != "none":  # environment 4 ended by itself, too
                expected += model.gamma * value({"final": 3.0, "previous": 2.0}[bootstrap], i)
            assert float(buffer.rewards[t, i]) == pytest.approx(expected, abs=1e-5), (t, i)
    assert [info["l"] for info in model.ep_info_buffer or []] == [3] * 10
    assert [info["r"] for info in model.ep_info_buffer or []] == [30 * i + 6 for i in range(5)] * 2


def test_final_observations_that_are_promised_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"Counting: .*no extras\['final_obs'\].*bootstrap"):
        model_on(PPO, Counting("final", with_final=False), batch_size=60).learn(120)


def spoil_reward(env: Counting) -> None:
    env.rewards[3] = float("nan")


def spoil_observation(env: Counting) -> None:
    env.observed[2, 0] = float("inf")


def spoil_final(env: Counting) -> None:
    env.final[0] = float("nan")


@pytest.mark.parametrize(
    "step, spoil, message",
    [
        (4, spoil_reward, "Non-finite reward in environment 3 at step 4"),
        (4, spoil_observation, "Non-finite observation in environment 2 at step 5"),
        (23, spoil_observation, "Non-finite observation in environment 2 at step 24"),
        (5, spoil_final, "Non-finite value of the final observation in environment 0 at step 5"),
    ],
)
def test_what_is_not_finite_is_named_after_the_rollout(step: int, spoil: Any, message: str) -> None:
    env = Counting("final")
    env.spoil[step] = spoil
    model = model_on(PPO, env, batch_size=60)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(NonFiniteError, match=message):
        model.learn(120)
    assert all((model.policy.state_dict()[name] == value).all() for name, value in before.items())
    env.spoil.clear()
    model.learn(120)  # episodes begin anew
    assert [info["l"] for info in model.ep_info_buffer] == [3] * 5 * 8
    assert [info["r"] for info in model.ep_info_buffer] == [30 * i + 6 for i in range(5)] * 8


# ---------------------------------------------------------------------- other policies, environments and buffers


@pytest.mark.parametrize("options", [{"use_sde": True, "sde_sample_freq": 4}, {"policy_kwargs": {"squash_output": True}}])
def test_gsde(options: dict[str, Any]) -> None:
    if "policy_kwargs" in options:
        options = {"use_sde": True, **options}
    model = model_on(PPO, TensorPendulum(4, device="cpu", seed=0), batch_size=48, **options).learn(96 * 2)
    assert type(model.rollout_buffer) is TensorRolloutBuffer and model.engine_in_use.name == "autograd"


def test_the_buffer_follows_the_environments() -> None:
    model = model_on(PPO, TensorCartPole(4, device="cpu", seed=0), batch_size=48)
    assert type(model.rollout_buffer).__name__ == "RolloutBuffer"
    model.learn(96)
    assert type(model.rollout_buffer) is TensorRolloutBuffer
    model.set_env(ThroughNumpy(TensorCartPole(4, device="cpu", seed=0)))
    model.learn(96)
    assert type(model.rollout_buffer).__name__ == "RolloutBuffer"
    model.set_env(TensorCartPole(4, device="cpu", seed=0))
    model.learn(96)
    assert type(model.rollout_buffer) is TensorRolloutBuffer


def test_returns_are_those_before_normalisation() -> None:
    env = TensorPendulum(4, device="cpu", seed=0, max_episode_steps=20)
    plain = model_on(PPO, env, batch_size=48, learning_rate=0.0).learn(2 * 96)
    normalised = TensorVecNormalize(TensorPendulum(4, device="cpu", seed=0, max_episode_steps=20), norm_obs=False)
    model = model_on(PPO, normalised, batch_size=48, learning_rate=0.0).learn(2 * 96)
    assert float(model.rollout_buffer.rewards.abs().max()) != float(plain.rollout_buffer.rewards.abs().max())
    assert [info["r"] for info in model.ep_info_buffer] == [info["r"] for info in plain.ep_info_buffer] != []


def test_episodes_begin_anew_where_the_environments_were_reset() -> None:
    """Each episode has 30 steps; one of 24 was under way when the second training reset the environments."""
    model = model_on(PPO, TensorPendulum(4, device="cpu", seed=0, max_episode_steps=30), batch_size=48).learn(96)
    assert not model.ep_info_buffer
    model.learn(2 * 96)
    assert [info["l"] for info in model.ep_info_buffer] == [30] * 4
    model.learn(3 * 96, reset_num_timesteps=False)  # goes on after 48 steps, 18 of them of the second episode
    assert [info["l"] for info in model.ep_info_buffer] == [30] * 4 * 4


def test_another_number_of_steps_needs_another_buffer() -> None:
    model = model_on(PPO, TensorCartPole(4, device="cpu", seed=0), batch_size=48).learn(96)
    model.n_steps = 12
    model.learn(96)
    assert model.rollout_buffer.buffer_size == 12 and model.num_timesteps == 96


def test_sb3s_samples_of_the_buffer() -> None:
    model = model_on(PPO, TensorCartPole(4, device="cpu", seed=0), batch_size=48).learn(96)
    buffer = model.rollout_buffer
    samples = list(buffer.get(40))
    assert [len(part.returns) for part in samples] == [40, 40, 16]
    found = th.cat([part.returns for part in samples]).sort().values
    np.testing.assert_array_equal(found, buffer.returns.flatten().sort().values)
    (whole,) = buffer.get()
    rows = [(o.tolist(), float(r)) for o, r in zip(whole.observations, whole.returns, strict=True)]
    observations, returns = buffer.observations.flatten(0, 1), buffer.returns.flatten(0, 1)
    assert sorted(rows) == sorted((o.tolist(), float(r)) for o, r in zip(observations, returns, strict=True))


def test_a_buffer_or_a_policy_of_another_kind_goes_through_numpy_and_says_so() -> None:
    class Own(stable_baselines3.common.buffers.RolloutBuffer):
        pass

    model = model_on(PPO, TensorCartPole(4, device="cpu", seed=0), batch_size=48, rollout_buffer_class=Own)
    with pytest.warns(UserWarning, match=r"through NumPy arrays.*rollout_buffer_class is Own") as caught:
        model.learn(96)
    assert caught[0].filename == __file__ and type(model.rollout_buffer) is Own
    wrapped = model_on(PPO, VecMonitor(TensorCartPole(4, device="cpu", seed=0)), batch_size=48)
    with pytest.warns(UserWarning, match=r"through NumPy arrays.*VecMonitor works with arrays"):
        wrapped.learn(96)


def test_a_model_is_saved_for_stock_sb3_and_goes_on(tmp_path: Path) -> None:
    model = model_on(PPO, TensorCartPole(4, device="cpu", seed=0), batch_size=48).learn(96)
    model.save(tmp_path / "model")
    stock = stable_baselines3.PPO.load(tmp_path / "model", device="cpu")
    observation = np.zeros((2, 4), np.float32)
    assert (stock.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]).all()
    again = PPO.load(tmp_path / "model", TensorCartPole(4, device="cpu", seed=1), device="cpu")
    again.learn(96, reset_num_timesteps=False)
    assert again.num_timesteps == 192 and type(again.rollout_buffer) is TensorRolloutBuffer


def test_auto_is_the_device_of_the_environments() -> None:
    model = model_on(PPO, TensorCartPole(4, device="cpu", seed=0), device="auto")
    assert model.device.type == "cpu" and model.device_reason == "the environments' tensors are there"


# ---------------------------------------------------------------------- graphs


@pytest.mark.parametrize("target", ["td_lambda", pytest.param("td_zero", marks=pytest.mark.slow), "monte_carlo"])
def test_advantages_and_targets_by_replays(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another γ they are recorded anew; and a method of the user's own is called as ever."""
    monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
    emulate(monkeypatch)
    model = model_on(PPO, TensorPendulum(5, "cpu", 0, 10), batch_size=60, n_epochs=1, value_target=target)
    model.learn(1)  # after which the buffer is one of tensors
    buffer, called = model.rollout_buffer, []

    def doubled(last_values: th.Tensor, dones: th.Tensor) -> None:
        called.append(1)
        TensorRolloutBuffer.compute_returns_and_advantage(buffer, last_values, dones)
        buffer.advantages *= 2

    for gamma, factor in ((0.99, 1), (0.99, 1), (0.5, 1), (0.99, 1), (0.99, 2)):
        buffer.gamma = gamma
        if factor == 2:
            buffer.compute_returns_and_advantage = doubled
        model.learn(5 * 24, reset_num_timesteps=False)
        # An episode of each environment ends after row 14, so that last values, which the update changed, do not count before.
        last = model.engine_in_use.values_of(th.from_numpy(model._last_obs))
        ended = th.cat((buffer.episode_starts[1:], th.as_tensor(model._last_episode_starts).float()[None]))
        rollout = (buffer.rewards, buffer.values, last, ended, gamma, model.gae_lambda)
        assert bool(ended[14:].any(0).all())
        np.testing.assert_allclose(buffer.advantages[:14], factor * gae(*rollout)[:14], rtol=1e-4, atol=1e-3)
        targets = value_targets(target, *rollout)  # type: ignore[arg-type]
        np.testing.assert_allclose(buffer.returns[:14], targets[:14], rtol=1e-4, atol=1e-3)
        assert len(called) == factor - 1
    reason = model.engine_in_use.reason
    assert "advantages" in reason and ("value targets" in reason) == (target != "td_lambda")

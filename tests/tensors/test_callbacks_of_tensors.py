"""SB3's callbacks on rollouts of tensors: what they see, and what becomes of a rollout that they end."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from emulated_graph import emulate
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from tensor_models import ThroughNumpy, model_on

from sb3_policyopt import PPO
from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum, TensorStep
from sb3_policyopt.models import choice


class Looks(BaseCallback):
    """Compares what it sees of each step with what the environments gave."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.tensors: list[Any] = []
        self.episodes = 0

    def _on_step(self) -> bool:
        local = self.locals
        assert np.sum(local["dones"]) == sum("episode" in info for info in local["infos"])
        assert local["rewards"].shape == (5,) and (local["rewards"] > -20).all() and float(local["rewards"].mean()) < 0
        assert np.asarray(local["new_obs"]).shape == local["new_obs"].shape == (5, 3)
        assert local["values"].shape == (5, 1) and local["log_probs"].shape == (5,) and local["obs_tensor"].shape == (5, 3)
        assert (abs(local["clipped_actions"]) <= 2).all() and local["actions"].dtype == np.float32
        assert self.num_timesteps == 5 * self.n_calls
        for info, done, final in zip(local["infos"], local["dones"], local["infos"], strict=True):
            assert info["TimeLimit.truncated"] == done and ("terminal_observation" in final) == done
            self.episodes += "episode" in info
        self.seen.append((local["rewards"], local["infos"]))
        self.tensors.append((local["values"], local["log_probs"], local["obs_tensor"], local["values"].clone()))
        return True


@pytest.mark.parametrize("with_graphs", [False, True])
def test_callbacks_see_arrays_and_infos_as_in_sb3(with_graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_graphs:  # a replay overwrites what the last one gave
        monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
        emulate(monkeypatch)
    callback = Looks()
    model = model_on(PPO, TensorPendulum(5, device="cpu", seed=0, max_episode_steps=7), batch_size=60)
    model.learn(5 * 48, callback)
    assert callback.n_calls == 48 and callback.episodes == 5 * (48 // 7)
    rewards, infos = callback.seen[3]
    assert len(rewards) == len(infos) == 5  # what was looked at stays
    assert all((values == then).all() for values, _, _, then in callback.tensors)  # tensors are the callback's own
    assert not any((one[2] == other[2]).all() for one, other in pairwise(callback.tensors))


def test_actions_are_clipped_to_the_space_of_the_model() -> None:
    """The policy's own may be another: the model's was narrowed."""
    largest: list[float] = []

    class Sees(BaseCallback):
        def _on_step(self) -> bool:
            largest.append(float(abs(self.locals["clipped_actions"]).max()))
            return True

    model = model_on(PPO, TensorPendulum(5, device="cpu", seed=0), batch_size=60)
    model.action_space = spaces.Box(-0.1, 0.1, (1,))
    model.learn(5 * 24, Sees())
    assert max(largest) == np.float32(0.1)


def test_what_was_not_looked_at_in_time_is_an_error_and_no_other_steps_number() -> None:
    kept: list[Any] = []

    class Keeps(BaseCallback):
        def _on_step(self) -> bool:
            kept.append((self.locals["rewards"], self.locals["infos"]))
            return True

    model_on(PPO, TensorPendulum(5, device="cpu", seed=0), batch_size=60).learn(5 * 24, Keeps())
    for value in kept[0]:
        with pytest.raises(RuntimeError, match=r"earlier step.*copy it in _on_step"):
            value[0]
    with pytest.raises(ValueError, match="cannot change it"):
        kept[0][0][0] = 1.0


def test_sb3s_callbacks_work(tmp_path: Path) -> None:
    env = TensorCartPole(4, device="cpu", seed=0)
    evaluation = EvalCallback(TensorCartPole(2, device="cpu", seed=1), eval_freq=20, n_eval_episodes=4, log_path=str(tmp_path))
    model = model_on(PPO, env, batch_size=48)
    model.learn(10**6, [StopTrainingOnMaxEpisodes(3), evaluation])
    assert model.num_timesteps < 5000
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == model.num_timesteps // 4 // 20


class AtTheEnd(BaseCallback):
    """Keeps what a rollout's end shows."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        local = self.locals
        names = ("new_obs", "rewards", "dones", "clipped_actions", "actions")
        self.arrays = {name: np.array(local[name]) for name in names}
        self.values, self.infos = local["values"].clone(), [*local["infos"]]
        policy: Any = self.model.policy
        self.expected = policy.predict_values(th.as_tensor(self.arrays["new_obs"])).detach()


@pytest.mark.parametrize("with_graphs", [False, True])
def test_the_end_of_a_rollout_shows_what_it_shows_through_numpy(with_graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 shows the last step there, but V of the observations after it."""
    if with_graphs:
        monkeypatch.setattr(choice, "computes_as_on_gpu", lambda _: True)
        emulate(monkeypatch)
    found = []
    for wrap in (lambda env: env, ThroughNumpy):
        callback = AtTheEnd()
        env = wrap(TensorPendulum(5, device="cpu", seed=0, max_episode_steps=7))
        model_on(PPO, env, batch_size=60, n_steps=7).learn(5 * 7, callback)
        found.append(callback)
    for callback in found:
        np.testing.assert_allclose(callback.values, callback.expected, rtol=1e-4, atol=1e-5)
    tensors, arrays = found
    assert tensors.values.shape == arrays.values.shape == (5, 1) and len(tensors.infos) == len(arrays.infos) == 5
    assert all("terminal_observation" in info for callback in found for info in callback.infos)
    for name, array in arrays.arrays.items():
        if name != "rewards":  # SB3's are those with the values of time limits
            np.testing.assert_allclose(tensors.arrays[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(tensors.values, arrays.values, rtol=1e-4, atol=1e-5)


class KnowsItsEpisodes(TensorCartPole):
    """Lists the lengths of its episodes."""

    lengths: list[int]

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        steps = self.elapsed + 1
        given = super().step_tensors(actions)
        self.lengths += steps[given.terminated | given.truncated].tolist()
        return given


class EndsAfter(BaseCallback):
    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self) -> bool:
        return self.n_calls < self.n_steps


@pytest.mark.parametrize("n_steps", [30, 64, 70])
def test_after_a_rollout_that_a_callback_ended_episodes_and_observations_go_on(n_steps: int) -> None:
    """In the middle of a rollout, with its last step, and in the middle of the second one."""
    env = KnowsItsEpisodes(4, device="cpu", seed=0)
    env.lengths = []
    model = model_on(PPO, env, n_steps=64, batch_size=64)
    model.learn(10**6, EndsAfter(n_steps))
    assert model.num_timesteps == 4 * n_steps and len(env.lengths) > 3
    np.testing.assert_array_equal(model._last_obs, env.observe(env.state))
    model.learn(4 * 64, reset_num_timesteps=False)
    assert [episode["l"] for episode in model.ep_info_buffer] == env.lengths

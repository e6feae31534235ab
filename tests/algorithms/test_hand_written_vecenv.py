"""A VecEnv written by hand may give numbers of any type and containers of any kind; training on it is SB3's."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from toy_environments import collect, copy_rollout, parameter_vector, start

from sb3_policyopt import PPO, TRPO

N_STEPS = 12
OBSERVATIONS = {
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "box of float64": spaces.Box(-1, 1, (2, 2), np.float64),
    "dict": spaces.Dict({"box": spaces.Box(-1, 1, (3,), np.float32), "discrete": spaces.Discrete(3)}),
}
ACTIONS = {"discrete": spaces.Discrete(3), "box": spaces.Box(-1, 1, (2,), np.float32)}


class Hand(VecEnv):
    """
    Random observations, rewards 0 and 1 for actions, and episodes of a length of each environment's own.

    :param observation_space: of any kind
    :param action_space: of any kind
    :param how: types and containers, see ``HOW``; and ``truncates``, whether episodes are cut off or terminate
    :param n_envs: number of environments
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], how: dict[str, Any], n_envs: int = 2
    ) -> None:
        super().__init__(n_envs, observation_space, action_space)
        self.how, self.rng, self.t = how, np.random.default_rng(0), np.zeros(n_envs, int)
        self.memory: dict[str | None, np.ndarray] = {}

    def draw(self, space: spaces.Space[Any], key: str | None = None) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self.draw(part, key) for key, part in space.spaces.items()}
        assert space.shape is not None
        shape = (self.num_envs, *space.shape)
        if isinstance(space, spaces.Box):
            drawn = self.rng.uniform(-1, 1, shape).astype(space.dtype)
        else:
            high = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec"}.get(type(space))
            drawn = self.rng.integers(0, 2 if high is None else getattr(space, high), shape).astype(space.dtype)
        drawn = drawn.astype(self.how["observations"] or space.dtype)
        if self.how["one memory"]:  # every observation is written where the last one was
            self.memory.setdefault(key, drawn.copy())[...] = drawn
            drawn = self.memory[key]
        return drawn

    def reset(self) -> dict[str, np.ndarray] | np.ndarray:
        self.t[:] = 0
        return self.draw(self.observation_space)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[Any, ...]:
        self.t += 1
        dones = self.t >= 3 + np.arange(self.num_envs)
        rewards = (np.asarray(self.actions).reshape(self.num_envs, -1)[:, 0] > 0).astype(self.how["rewards"])
        observations = self.draw(self.observation_space)
        infos: list[dict[str, Any]] = [{"text": "x" * 100, "array": np.zeros(100)} for _ in range(self.num_envs)]
        for k in np.flatnonzero(dones):
            of_env = {key: part[k].copy() for key, part in observations.items()} if isinstance(observations, dict) else None
            infos[k]["terminal_observation"] = observations[k].copy() if of_env is None else of_env
            infos[k]["TimeLimit.truncated"] = self.how["truncates"]
            self.t[k] = 0
        return observations, rewards, dones.astype(self.how["dones"]), self.how["infos"](infos)

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[None]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


HOW = st.fixed_dictionaries(
    {
        "observations": st.sampled_from([None, np.float32, np.float64, np.float16]),
        "rewards": st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, bool]),
        "dones": st.sampled_from([bool, np.uint8, np.int64, np.float32]),
        "infos": st.sampled_from([list, tuple]),
        "one memory": st.booleans(),
        "truncates": st.booleans(),
    }
)


def make(cls: type[Any], observation: str, action: str, how: dict[str, Any], monitored: bool = False, **options: Any) -> Any:
    env: VecEnv = Hand(OBSERVATIONS[observation], ACTIONS[action], how)
    policy = "MultiInputPolicy" if observation == "dict" else "MlpPolicy"
    kwargs = {"net_arch": [8]}
    few = {"n_epochs": 2} if "PPO" in cls.__name__ else {"n_critic_updates": 2, "cg_max_steps": 4}
    env = VecMonitor(env) if monitored else env
    return cls(policy, env, n_steps=N_STEPS, batch_size=8, seed=0, device="cpu", policy_kwargs=kwargs, **few, **options)


def as_float_rewards(how: dict[str, Any]) -> dict[str, Any]:
    """
    SB3 adds γ V to the array of rewards that the environment gave. Where that holds integers the sum is cut to one, by which
    an episode that a time limit cut off counts as if it had ended; ours is what SB3's is for the same rewards as floats.
    """
    return {**how, "rewards": np.float32} if how["truncates"] and not np.issubdtype(how["rewards"], np.floating) else how


@settings(max_examples=30)
@given(observation=st.sampled_from(list(OBSERVATIONS)), action=st.sampled_from(list(ACTIONS)), how=HOW)
def test_ppo_on_autograd_is_sb3s(observation: str, action: str, how: dict[str, Any]) -> None:
    """Two rollouts and updates, from the same seed and with the same random numbers."""
    monitored = how["infos"] is list
    stock = make(StockPPO, observation, action, as_float_rewards(how), monitored).learn(2 * 2 * N_STEPS)
    ours = make(PPO, observation, action, how, monitored, engine="autograd").learn(2 * 2 * N_STEPS)
    theirs, mine = stock.rollout_buffer, ours.rollout_buffer
    # Rewards of two bytes are added up in two bytes by SB3, in four here.
    tolerance = 2e-3 if how["rewards"] is np.float16 and how["truncates"] else 1e-5
    for name in ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        expected = getattr(theirs, name)
        np.testing.assert_allclose(getattr(mine, name), expected, rtol=1e-3, atol=tolerance, err_msg=name)
        assert getattr(mine, name).dtype == expected.dtype
    if isinstance(theirs.observations, dict):
        for key, array in theirs.observations.items():
            np.testing.assert_array_equal(mine.observations[key], array)
    else:
        np.testing.assert_array_equal(mine.observations, theirs.observations)
    if tolerance < 1e-3:
        assert float((parameter_vector(ours.policy) - parameter_vector(stock.policy)).abs().max()) < 3e-6


@settings(max_examples=15)
@given(observation=st.sampled_from(list(OBSERVATIONS)), action=st.sampled_from(list(ACTIONS)), how=HOW)
def test_the_fastest_engines_update_from_sb3s_own_rollout_is_sb3s(observation: str, action: str, how: dict[str, Any]) -> None:
    """They draw other random numbers while they act; the update is compared on what SB3 collected."""
    stock = make(StockPPO, observation, action, as_float_rewards(how))
    ours = make(PPO, observation, action, how, engine="auto")
    ours.policy.load_state_dict(stock.policy.state_dict())
    start(ours)
    collect(stock)
    copy_rollout(stock.rollout_buffer, ours.rollout_buffer)
    for model in (stock, ours):
        np.random.seed(0)
        model.train()
    assert ours.engine_in_use.name != "autograd"
    assert float((parameter_vector(ours.policy) - parameter_vector(stock.policy)).abs().max()) < 3e-6


@settings(max_examples=15)
@given(observation=st.sampled_from(list(OBSERVATIONS)), action=st.sampled_from(list(ACTIONS)), how=HOW)
def test_trpo_on_autograd_acts_as_sb3_contribs(observation: str, action: str, how: dict[str, Any]) -> None:
    """The first rollout, before any update."""
    stock = collect(make(ContribTRPO, observation, action, as_float_rewards(how)))
    ours = collect(make(TRPO, observation, action, how, engine="autograd"))
    tolerance = 2e-3 if how["rewards"] is np.float16 and how["truncates"] else 1e-5
    for name in ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(ours, name), getattr(stock, name), rtol=1e-3, atol=tolerance, err_msg=name)


@settings(max_examples=10)
@given(how=HOW)
@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("observation", ["box", "box of float64"])
def test_the_fastest_engine_acts_on_whatever_it_is_given(cls: type[Any], observation: str, how: dict[str, Any]) -> None:
    """What is in the buffer is what the policy says of the observations in it."""
    model = make(cls, observation, "discrete", {**how, "one memory": False}, engine="auto")
    buffer, shape = collect(model), OBSERVATIONS[observation].shape
    assert shape is not None
    with th.no_grad():
        observations = th.as_tensor(buffer.observations.reshape(-1, *shape))
        actions = th.as_tensor(buffer.actions.reshape(-1))
        values, log_probs, _ = model.policy.evaluate_actions(observations, actions)
    # Observations of two bytes reach the networks and the buffer alike, as they are.
    np.testing.assert_allclose(buffer.values.ravel(), values.numpy().ravel(), atol=1e-5)
    np.testing.assert_allclose(buffer.log_probs.ravel(), log_probs.numpy(), atol=1e-5)
    assert parameter_vector(model.learn(2 * N_STEPS).policy).isfinite().all()


def test_rewards_of_integers_are_bootstrapped_without_cutting_off_the_fraction() -> None:
    """The one difference: see :func:`as_float_rewards`. SB3's rewards stay integers where a value was added."""
    how: dict[str, Any] = {
        "observations": None,
        "rewards": np.int64,
        "dones": bool,
        "infos": list,
        "one memory": False,
        "truncates": True,
    }
    stock = collect(make(StockPPO, "box", "discrete", how))
    ours = collect(make(PPO, "box", "discrete", how, engine="autograd"))
    assert (stock.rewards == np.round(stock.rewards)).all()
    cut = np.concatenate((ours.episode_starts[1:], ours.episode_starts[:1] * 0)) == 1
    assert (ours.rewards[cut] != np.round(ours.rewards[cut])).all() and cut.any()
    np.testing.assert_array_equal(ours.rewards[:-1][~cut[:-1]], stock.rewards[:-1][~cut[:-1]])

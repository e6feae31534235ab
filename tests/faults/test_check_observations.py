"""NaN that marks what is absent, and is masked by the features extractor: ``check_observations=False`` lets it pass."""

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_policyopt import PPO, TRPO, NonFiniteError

STOCK: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
both = pytest.mark.parametrize("cls", [PPO, TRPO])
engines = pytest.mark.parametrize("engine", ["auto", "autograd"])


class Sets(gym.Env):
    """One to five objects of three numbers, absent ones NaN; a reward for the sign of the sum of the present ones."""

    def __init__(
        self, dictionary: bool = False, action: spaces.Space[Any] | None = None, bad_reward_at: int | None = None
    ) -> None:
        box = spaces.Box(-np.inf, np.inf, (5, 3), np.float32)
        self.dictionary, self.bad_reward_at = dictionary, bad_reward_at
        self.observation_space = spaces.Dict(objects=box) if dictionary else box
        self.action_space, self.rng, self.steps = action or spaces.Discrete(2), np.random.default_rng(0), 0

    def observe(self) -> dict[str, np.ndarray] | np.ndarray:
        self.objects = self.rng.normal(size=(5, 3)).astype(np.float32)
        self.objects[self.rng.integers(1, 5) :] = np.nan  # so that something is absent always, also from final observations
        return {"objects": self.objects} if self.dictionary else self.objects

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, ...]:
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        reward = float((np.nansum(self.objects[:, 0]) > 0) == bool(np.ravel(action)[0] > 0))
        if self.steps == self.bad_reward_at:
            reward = np.nan
        return self.observe(), reward, False, self.steps >= 7, {}


class Masking(BaseFeaturesExtractor):
    """A sum over the present objects; ``leaky`` lets what is absent through."""

    def __init__(self, space: spaces.Space[Any], leaky: bool = False) -> None:
        super().__init__(space, 16)
        self.phi, self.leaky = th.nn.Linear(3, 16), leaky

    def forward(self, observations: dict[str, th.Tensor] | th.Tensor) -> th.Tensor:
        objects = observations["objects"] if isinstance(observations, dict) else observations
        present = ~th.isnan(objects).any(-1, keepdim=True)
        return th.tanh((self.phi(objects if self.leaky else th.nan_to_num(objects)) * present).sum(1))


def make(
    cls: type[Any], algorithm: type[Any] | None = None, env: dict[str, Any] | None = None, leaky: bool = False, **options: Any
) -> Any:
    env = env or {}
    kwargs = {"features_extractor_class": Masking, "features_extractor_kwargs": {"leaky": leaky}}
    policy = "MultiInputPolicy" if env.get("dictionary") else "MlpPolicy"
    venv = DummyVecEnv([lambda: Sets(**env)] * 2)
    return (algorithm or cls)(policy, venv, n_steps=20, batch_size=20, seed=0, device="cpu", policy_kwargs=kwargs, **options)


def parameters(model: Any) -> th.Tensor:
    return th.cat([parameter.detach().flatten().clone() for parameter in model.policy.parameters()])


@both
@engines
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("action", [spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32)], ids=["discrete", "box"])
def test_it_trains(cls: type[Any], engine: str, dictionary: bool, action: spaces.Space[Any]) -> None:
    env: dict[str, Any] = {"dictionary": dictionary, "action": action}
    model = make(cls, env=env, engine=engine, check_observations=False).learn(120)
    assert np.isnan(
        np.stack([*model.rollout_buffer.observations.values()] if dictionary else model.rollout_buffer.observations)
    ).any()
    assert parameters(model).isfinite().all()
    if cls is PPO and engine == "autograd":  # which draws the random numbers of SB3
        stock = make(cls, StockPPO, env=env).learn(120)
        assert float((parameters(model) - parameters(stock)).abs().max()) < 1e-5


@both
@engines
@pytest.mark.parametrize("dictionary", [False, True])
def test_by_default_the_error_names_the_argument(cls: type[Any], engine: str, dictionary: bool) -> None:
    with pytest.raises(
        NonFiniteError, match=r"Non-finite observation .*in environment 0 at step 0[\s\S]*check_observations=False"
    ):
        make(cls, env={"dictionary": dictionary}, engine=engine).learn(120)


@both
@engines
@pytest.mark.parametrize("action", [spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32)], ids=["discrete", "box"])
def test_what_the_networks_make_of_it_is_checked_all_the_same(cls: type[Any], engine: str, action: spaces.Space[Any]) -> None:
    """The cause is named, too: an observation that the extractor let through."""
    model = make(cls, env={"action": action}, engine=engine, leaky=True, check_observations=False)
    before = parameters(model)
    with pytest.raises(
        NonFiniteError, match=r"Non-finite (value|action) in environment 0 at step 0 .*[\s\S]*extractor"
    ) as caught:
        model.learn(120)
    assert "check_observations=False" in str(caught.value)
    assert th.equal(before, parameters(model))


@both
@engines
def test_a_critic_that_overflows_is_no_matter_of_masks(cls: type[Any], engine: str) -> None:
    """With an observation that is all present the cause is the critic's."""
    model = make(cls, engine=engine, check_observations=False)
    with th.no_grad():
        model.policy.value_net.bias.fill_(np.nan)
    sets = model.env.envs[0].unwrapped
    sets.objects = np.zeros((5, 3), np.float32)
    sets.observe = lambda: sets.objects
    with pytest.raises(NonFiniteError, match=r"Non-finite value in environment 0 at step 0 .*the critic's output overflowed"):
        model.learn(120)


@both
@engines
@pytest.mark.parametrize("absent_at", [7, 6], ids=["final", "last"])
def test_the_values_of_final_and_last_observations_are_checked(cls: type[Any], engine: str, absent_at: int) -> None:
    """An episode is cut off after 7 steps, and the rollout of 20 ends with the 6th of another."""
    model = make(cls, engine=engine, check_observations=False, leaky=True)
    for env in model.env.envs:
        sets = env.unwrapped
        sets.objects, sets.total = np.zeros((5, 3), np.float32), 0

        def observe(sets: Any = sets) -> np.ndarray:
            sets.total += sets.steps > 0
            absent = sets.steps == 7 if absent_at == 7 else sets.total == 20
            return np.full((5, 3), np.nan if absent else 0.0, np.float32)

        sets.observe = observe
    named = (
        "value of the final observation in environment 0 at step 6" if absent_at == 7 else "value in environment 0 at step 20"
    )
    with pytest.raises(NonFiniteError, match=rf"Non-finite {named} [\s\S]*extractor"):
        model.learn(40)
    assert model._n_updates == 0


@both
def test_rewards_are_checked(cls: type[Any]) -> None:
    with pytest.raises(NonFiniteError, match=r"Non-finite reward in environment 0 at step 2 .*reward function"):
        make(cls, env={"bad_reward_at": 3}, check_observations=False).learn(120)


@both
def test_it_can_be_set_on_the_model_too(cls: type[Any]) -> None:
    model = make(cls)
    model.check_observations = False
    assert model.learn(40)._n_updates > 0


@both
def test_it_is_saved_and_stock_sb3_opens_the_zip(cls: type[Any], tmp_path: Path) -> None:
    model = make(cls, check_observations=False).learn(40)
    model.save(tmp_path / "model")
    observation = model.env.reset()
    stock = STOCK[cls].load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(
        stock.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    ours = cls.load(tmp_path / "model", env=model.env, device="cpu")
    assert ours.check_observations is False and ours.learn(40)._n_updates > 0
    buffer = io.BytesIO()
    make(cls, STOCK[cls]).save(buffer)
    buffer.seek(0)
    assert cls.load(buffer, device="cpu").check_observations is True
    buffer.seek(0)
    assert cls.load(buffer, env=model.env, device="cpu", check_observations=False).learn(40)._n_updates > 0

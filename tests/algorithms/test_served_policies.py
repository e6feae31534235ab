"""A policy that cannot be served is refused at construction, with what to use; every other one is taken, as by SB3."""

from functools import partial
from typing import Any

import pytest
import torch as th
from sb3_contrib.common.recurrent import policies as recurrent
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from toy_environments import ACTION_SPACES, parameter_vector, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


class OwnRecurrent(recurrent.RecurrentActorCriticPolicy):
    """A user's subclass."""

    calls = 0

    def get_distribution(self, obs: Any, lstm_states: Any, episode_starts: Any) -> Any:
        OwnRecurrent.calls += 1
        return super().get_distribution(obs, lstm_states, episode_starts)


class ThirdParty(ActorCriticPolicy):
    """Recurrent in its own way, without sb3-contrib."""

    def evaluate_actions(  # type: ignore[override]  # what the test is about
        self, obs: Any, actions: Any, memory: Any
    ) -> Any:
        return super().evaluate_actions(obs, actions)


class NoValues(th.nn.Module):
    """No actor-critic at all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


REFUSED = [(cls, "ActorCriticPolicy") for cls in (ThirdParty, DQNPolicy, NoValues)]


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize(("policy", "use"), REFUSED, ids=lambda x: getattr(x, "__name__", x))
def test_a_policy_that_cannot_be_served_is_refused_at_construction(cls: type[Any], policy: Any, use: Any) -> None:
    env = toy(action=ACTION_SPACES["discrete"])
    with pytest.raises(ValueError, match=rf"policy: {cls.__name__}.*use .*{use}"):
        cls(policy, env, _init_setup_model=False, **SMALL)
    with pytest.raises(Exception):  # noqa: B017  stock fails too, of any kind and somewhere
        StockPPO(policy, env, **SMALL).learn(64)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_users_recurrent_policy_is_served_by_its_own_methods(cls: type[Any]) -> None:
    model = cls(OwnRecurrent, toy(), policy_kwargs={"lstm_hidden_size": 8}, **SMALL)
    before = parameter_vector(model.policy)
    assert not th.equal(parameter_vector(model.learn(64).policy), before)
    assert model.engine_in_use.name == "autograd"
    assert cls is PPO or OwnRecurrent.calls > 0


class OptionalMask(ActorCriticPolicy):
    """Has masks that it can do without."""

    def evaluate_actions(self, obs: Any, actions: Any, action_masks: Any = None) -> Any:
        return super().evaluate_actions(obs, actions)


class AnyArguments(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OtherNames(ActorCriticPolicy):
    def evaluate_actions(self, states: Any, controls: th.Tensor) -> Any:
        return super().evaluate_actions(states, controls)


def small_policy(*args: Any, **kwargs: Any) -> ActorCriticPolicy:
    """A function in place of a class, which SB3 takes."""
    return partial(ActorCriticPolicy, net_arch=[8])(*args, **kwargs)


TAKEN = [OptionalMask, AnyArguments, OtherNames, small_policy, "MlpPolicy"]


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("policy", TAKEN, ids=lambda policy: getattr(policy, "__name__", policy))
def test_what_stock_takes_is_taken(cls: type[Any], policy: Any) -> None:
    StockPPO(policy, toy(), **SMALL).learn(64)
    model = cls(policy, toy(), **SMALL)
    before = parameter_vector(model.policy)
    assert not th.equal(parameter_vector(model.learn(64).policy), before)


def test_an_unknown_name_is_sb3s_error() -> None:
    for cls in (StockPPO, PPO):
        with pytest.raises(ValueError, match="Policy MlpPolcy unknown"):
            cls("MlpPolcy", toy(), **SMALL)

"""Buffers of a user's own class, with samples of their own, for policies with masks and with memory."""

from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from toy_environments import parameter_vector

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.envs.maskable import MaskedRoute
from sb3_policyopt.rollout.contrib_buffers import MaskedRecurrentBuffer, own_class

pytestmark = pytest.mark.fast


class OwnMasks(MaskableRolloutBuffer):  # type: ignore[misc]  # sb3-contrib has no types
    """sb3-contrib's samples from a method of a user's own."""

    def get(self, batch_size: int | None = None) -> Any:
        yield from super().get(batch_size)


class OwnStates(RecurrentRolloutBuffer):  # type: ignore[misc]
    """The same for memory; its samples are padded."""

    def get(self, batch_size: int | None = None) -> Any:
        yield from super().get(batch_size)


class OwnBoth(MaskedRecurrentBuffer):
    """A way of storing of a user's own."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **kwargs)


CASES = [
    ("MaskableMlpPolicy", OwnMasks, {}),
    ("MlpLstmPolicy", OwnStates, {"lstm_hidden_size": 8}),
    ("MaskableMlpLstmPolicy", OwnBoth, {"lstm_hidden_size": 8}),
]


OPTIONS: dict[str, Any] = {"n_steps": 24, "batch_size": 20, "seed": 0, "device": "cpu", "engine": "autograd"}


@pytest.mark.parametrize(("policy", "buffer", "policy_kwargs"), CASES)
def test_the_training_is_that_with_the_usual_buffer(policy: str, buffer: Any, policy_kwargs: Any) -> None:
    """sb3-contrib's ``get`` draws the same random numbers, so that a whole training of PPO is the same to rounding."""

    def trained(**further: Any) -> th.Tensor:
        env = make_vec_env(lambda: MaskedRoute(side=4), 2, seed=0)
        model = PPO(policy, env, policy_kwargs=policy_kwargs, **OPTIONS, **further).learn(96)
        assert type(model.rollout_buffer) is further.get("rollout_buffer_class", type(model.rollout_buffer))
        return parameter_vector(model.policy)

    assert float((trained(rollout_buffer_class=buffer) - trained()).abs().max()) < 1e-6


@pytest.mark.parametrize(("policy", "buffer", "policy_kwargs"), CASES)
def test_trpo_takes_its_samples(policy: str, buffer: Any, policy_kwargs: Any) -> None:
    """Its policy update asks for all in one, which draws random numbers once more."""
    env = make_vec_env(lambda: MaskedRoute(side=4), 2, seed=0)
    model = TRPO(policy, env, policy_kwargs=policy_kwargs, rollout_buffer_class=buffer, target_kl=0.01, **OPTIONS)
    before = parameter_vector(model.policy)
    model.learn(48)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
    assert 0 < model.logger.name_to_value["train/kl_divergence_loss"] <= 0.01
    assert not th.equal(parameter_vector(model.policy), before)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_a_dict_of_observations_has_a_buffer_for_dicts(masks: bool, memory: bool) -> None:
    if masks or memory:
        space = spaces.Dict({"a": spaces.Box(-1, 1, (2,))})
        assert "Dict" in own_class(space, masks, memory).__name__
        assert "Dict" not in own_class(space["a"], masks, memory).__name__


def test_a_model_that_moves_makes_such_a_buffer_anew() -> None:
    env = make_vec_env(lambda: MaskedRoute(side=4), 2, seed=0)
    kwargs = {"lstm_hidden_size": 8}
    model = PPO("MlpLstmPolicy", env, policy_kwargs=kwargs, rollout_buffer_class=OwnStates, **{**OPTIONS, "batch_size": 24})
    before = model.rollout_buffer
    model.move_to(th.device("cpu"), "for a test")
    assert type(model.rollout_buffer) is OwnStates and model.rollout_buffer is not before
    model.learn(48)
    assert model.rollout_buffer.hidden_states_pi.shape == (48, 1, 8)  # flattened by the update

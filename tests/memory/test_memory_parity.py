"""R1: RecurrentPPO takes sb3-contrib's very steps: from the same parameters, rollout and seed to the same parameters."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from contrib_twins import Twins, assert_equal_updates, twins
from gymnasium import spaces
from sb3_contrib import RecurrentPPO as ContribPPO
from toy_environments import ACTION_SPACES, IMAGE, OBSERVATION_SPACES, VECTOR, toy

from sb3_policyopt import RecurrentPPO
from sb3_policyopt.rollout.buffers import STATES

ACTIONS = {name: ACTION_SPACES[name] for name in ("box_6", "discrete", "multi_discrete", "multi_binary")}
CRITICS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "none": {"enable_critic_lstm": False},
}
DISCRETE = ACTIONS["discrete"]
SMALL: dict[str, Any] = {"n_steps": 8, "n_epochs": 2, "batch_size": 16}
# As in test_ppo_parity: Adam may move a parameter whose gradient is mere rounding by a noticeable part of a step (3e-4).
# sb3-contrib sums over the recurrent network's time in another order.
TOLERANCE = 1e-6


class Case(NamedTuple):
    """One way to configure RecurrentPPO. The toy's episodes last 4 to 11 steps, so that they end in the middle."""

    arguments: dict[str, Any] = {}
    action: spaces.Space[Any] = DISCRETE
    observation: spaces.Space[Any] = VECTOR
    policy: str = "MlpLstmPolicy"
    network: dict[str, Any] = {}

    def twins(self, **options: Any) -> Twins:
        network: dict[str, Any] = {
            "lstm_hidden_size": 8,
            "net_arch": [16],
            **self.network,
            **self.arguments.get("policy_kwargs", {}),
        }
        arguments = {**self.arguments, "policy_kwargs": network}
        make_env = lambda: toy(self.observation, self.action)  # noqa: E731
        pair = twins(ContribPPO, RecurrentPPO, self.policy, make_env, arguments, **options)
        if isinstance(self.action, spaces.MultiBinary):
            store_floats(pair.stock.rollout_buffer)
        return pair


def store_floats(buffer: Any) -> None:
    """Mend sb3-contrib's recurrent buffer, whose int8 actions torch's Bernoulli refuses; SB3's own casts them."""
    reset = buffer.reset

    def reset_with_floats() -> None:
        reset()
        buffer.actions = buffer.actions.astype(np.float32)

    buffer.reset = reset_with_floats


CASES = {
    **{
        f"{action}, {critic}": Case({"ent_coef": 0.01}, ACTIONS[action], network=CRITICS[critic])
        for action in ACTIONS
        for critic in CRITICS
    },
    **{f"two layers, {critic}": Case(network={"n_lstm_layers": 2, **network}) for critic, network in CRITICS.items()},
    "no normalisation": Case({"normalize_advantage": False}, ACTIONS["box_6"]),
    "value clipping": Case({"clip_range_vf": 0.01}, ACTIONS["box_6"]),
    "target_kl": Case({"target_kl": 0.0005, "n_epochs": 20, "learning_rate": 3e-3}),
    "truncated minibatch": Case({"n_steps": 25, "batch_size": 32}),
    "minibatches shorter than episodes": Case({"n_steps": 12, "batch_size": 3, "n_epochs": 1}),
    "one minibatch": Case({"batch_size": 128}, ACTIONS["multi_discrete"]),
    "ReLU, weight decay": Case({"policy_kwargs": {"activation_fn": th.nn.ReLU, "optimizer_kwargs": {"weight_decay": 0.01}}}),
    "no hidden layers": Case({"policy_kwargs": {"net_arch": []}}),
    "no biases": Case(network={"lstm_kwargs": {"bias": False}}),
    "gradient clipping": Case({"max_grad_norm": 0.01}),
    "other optimizer": Case({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}),
    "gSDE": Case({"use_sde": True, "sde_sample_freq": 4, "ent_coef": 0.01}, ACTIONS["box_6"]),
    "images": Case({**SMALL, "policy_kwargs": {"net_arch": []}}, DISCRETE, IMAGE, "CnnLstmPolicy"),
    "images, separate extractors": Case(
        {**SMALL, "policy_kwargs": {"share_features_extractor": False}}, DISCRETE, IMAGE, "CnnLstmPolicy"
    ),
    "dict": Case({}, ACTIONS["multi_discrete"], OBSERVATION_SPACES["dict"], "MultiInputLstmPolicy"),
    "dict with image, shared": Case(
        SMALL, ACTIONS["box_6"], OBSERVATION_SPACES["dict_with_image"], "MultiInputLstmPolicy", CRITICS["shared"]
    ),
    "discrete observations": Case(observation=OBSERVATION_SPACES["discrete"]),
}
FAST = {"box_6, separate", "discrete, shared", "multi_discrete, none"}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.fast) if n in FAST else n for n in CASES])
def test_R1_an_update_is_sb3_contribs(name: str, engine: str) -> None:
    assert_equal_updates(CASES[name].twins(engine=engine), TOLERANCE)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_training_is_sb3_contribs(action: str, critic: str) -> None:
    """The same environments, draws and minibatches: all that was collected, and the parameters after two updates."""
    pair = Case({"n_steps": 24, "n_epochs": 2}, ACTIONS[action], network=CRITICS[critic]).twins(engine="autograd")
    for model in pair:
        model.set_random_seed(3)
        model.learn(2 * 24 * 4)
        assert model.num_timesteps == 192
    assert pair.distance <= TOLERANCE
    stock, ours = (model.rollout_buffer for model in pair)
    np.testing.assert_allclose(ours.actions, stock.actions, atol=1e-5)
    arrays = ("observations", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
    for name in (*arrays, *STATES):
        np.testing.assert_allclose(getattr(ours, name), getattr(stock, name), rtol=1e-5, atol=2e-5, err_msg=name)
    for mine, theirs in zip(pair.ours._last_lstm_states, pair.stock._last_lstm_states, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)

"""torch's default type, changed after a float32 policy was made, changes nothing: stock computes in the policy's type."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.env_util import make_vec_env

import sb3_policyopt.envs  # noqa: F401  registers MaskedRoute-v0
from sb3_policyopt import PPO, TRPO

MEMORY = {"lstm_hidden_size": 8}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "box": ("MlpPolicy", "Pendulum-v1", {}),
    "discrete": ("MlpPolicy", "CartPole-v1", {}),
    "masks": ("MaskableMlpPolicy", "MaskedRoute-v0", {}),
    "memory": ("MlpLstmPolicy", "Pendulum-v1", {"policy_kwargs": MEMORY}),
}


@pytest.fixture(autouse=True)
def float32_again() -> Iterator[None]:
    yield
    th.set_default_dtype(th.float32)


def trained(algorithm: Any, name: str, default: th.dtype, **options: Any) -> Any:
    """A model made with float32 as the default, and trained with another."""
    policy, env, arguments = CASES[name]
    options = {**arguments, **options, **({"n_critic_updates": 2} if algorithm is TRPO else {"n_epochs": 2})}
    model = algorithm(policy, make_vec_env(env, n_envs=2), n_steps=32, batch_size=32, seed=0, device="cpu", **options)
    th.set_default_dtype(default)
    try:
        return model.learn(128)
    finally:
        th.set_default_dtype(th.float32)


def parameters(model: Any) -> Any:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in model.policy.parameters()])


def test_stock_does_not_care() -> None:
    vectors = [parameters(trained(stable_baselines3.PPO, "box", kind)) for kind in (th.float32, th.bfloat16, th.float64)]
    np.testing.assert_array_equal(vectors[1], vectors[0])
    np.testing.assert_array_equal(vectors[2], vectors[0])


@pytest.mark.parametrize("default", [th.bfloat16, th.float64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ["auto", pytest.param("autograd", marks=pytest.mark.thinned(2))])
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_the_same_numbers(algorithm: Any, engine: str, name: str, default: th.dtype) -> None:
    """With bfloat16 every engine failed; with float64 other noise was drawn, and TRPO with memory failed."""
    expected = trained(algorithm, name, th.float32, engine=engine)
    model = trained(algorithm, name, default, engine=engine)
    np.testing.assert_array_equal(parameters(model), parameters(expected))


@pytest.mark.parametrize("default", [th.float32, th.bfloat16, th.float64])
def test_the_steps_of_adam_are_counted_in_stocks_type(default: th.dtype) -> None:
    models = [trained(algorithm, "discrete", default) for algorithm in (stable_baselines3.PPO, PPO)]
    theirs, mine = (model.policy.optimizer.state_dict()["state"] for model in models)
    for number, state in theirs.items():
        for name, value in state.items():
            assert mine[number][name].dtype == value.dtype, name
        assert mine[number]["step"] == state["step"]


def test_pieces_log_the_same_numbers() -> None:
    """Terms that NumPy computed were rounded to bfloat16 where the pieces' were added."""
    logs = [trained(PPO, "discrete", kind, micro_batch_size=8).logger.name_to_value for kind in (th.float32, th.bfloat16)]
    for name in ("loss", "approx_kl", "value_loss", "entropy_loss"):
        assert logs[0][f"train/{name}"] == logs[1][f"train/{name}"]

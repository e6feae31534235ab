"""Simulators whose outputs depend on parameters of torch: a learned reward, a learned world, a differentiable simulator."""

from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from tensor_models import ThroughNumpy, model_on

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.envs.tensors import TensorPendulum, TensorStep, TensorVecNormalize

STEPS = 3 * 4 * 24


class Learned(TensorPendulum):
    """
    A pendulum one of whose outputs comes from a network.

    :param what: "rewards", "observations" or "final_obs"
    :param enables: whether gradients are enabled by the environment itself
    """

    def __init__(self, what: str, enables: bool = False) -> None:
        super().__init__(4, device="cpu", seed=3, max_episode_steps=5)
        self.what, self.enables = what, enables
        self.recorded: list[bool] = []
        with th.random.fork_rng():
            th.manual_seed(0)
            self.net = th.nn.Linear(3, 1 if what == "rewards" else 3)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        step = super().step_tensors(actions)
        with th.set_grad_enabled(self.enables or th.is_grad_enabled()):
            if self.what == "rewards":
                step = step._replace(rewards=self.net(step.observations)[:, 0])
            elif self.what == "observations":
                step = step._replace(observations=self.net(step.observations))
            else:
                step = step._replace(extras={"final_obs": self.net(step.extras["final_obs"])})
        self.recorded.append(any(tensor.requires_grad for tensor in (step[0], step[1], step[4]["final_obs"])))  # type: ignore[union-attr]
        return step


@pytest.mark.parametrize("enables", [False, True])
@pytest.mark.parametrize("what", ["rewards", "observations", "final_obs"])
def test_a_training_is_that_of_stock_sb3_on_the_same_environments(what: str, enables: bool) -> None:
    env = Learned(what, enables)
    options = {"batch_size": 48, "n_epochs": 2}
    ours = model_on(PPO, env, engine="autograd", **options).learn(STEPS)
    theirs = model_on(stable_baselines3.PPO, Learned(what), **options).learn(STEPS)
    assert set(env.recorded) == {enables}
    for name, parameter in ours.policy.state_dict().items():
        np.testing.assert_allclose(parameter, theirs.policy.state_dict()[name], rtol=0, atol=1e-4, err_msg=name)
    buffer = ours.rollout_buffer
    for name in ("observations", "rewards", "values", "returns", "advantages"):
        assert not getattr(buffer, name).requires_grad, name
    np.testing.assert_allclose(buffer.rewards, theirs.rollout_buffer.rewards, rtol=0, atol=1e-3)
    assert all(parameter.grad is None for parameter in env.net.parameters())


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("algorithm, options", [(PPO, {"n_epochs": 2}), (TRPO, {"n_critic_updates": 2, "cg_max_steps": 5})])
def test_numbers_are_those_of_the_loop_through_numpy(algorithm: Any, options: Any, normalised: bool) -> None:
    def env() -> Any:
        return TensorVecNormalize(Learned("rewards", enables=True)) if normalised else Learned("rewards", enables=True)

    tensors = model_on(algorithm, env(), batch_size=48, **options).learn(STEPS)
    arrays = model_on(algorithm, ThroughNumpy(env()), batch_size=48, **options).learn(STEPS)
    for name, parameter in tensors.policy.state_dict().items():
        np.testing.assert_allclose(parameter, arrays.policy.state_dict()[name], rtol=0, atol=1e-4, err_msg=name)


def test_callbacks_see_arrays() -> None:
    env, seen = Learned("rewards", enables=True), []

    def look(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(np.array(variables["rewards"]))
        return True

    model = model_on(PPO, env, batch_size=48, learning_rate=0.0).learn(96, callback=look)
    observed = model.rollout_buffer.observations[1:]  # of the next step, from which the rewards come
    np.testing.assert_allclose(seen[:-1], env.net(observed)[..., 0].detach(), rtol=0, atol=1e-5)

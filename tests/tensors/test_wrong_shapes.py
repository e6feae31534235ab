"""Tensors of another shape than they must have are named, in training and on the NumPy side."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from fake_simulator import DICT, FakeTensorEnv
from gymnasium import spaces
from tensor_models import model_on

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.envs.tensors import TensorStep, TensorVecEnv, TensorVecNormalize

N, T = 5, 24


class Wrong(FakeTensorEnv):
    """
    A simulator that gives something else.

    :param change: of a step
    :param at_reset: change of the first observations
    :param dicts: whether observations are dicts
    """

    def __init__(
        self, change: Callable[[TensorStep], Any] = lambda step: step, at_reset: Any = None, dicts: bool = False
    ) -> None:
        super().__init__(N, dicts)
        self.change, self.at_reset = change, at_reset

    def reset_tensors(self, seed: int | None = None) -> Any:
        observations = super().reset_tensors(seed)
        return observations if self.at_reset is None else self.at_reset(observations)

    def step_tensors(self, actions: th.Tensor) -> Any:
        return self.change(super().step_tensors(actions))


def with_extras(step: TensorStep, **extras: Any) -> TensorStep:
    return step._replace(extras=step.extras | extras)


def flip(observations: Any) -> Any:
    return observations.T.contiguous()


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "one reward": (lambda s: s._replace(rewards=s.rewards.mean()), r"rewards .* \(5,\), but has \(\)"),
    "a number": (lambda s: s._replace(rewards=1.0), r"rewards .* \(5,\), but has \(\)"),
    "a list": (lambda s: s._replace(rewards=s.rewards.tolist()), r"rewards .* \(5,\), but is a list"),
    "column": (lambda s: s._replace(rewards=s.rewards[:, None]), r"rewards .* \(5,\), but has \(5, 1\).*squeeze\(1\)"),
    "terminated": (lambda s: s._replace(terminated=s.terminated[:, None]), r"terminated .* \(5,\), but has \(5, 1\)"),
    "truncated": (lambda s: s._replace(truncated=s.truncated[:1]), r"truncated .* \(5,\), but has \(1,\)"),
    "transposed": (lambda s: s._replace(observations=flip(s.observations)), r"observations of .* \(5, 4\), but has \(4, 5\)"),
    "flat": (lambda s: s._replace(observations=s.observations.flatten()), r"observations of .* \(5, 4\), but has \(20,\)"),
    "a dict": (lambda s: s._replace(observations={"a": s.observations}), r"must be one tensor.*a dict with \['a'\]"),
    "final": (lambda s: with_extras(s, final_obs=flip(s.extras["final_obs"])), r"\['final_obs'\] of .*\(5, 4\), .*\(4, 5\)"),
    "success": (lambda s: with_extras(s, is_success=s.terminated[:, None]), r"\['is_success'\] .*\(5,\), but has \(5, 1\)"),
}


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_of_a_step(change: Any, message: str, normalised: bool, cls: Any) -> None:
    env: TensorVecEnv = Wrong(change)
    model = model_on(cls, TensorVecNormalize(env) if normalised else env, batch_size=N * T)
    with pytest.raises(ValueError, match=f"^Wrong: .*{message}"):
        model.learn(N * T)
    env.reset()
    with pytest.raises(ValueError, match=f"^Wrong: .*{message}"):
        env.step(np.zeros((N, 2), np.float32))


@pytest.mark.parametrize("normalised", [False, True])
def test_of_the_first_observations(normalised: bool) -> None:
    env: TensorVecEnv = Wrong(at_reset=flip)
    message = r"^Wrong: observations of reset_tensors must have shape \(5, 4\), but has \(4, 5\)"
    with pytest.raises(ValueError, match=message):
        env.reset()
    with pytest.raises(ValueError, match=message):
        model_on(PPO, TensorVecNormalize(env) if normalised else env, batch_size=N * T).learn(N * T)


def test_of_dicts() -> None:
    def without(step: TensorStep) -> TensorStep:
        return step._replace(observations={"clock": step.observations["clock"]})  # type: ignore[index]

    def other(step: TensorStep) -> TensorStep:
        return step._replace(observations=step.observations | {"step": step.observations["step"][:, 0]})  # type: ignore

    for change, message in (
        (without, r"must be a dict with \['clock', 'step'\].* is a dict with \['clock'\]"),
        (other, r"observations\['step'\] of step_tensors must have shape \(5, 1\), but has \(5,\)"),
    ):
        model = PPO("MultiInputPolicy", Wrong(change, dicts=True), n_steps=T, batch_size=N * T, device="cpu")
        with pytest.raises(ValueError, match=message):
            model.learn(N * T)
    assert Wrong(dicts=True).observation_space == DICT


def test_what_comes_in_a_later_step_is_looked_at_then() -> None:
    def change(step: TensorStep) -> TensorStep:
        if bool((step.terminated | step.truncated).any()):
            return with_extras(step, final_obs=step.extras["final_obs"][:2])
        return step._replace(extras={})

    with pytest.raises(ValueError, match=r"\['final_obs'\] of step_tensors must have shape \(5, 4\), but has \(2, 4\)"):
        model_on(PPO, Wrong(change), batch_size=N * T).learn(N * T)


@pytest.mark.parametrize("column", [False, True])
def test_numbers_of_a_discrete_space_may_be_a_column(column: bool) -> None:
    """As SB3's buffers hold them."""

    class Numbers(FakeTensorEnv):
        def __init__(self) -> None:
            super().__init__(N)
            self.observation_space = spaces.Discrete(9)

        def form(self, clock: th.Tensor) -> th.Tensor:
            steps = clock[:, 2].nan_to_num().long()
            return steps[:, None] if column else steps

    model = model_on(PPO, Numbers(), batch_size=N * T).learn(2 * N * T)
    assert set(model.rollout_buffer.observations.flatten().tolist()) <= set(range(9))

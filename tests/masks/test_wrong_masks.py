"""M1: what is no mask."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contrib_twins import MASKABLE, masked_toy
from gymnasium import spaces
from masked_worlds import N_ACTIONS, SMALL, ByInfo, ByMethod, ByObservation, ByVecEnv, allowed_after, vec
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from toy_environments import VECTOR

from benchmarks.environments import ToyEnv
from sb3_policyopt import PPO, TRPO, MaskablePPO, MaskableTRPO


class Given(ToyEnv):
    """Its masks are what it is told, from its n-th step on."""

    def __init__(self, masks: Any, from_step: int, action: spaces.Space[Any]) -> None:
        super().__init__(VECTOR, action)
        self.masks, self.from_step, self.n_steps = masks, from_step, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return super().step(action)

    def action_masks(self) -> Any:
        if self.n_steps < self.from_step:
            return np.ones(sum(np.atleast_1d(getattr(self.action_space, "nvec", N_ACTIONS))), bool)
        return self.masks


def faulty(masks: Any, action: spaces.Space[Any], vec_env: Any = DummyVecEnv) -> Any:
    """Three environments, of which the one in the middle gives wrong masks from its fifth step on."""
    right = np.ones(sum(np.atleast_1d(getattr(action, "nvec", N_ACTIONS))), bool)
    return vec_env([lambda m=m: Monitor(Given(m, 5, action)) for m in (right, masks, right)])


FAULTS = {
    "no allowed action": (np.zeros(4, bool), "allows no action$"),
    "no allowed action, integers": (np.zeros(4, int), "allows no action$"),
    "too short": (np.ones(3, bool), r"has the shape \(3,\), but the action space needs 4 entries"),
    "too long": (np.ones(5, bool), r"has the shape \(5,\), but the action space needs 4 entries"),
    "two": (np.array([1, 2, 0, 1]), "holds other numbers than 0 and 1"),
    "a half": (np.array([1, 0.5, 0, 1]), "holds other numbers than 0 and 1"),
    "NaN": (np.array([1, np.nan, 0, 1]), "holds other numbers than 0 and 1"),
}


@pytest.mark.fast
@pytest.mark.parametrize("name", FAULTS)
def test_M1_what_is_no_mask_is_an_error_with_environment_and_step(name: str, engine: str) -> None:
    masks, message = FAULTS[name]
    model = PPO("MaskableMlpPolicy", faulty(masks, spaces.Discrete(N_ACTIONS)), engine=engine, **SMALL)
    with pytest.raises(ValueError, match=f"action mask of environment 1 at step 5 of the rollout {message}"):
        model.learn(1000)


class Says(ByVecEnv):
    """A VecEnv whose method returns what it is told."""

    def __init__(self, env: VecEnv, answer: Callable[[], Any]) -> None:
        super().__init__(env)
        self.answer = answer

    def action_masks(self) -> Any:
        return self.answer()


NO_ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "but NoneType"),
    "a generator": (lambda: (np.ones(4, bool) for _ in range(3)), "but generator"),
    "a dict": (lambda: dict.fromkeys(range(3), np.ones(4, bool)), "but dict"),
    "transposed": (lambda: np.ones((4, 3), bool), r"but \(4, 3\)"),
    "flat": (lambda: np.ones(12, bool), r"but \(12,\)"),
    "too few rows": (lambda: np.ones((2, 4), bool), r"but \(2, 4\)"),
    "a row of rows": (lambda: np.ones((1, 3, 4), bool), r"but \(1, 3, 4\)"),
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_M1_masks_of_a_vec_env_without_a_row_for_each_environment_are_an_error(name: str) -> None:
    answer, found = NO_ROWS[name]
    message = (
        rf"action masks at step 0 of the rollout are no array of the shape \(3, 4\), one row for each environment, {found}"
    )
    with pytest.raises(ValueError, match=message):
        PPO("MaskableMlpPolicy", Says(vec(ByObservation), answer), **SMALL).learn(72)


@pytest.mark.parametrize("answer", [[1, 0, 1, 0], [[True], [False], [True], [False]]])
def test_M1_what_stands_for_one_environment_is_flattened(answer: Any) -> None:
    """As in sb3-contrib, where masks of Discrete(4) may have the shape (2, 2), too."""
    env = Says(vec(ByObservation), lambda: [answer] * 3)
    buffer: Any = PPO("MaskableMlpPolicy", env, **SMALL).learn(72).rollout_buffer
    np.testing.assert_array_equal(buffer.action_masks, np.tile([True, False, True, False], (72, 1)))


def test_M1_a_choice_without_allowed_action_is_an_error() -> None:
    """MultiDiscrete([3, 2, 4]): all of the second choice is forbidden, though five actions of the others are allowed."""
    masks = np.array([1, 0, 1, 0, 0, 1, 0, 1, 1], bool)
    model = PPO("MaskableMlpPolicy", faulty(masks, MASKABLE["multi_discrete"]), **SMALL)
    with pytest.raises(ValueError, match="of environment 1 at step 5 of the rollout allows no action of a choice"):
        model.learn(1000)


def test_M1_masks_of_another_shape_from_subprocesses() -> None:
    env = faulty(np.ones(3, bool), spaces.Discrete(N_ACTIONS), SubprocVecEnv)
    try:
        with pytest.raises(ValueError, match="of environment 1 at step 5"):
            PPO("MaskableMlpPolicy", env, **SMALL).learn(1000)
    finally:
        env.close()


def test_M1_a_mask_that_an_info_lacks_is_an_error() -> None:
    class Forgets(ByInfo):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            *rest, _ = super().step(action)
            return (*rest, {})

    with pytest.raises(ValueError, match="environment 0 at step 1"):
        PPO("MaskableMlpPolicy", vec(Forgets), **SMALL).learn(1000)


@pytest.mark.fast
@pytest.mark.parametrize(
    "model",
    [
        lambda env: PPO("MaskableMlpPolicy", env, **SMALL),
        lambda env: TRPO("MaskableMlpPolicy", env, **SMALL),
        lambda env: MaskablePPO("MlpPolicy", env, **SMALL),
        lambda env: PPO("MaskableMlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 8}, **SMALL),
    ],
)
def test_M1_environments_without_masks_are_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="does not support action masking"):
        model(vec(ByObservation)).learn(100)


@pytest.mark.parametrize("algorithm", [MaskablePPO, MaskableTRPO])
def test_M1_use_masking_false_needs_no_masks(algorithm: type[Any], engine: str) -> None:
    model = algorithm("MlpPolicy", vec(ByObservation), engine=engine, **SMALL).learn(72, use_masking=False)
    assert model.rollout_buffer.action_masks.all()
    model = algorithm("MlpPolicy", vec(ByMethod), engine=engine, **SMALL).learn(72, use_masking=False)
    expected = np.apply_along_axis(allowed_after, 1, model.rollout_buffer.observations)
    assert not np.take_along_axis(expected, model.rollout_buffer.actions.astype(int), 1).all(), "masks were used"
    model.learn(72)  # the next call uses them again, as sb3-contrib's
    assert not model.rollout_buffer.action_masks.all()


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete(np.array([[2, 3], [2, 2]])), spaces.MultiBinary([2, 3])], ids=str
)
def test_M1_masks_fit_no_other_action_spaces(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="masks need actions of"):
        PPO("MaskableMlpPolicy", make_vec_env(lambda: ToyEnv(VECTOR, space), 1), **SMALL)


def test_M1_contribs_error_for_boxes_and_for_policies_without_masks() -> None:
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        MaskablePPO("MlpPolicy", make_vec_env(lambda: ToyEnv(VECTOR, spaces.Box(-1, 1, (2,))), 1), **SMALL)
    with pytest.raises(ValueError, match="trains policies with masks"):
        MaskablePPO(PPO.policy_aliases["MlpPolicy"], masked_toy(), **SMALL)

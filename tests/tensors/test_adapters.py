"""The adapters on simulators that name each row, against ``DummyVecEnv`` with the same rules."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from comparison import assert_equal, assert_same_course
from fake_simulator import (
    ACTIONS,
    DICT,
    OBSERVATIONS,
    Clock,
    FakeIsaacLab,
    FakeManiSkill,
    FakeRslRl,
    FakeTensorEnv,
    Simulator,
    as_dict,
    reference,
)
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from no_sync import NoSync
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tensor_models import AutoresetMode, gymnasium_1_1

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import StaggeredResets
from sb3_policyopt.envs.tensors import (
    TensorVecEnv,
    TensorVecNormalize,
    from_gymnasium_vector,
    from_isaaclab,
    from_rsl_rl,
    is_tensor_env,
)

pytestmark = pytest.mark.fast
N = 7
SAME = AutoresetMode and AutoresetMode.SAME_STEP


def quiet_rsl_rl(simulator: Any, **settings: Any) -> TensorVecEnv:
    with pytest.warns(UserWarning, match="last observations"):
        return from_rsl_rl(simulator, **settings)


def sync(dicts: bool = False) -> SyncVectorEnv:
    return SyncVectorEnv([functools.partial(Clock, number, dicts) for number in range(N)], autoreset_mode=SAME)


MAKERS: dict[str, tuple[Callable[[], TensorVecEnv], bool]] = {
    "Isaac Lab": (lambda: from_isaaclab(FakeIsaacLab(N)), False),
    "Isaac Lab, dicts": (lambda: from_isaaclab(FakeIsaacLab(N, dicts=True)), True),
    "ManiSkill": (lambda: from_gymnasium_vector(FakeManiSkill(N)), False),
    "Gymnasium": (lambda: from_gymnasium_vector(sync()), False),
    "Gymnasium, dicts": (lambda: from_gymnasium_vector(sync(True)), True),
}


@pytest.mark.parametrize(
    ("make", "dicts"),
    [pytest.param(*case, marks=[gymnasium_1_1] if "Gymnasium" in name else [], id=name) for name, case in MAKERS.items()],
)
def test_equals_dummy_vec_env(make: Callable[[], TensorVecEnv], dicts: bool) -> None:
    env = make()
    assert is_tensor_env(env) and env.bootstrap == "final"
    assert env.observation_space == (DICT if dicts else OBSERVATIONS) and env.action_space == ACTIONS
    assert assert_same_course(env, reference(N, dicts), 60) > 10


@pytest.mark.parametrize("form", ["groups", "tensor", "tuple", "legged_gym"])
def test_rsl_rl_equals_dummy_vec_env_without_last_observations(form: str) -> None:
    """The simulator was reset once before: its first episode here is number 1, as after a reset of the reference."""
    expected = reference(N)
    expected.reset()
    env = quiet_rsl_rl(FakeRslRl(N, form), clip_actions=1.0)
    assert env.bootstrap == "previous" and env.observation_space == OBSERVATIONS and env.action_space == ACTIONS

    class CanReset(FakeRslRl):
        def reset(self) -> Any:
            self.reset_all()
            return (None, None) if self.form in ("tuple", "legged_gym") else self.observations()

    assert assert_same_course(quiet_rsl_rl(CanReset(N, form), clip_actions=1.0), expected, 60, False) > 10


def test_isaac_lab_without_last_observations_warns_once_and_takes_the_value_before() -> None:
    with pytest.warns(UserWarning, match="compute_final_obs") as found:
        env = from_isaaclab(FakeIsaacLab(N, compute_final_obs=False))
        assert env.bootstrap == "previous"
        assert_same_course(env, reference(N), 40, False)
    assert len(found) == 1


@pytest.mark.parametrize("compute_final_obs", [False, True])
def test_with_a_finite_horizon_the_time_limit_is_an_end(compute_final_obs: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = from_isaaclab(FakeIsaacLab(N, compute_final_obs, is_finite_horizon=True))
    env.reset()
    ended = 0
    for _ in range(20):
        _, _, dones, infos = env.step(np.zeros((N, 2), np.float32))
        ended += dones.sum()
        assert not any(info["TimeLimit.truncated"] for info in infos)
        assert all(
            ("terminal_observation" in info) == (done and compute_final_obs) for info, done in zip(infos, dones, strict=True)
        )
    assert ended > 20


def test_flags_of_both_kinds_in_one_step_are_an_end() -> None:
    """Environment 1 ends after 2 + 3·1 = 5 steps, which is the limit, too. rsl_rl's flags cannot say so."""
    for env in (from_isaaclab(FakeIsaacLab(3)), from_gymnasium_vector(FakeManiSkill(3))):
        env.reset_tensors()
        for _ in range(5):
            step = env.step_tensors(th.zeros(3, 2))
        assert step.terminated.tolist()[1:] == [True, False] and step.truncated.tolist()[1:] == [True, True]


@pytest.mark.parametrize("name", ["Isaac Lab", "Isaac Lab, dicts", "rsl_rl"])
def test_no_step_waits_for_the_device(name: str) -> None:
    env = quiet_rsl_rl(FakeRslRl(N)) if name == "rsl_rl" else MAKERS[name][0]()
    normalized = TensorVecNormalize(env)
    normalized.reset_tensors()
    with NoSync():
        for _ in range(12):
            normalized.step_tensors(th.zeros(N, 2))


def test_the_simulator_gets_actions_of_its_own() -> None:
    """It keeps them, and the caller writes to its own."""
    for simulator, make in (
        (FakeIsaacLab(2), from_isaaclab),
        (FakeManiSkill(2), from_gymnasium_vector),
        (FakeRslRl(2), quiet_rsl_rl),
    ):
        env = make(simulator)  # type: ignore[operator]
        env.reset_tensors()
        actions = th.zeros(2, 2)
        env.step_tensors(actions)
        actions.fill_(9.0)
        assert simulator.actions is not None and simulator.actions.abs().max() == 0


def test_extras_of_a_step_are_no_dict_of_the_simulator() -> None:
    """A wrapper may write to them."""
    simulator = FakeIsaacLab(2)
    env = from_isaaclab(simulator)
    env.reset_tensors()
    extras = env.step_tensors(th.zeros(2, 2)).extras
    assert set(extras) == {"log", "final_obs"} and set(simulator.extras["final_obs"]) == {"policy", "critic"}
    extras.clear()
    assert set(simulator.extras) == {"log", "final_obs"}


def test_groups_of_observations() -> None:
    for env in (
        from_isaaclab(FakeIsaacLab(2), group=["policy", "critic"]),
        quiet_rsl_rl(FakeRslRl(2), group=["policy", "critic"]),
    ):
        assert isinstance(env.observation_space, spaces.Dict)
        assert set(env.observation_space.spaces) == {"policy", "critic"}
        observations = env.reset_tensors()
        assert isinstance(observations, dict) and set(observations) == {"policy", "critic"}
    assert from_isaaclab(FakeIsaacLab(2, dicts=True), group="critic").observation_space == OBSERVATIONS

    class State(FakeRslRl):
        def observations(self) -> Any:
            return {"state": self.obs}

    assert quiet_rsl_rl(State(2)).observation_space == OBSERVATIONS, "the only group"
    calls: list[Callable[[], Any]] = [
        lambda: from_isaaclab(FakeIsaacLab(2), group="state"),
        lambda: quiet_rsl_rl(FakeRslRl(2), group=["policy", "state"]),
        lambda: quiet_rsl_rl(FakeRslRl(2, "tensor"), group="critic"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="group"):
            call()


def test_actions_without_bounds_get_some() -> None:
    free = spaces.Box(np.array([-np.inf, -0.5], np.float32), np.array([np.inf, np.inf], np.float32))
    env = from_isaaclab(FakeIsaacLab(2, action_space=free))
    assert env.action_space == spaces.Box(np.array([-100, -0.5], np.float32), np.array([100, 100], np.float32))
    assert from_isaaclab(FakeIsaacLab(2, action_space=free), clip_actions=3.0).action_space.high[1] == 3  # type: ignore[attr-defined]
    assert quiet_rsl_rl(FakeRslRl(2), clip_actions=2.0).action_space == spaces.Box(-2, 2, (2,), np.float32)
    for call in (
        lambda: from_isaaclab(FakeIsaacLab(2), clip_actions=0.0),
        lambda: from_rsl_rl(FakeRslRl(2), clip_actions=np.inf),
    ):
        with pytest.raises(ValueError, match="clip_actions"):
            call()


@gymnasium_1_1
def test_environments_that_do_not_reset_themselves_are_an_error_that_says_what_to_do() -> None:
    env = SyncVectorEnv([lambda: Clock(0)], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match=r"DISABLED.*SAME_STEP"):
        from_gymnasium_vector(env)


def test_an_environment_that_does_not_say_how_it_resets() -> None:
    with pytest.raises(ValueError, match="auto_reset=True"):
        from_gymnasium_vector(FakeManiSkill(2, auto_reset=False))
    simulator = FakeManiSkill(2)
    del simulator.auto_reset
    with pytest.raises(ValueError, match="autoreset_mode='same_step'"):
        from_gymnasium_vector(simulator)
    assert from_gymnasium_vector(simulator, autoreset_mode="same_step").num_envs == 2
    assert from_gymnasium_vector(simulator, autoreset_mode="next_step").autoreset_mode == "next_step"
    with pytest.raises(ValueError, match="sometimes"):
        from_gymnasium_vector(simulator, autoreset_mode="sometimes")


@gymnasium_1_1
def test_gymnasiums_own_vector_environments() -> None:
    """Seeds, int64 actions, rewards and flags of CartPole-v1, beside SB3's VecEnv with the same seeds."""
    vector = gym.make_vec(
        "CartPole-v1", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    env, expected = from_gymnasium_vector(vector), DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3)
    env.seed(5)
    expected.seed(5)
    np.testing.assert_array_equal(env.reset(), expected.reset())  # type: ignore[arg-type]
    finals = 0
    for number in range(60):
        actions = np.array([number % 2, 0, 1])
        ours, theirs = env.step(actions), expected.step(actions)
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            assert_equal(one, other)
        for info, wanted in zip(ours[3], theirs[3], strict=True):
            assert_equal(info.get("terminal_observation", 0), wanted.get("terminal_observation", 0))
            finals += "terminal_observation" in wanted
    assert finals > 5
    env.close()


@gymnasium_1_1
@pytest.mark.slow
def test_gymnasiums_worker_processes() -> None:
    env = from_gymnasium_vector(AsyncVectorEnv([functools.partial(Clock, number) for number in range(N)], autoreset_mode=SAME))  # type: ignore[misc]
    assert_same_course(env, reference(N), 30)
    env.close()


def test_seeds_reach_the_simulator() -> None:
    class Seeded(FakeRslRl):
        def seed(self, seed: int) -> None:
            self.seeds.append(seed)

    simulators: list[Simulator] = [FakeIsaacLab(2), FakeManiSkill(2), Seeded(2)]
    for simulator, make in zip(simulators, (from_isaaclab, from_gymnasium_vector, quiet_rsl_rl), strict=True):
        env = make(simulator)  # type: ignore[operator]
        env.seed(11)
        env.reset()
        assert 11 in simulator.seeds
    env = quiet_rsl_rl(FakeRslRl(2))
    env.seed(1)
    with pytest.warns(UserWarning, match="no method seed"):
        env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.seed(1)
        env.reset()


def test_attributes_are_the_simulators() -> None:
    simulator = FakeIsaacLab(3)
    env = from_isaaclab(simulator)
    assert env.get_attr("max_episode_length") == [5] * 3 and env.get_attr("num_envs") == [3] * 3
    env.set_attr("max_episode_length", 6)
    assert simulator.max_episode_length == 6
    assert env.env_method("groups", th.zeros(1, 4))[0].keys() == {"policy", "critic"}
    assert env.metadata["render_fps"] == pytest.approx(30)
    wrapped = gym.Wrapper(Clock(0))
    assert env.attribute_owner("nothing") is simulator
    simulator.__class__ = type("Wrapped", (FakeIsaacLab,), {"unwrapped": wrapped})
    assert env.get_attr("env")[0] is wrapped.env
    env.close()
    assert simulator.closed


@pytest.mark.parametrize("drawn", ["one", "many", "tuple", "tensor"])
def test_pictures_are_what_the_simulator_draws(drawn: str) -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    results = {
        "one": picture,
        "many": np.stack([picture] * 2),
        "tuple": (picture, picture),
        "tensor": th.from_numpy(np.stack([picture] * 2)),
    }

    class Drawing(FakeManiSkill):
        render_mode = "rgb_array"

        def render(self) -> Any:
            return results[drawn]

    image = from_gymnasium_vector(Drawing(2)).render()
    assert image is not None and image.shape == ((4, 6, 3) if drawn == "one" else (8, 6, 3))
    assert from_gymnasium_vector(FakeManiSkill(2)).get_images() == [None, None]


def test_what_is_no_such_simulator_is_named() -> None:
    for adapter, name in ((from_isaaclab, "Isaac Lab"), (from_rsl_rl, "rsl_rl"), (from_gymnasium_vector, "vector")):
        with pytest.raises(ValueError, match=f"env must be .*{name}.*Env"):
            adapter(gym.make("CartPole-v1").unwrapped)

    class Nested(FakeManiSkill):
        single_observation_space: Any = spaces.Dict({"agent": DICT})

    class DictActions(FakeManiSkill):
        single_action_space: Any = DICT

    with pytest.raises(ValueError, match="observation space"):
        from_gymnasium_vector(Nested(2))
    with pytest.raises(ValueError, match="action space"):
        from_gymnasium_vector(DictActions(2))


def test_sb3_trains_on_an_adapter() -> None:
    env = VecMonitor(TensorVecNormalize(from_isaaclab(FakeIsaacLab(4))))
    model = StockPPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(128)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 10


def test_the_fake_simulator_has_the_habits_that_are_tested() -> None:
    """Buffers in place, one dict of extras, stale last observations, both flags at once, and rows that differ."""
    env = FakeTensorEnv(7)
    first = env.reset_tensors()
    step = env.step_tensors(th.zeros(7, 2))
    assert step.observations is first and as_dict(step.observations)["step"].dtype == th.uint8  # type: ignore[arg-type]
    final = step.extras["final_obs"]
    both, stale = False, False
    for _ in range(20):
        after = env.step_tensors(th.zeros(7, 2))
        assert after.extras is step.extras and after.rewards is step.rewards and after.extras["final_obs"] is final
        both |= bool((after.terminated & after.truncated).any())
        stale |= bool((~(after.terminated | after.truncated) & (final[:, 2] > 0)).any())
    assert both and stale and len(first.unique(dim=0)) == 7  # type: ignore[union-attr]


def test_staggered_resets_set_the_steps_of_isaac_lab_and_rsl_rl() -> None:
    """The simulator's own tensor is written to; one in the middle of its episodes, as after a step, is left alone."""
    isaaclab, rsl_rl = FakeIsaacLab(N), FakeRslRl(N)
    simulator: Simulator
    for simulator, env in ((isaaclab, from_isaaclab(isaaclab)), (rsl_rl, quiet_rsl_rl(rsl_rl))):
        callback = StaggeredResets()
        callback.init_callback(PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu"))
        env.reset()
        callback.on_training_start({}, {})
        assert simulator.steps.tolist() == [0, 0, 1, 2, 2, 3, 4]  # i · 5 // 7
        env.step(np.zeros((N, 2), np.float32))
        before = simulator.steps.tolist()
        callback.on_training_start({}, {})
        assert simulator.steps.tolist() == before


def test_staggered_resets_say_where_there_is_no_such_tensor() -> None:
    callback = StaggeredResets()
    callback.init_callback(PPO("MlpPolicy", from_gymnasium_vector(FakeManiSkill(N)), n_steps=8, batch_size=8, device="cpu"))
    with pytest.warns(UserWarning, match="StaggeredResets does nothing"):
        callback.on_training_start({}, {})

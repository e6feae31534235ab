"""``SharedMemoryVecEnv`` in trainings, under Monitor and Atari wrappers, and its state: as ``DummyVecEnv``."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from worlds import FASTEST, Broken, World, assert_same

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.saving.environments import VecEnvState

Shared = functools.partial(SharedMemoryVecEnv, start_method=FASTEST)


def test_monitor_files(tmp_path: Path) -> None:
    env = make_vec_env(
        Broken, 4, monitor_dir=str(tmp_path), vec_env_cls=SharedMemoryVecEnv, vec_env_kwargs={"start_method": FASTEST}
    )
    env.reset()
    episodes = 0
    for _ in range(21):
        episodes += sum("episode" in info for info in env.step(np.ones(4, int))[3])
    env.close()
    assert episodes == len(load_results(str(tmp_path))) == 12  # three of seven steps in each of four environments


def trained(algorithm: Any, vec_env_cls: Any, **kwargs: Any) -> Any:
    env = VecNormalize(make_vec_env("Pendulum-v1", 5, seed=1, vec_env_cls=vec_env_cls, **kwargs))
    model = algorithm("MlpPolicy", env, n_steps=256, batch_size=64, seed=0, device="cpu").learn(2 * 5 * 256)
    env.close()
    return model


@pytest.mark.thinned(2)
@pytest.mark.parametrize("algorithm", [PPO, TRPO, StockPPO])
@pytest.mark.parametrize("trainer_steps", [False, True])
def test_a_training_ends_with_the_same_bits(algorithm: Any, trainer_steps: bool) -> None:
    vec_env_kwargs = {"start_method": FASTEST, "n_workers": 2, "trainer_steps": trainer_steps}
    kwargs: dict[str, dict[str, Any]] = {"vec_env_kwargs": vec_env_kwargs}
    one, other = trained(algorithm, DummyVecEnv), trained(algorithm, SharedMemoryVecEnv, **kwargs)
    for name, value in one.policy.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), other.policy.state_dict()[name].numpy(), err_msg=name)
    assert [episode["r"] for episode in one.ep_info_buffer] == [episode["r"] for episode in other.ep_info_buffer]


def test_atari_with_its_wrappers() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    kwargs: list[dict[str, Any]] = [
        {"vec_env_cls": DummyVecEnv},
        {"vec_env_cls": SharedMemoryVecEnv, "vec_env_kwargs": {"start_method": FASTEST}},
    ]
    envs = [VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", 3, seed=2, **words), 4) for words in kwargs]
    assert_same(*(env.reset() for env in envs))
    random = np.random.default_rng(0)
    ends = 0
    for _ in range(200):
        actions = random.integers(0, 4, 3)
        first, second = (env.step(actions) for env in envs)
        assert_same(first[:3], second[:3])
        for one, other in zip(first[3], second[3], strict=True):
            assert_same(*({key: value for key, value in info.items() if key != "episode"} for info in (one, other)))
        ends += int(first[2].sum())
    assert ends > 0  # lives were lost
    envs[1].close()


def test_the_state_of_a_training_can_be_kept_and_given_back() -> None:
    env = Shared([lambda: World("vector")] * 3, n_workers=2)
    env.seed(4)
    env.reset()
    state = VecEnvState(env).capture()

    def steps() -> Any:
        return [env.step(np.zeros(3, int))[:3] for _ in range(10)]

    before = steps()
    VecEnvState(env).restore(state)
    assert_same(before, steps())
    env.close()

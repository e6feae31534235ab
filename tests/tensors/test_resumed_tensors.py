"""A killed run on our own tensor environments goes on as if it had not been killed."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum, TensorVecNormalize


class Killed(Exception):
    pass


class Kill(BaseCallback):
    """Raise after some timesteps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.after:
            raise Killed
        return True


def make() -> PPO:
    env = TensorVecNormalize(TensorPendulum(8, "cpu", seed=0, max_episode_steps=30))
    return PPO("MlpPolicy", env, n_steps=16, batch_size=64, n_epochs=2, seed=0, device="cpu")


@pytest.mark.filterwarnings("ignore:.*was written beside the callbacks")
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    undisturbed = make().learn(1024)
    with pytest.raises(Killed):
        make().learn(1024, callback=CallbackList([ResumableCheckpointCallback(str(tmp_path), 256), Kill(700)]))
    resumed = make()
    resumed.learn(1024, callback=ResumableCheckpointCallback(str(tmp_path), 256))
    for one, other in zip(undisturbed.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert th.equal(one, other)
    assert undisturbed.ep_info_buffer is not None and resumed.ep_info_buffer is not None
    counted = [[(info["r"], info["l"]) for info in infos] for infos in (undisturbed.ep_info_buffer, resumed.ep_info_buffer)]
    assert counted[0] == counted[1] and {length for _, length in counted[0]} == {30}
    first, second = undisturbed.get_vec_normalize_env(), resumed.get_vec_normalize_env()
    assert isinstance(first, TensorVecNormalize) and isinstance(second, TensorVecNormalize)
    assert first.obs_rms.mean.tolist() == second.obs_rms.mean.tolist() and first.ret_rms.var == second.ret_rms.var
    assert th.equal(first.returns, second.returns)


@pytest.mark.fast
@pytest.mark.parametrize("kind", [TensorCartPole, TensorPendulum])
def test_a_state_is_all_that_the_next_steps_depend_on(kind: type[Any]) -> None:
    actions = th.ones(3, dtype=th.int64) if kind is TensorCartPole else th.ones(3, 1)
    env, other = kind(3, "cpu", seed=0, max_episode_steps=7), kind(3, "cpu", seed=1, max_episode_steps=7)
    env.reset_tensors()
    for _ in range(5):
        env.step_tensors(actions)
    env.seed(4)
    other.set_state(env.get_state())
    for _ in range(20):
        one, two = env.step_tensors(actions), other.step_tensors(actions)
        assert th.equal(one.observations, two.observations) and th.equal(one.truncated, two.truncated)
    assert env.reset().tolist() == other.reset().tolist(), "with the seed that was given"
    with pytest.raises(ValueError, match="3 environments, and there are 2"):
        kind(2, "cpu").set_state(env.get_state())

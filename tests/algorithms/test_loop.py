"""S5, T11, P6: collect N × T transitions, update from them, discard them, repeat."""

from typing import Any

import numpy as np
import pytest
from toy_environments import toy

from sb3_policyopt import PPO, TRPO

N, T = 4, 16


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_S5_T11_P6_every_update_is_made_from_new_transitions_and_from_all_of_them(cls: type[Any], engine: str) -> None:
    model = cls("MlpPolicy", toy(n_envs=N), engine=engine, n_steps=T, batch_size=32, seed=0, device="cpu")
    step, train, seen, used, order = model.env.step, model.train, [], [], []

    def watched_step(actions: np.ndarray) -> tuple[Any, ...]:
        order.append("step")
        seen.append(model._last_obs.copy())
        return step(actions)

    def watched_train() -> None:
        order.append("update")
        used.append(model.rollout_buffer.observations.copy().reshape(T, N, -1))
        train()

    model.env.step, model.train = watched_step, watched_train
    model.learn(3 * N * T)
    assert order == [*["step"] * T, "update"] * 3, "collect, then update, and again"
    assert model.num_timesteps == 3 * N * T
    # The k-th update has the observations of steps kT to (k + 1)T, in their order, and no others.
    np.testing.assert_array_equal(np.array(used).reshape(3 * T, N, -1), np.array(seen))
    assert len({row.tobytes() for rollout in used for row in rollout.reshape(T * N, -1)}) == 3 * T * N

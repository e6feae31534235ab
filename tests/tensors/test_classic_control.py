"""``TensorCartPole`` and ``TensorPendulum`` against Gymnasium's own environments."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from no_sync import HostSyncError, NoSync

from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum, is_tensor_env

KINDS: list[tuple[type[Any], str]] = [(TensorCartPole, "CartPole-v1"), (TensorPendulum, "Pendulum-v1")]
pytestmark = pytest.mark.fast


def random_actions(space: gym.Space[Any], n: int, random: np.random.Generator) -> Any:
    if isinstance(space, gym.spaces.Discrete):
        return random.integers(0, 2, n)
    return random.uniform(-2, 2, (n, 1)).astype(np.float32)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_whole_episodes_equal_gymnasiums(kind: type[Any], name: str) -> None:
    """
    Equal states and actions for 600 steps, with time limits; where an episode ends, Gymnasium's next begins with our state.

    Both compute in float64 and round observations to float32. The tolerance is a few roundings of float32.
    """
    random = np.random.default_rng(0)
    n = 6
    env = kind(n, device="cpu", seed=1)
    references = [gym.make(name) for _ in range(n)]
    observations = env.reset_tensors()
    for number, reference in enumerate(references):
        reference.reset(seed=0)
        reference.unwrapped.state = env.state[number].numpy().copy()  # type: ignore[attr-defined]
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(600):
        actions = random_actions(env.action_space, n, random)
        if name == "CartPole-v1":  # pushes against the fall of the first two, so that their episodes are long
            angle, speed = observations[:2, 2].numpy(), observations[:2, 3].numpy()
            actions[:2] = angle + speed > 0
        step = env.step_tensors(th.from_numpy(actions))
        observations = step.observations
        for number, reference in enumerate(references):
            expected, reward, terminated, truncated, _ = reference.step(actions[number])
            np.testing.assert_allclose(step.extras["final_obs"][number], expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(float(step.rewards[number]), float(reward), rtol=1e-6, atol=1e-6)
            assert (step.terminated[number], step.truncated[number]) == (terminated, truncated)
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            if terminated or truncated:
                reference.reset()
                reference.unwrapped.state = env.state[number].numpy().copy()  # type: ignore[attr-defined]
            else:
                np.testing.assert_allclose(observations[number], expected, rtol=1e-6, atol=1e-6)
                if np.lib.NumpyVersion(np.__version__) < "2.0.0":  # it multiplies the torque by 3 in float64
                    reference.unwrapped.state = env.state[number].numpy().copy()  # type: ignore[attr-defined]
    assert ends["truncated"] >= 2
    assert ends["terminated"] > 10 or name != "CartPole-v1"


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_spaces_and_time_limit_are_gymnasiums(kind: type[Any], name: str) -> None:
    reference, env = gym.make(name), kind(2, device="cpu")
    assert (env.observation_space, env.action_space) == (reference.observation_space, reference.action_space)
    assert reference.spec is not None and env.max_episode_steps == reference.spec.max_episode_steps
    assert is_tensor_env(env) and env.bootstrap == "final"


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_first_states_are_distributed_as_gymnasiums(kind: type[Any], name: str) -> None:
    """Uniform between bounds: those of 4,000 draws, and their means, beside those of 500 of Gymnasium's."""
    n = 4000
    ours = kind(n, device="cpu", seed=0)
    ours.reset_tensors()
    reference = gym.make(name)
    theirs = []
    for seed in range(500):
        reference.reset(seed=seed)
        theirs.append(reference.unwrapped.state)  # type: ignore[attr-defined]
    width = np.ptp(theirs, axis=0)
    np.testing.assert_allclose(ours.state.amin(0), np.min(theirs, axis=0), atol=0.02 * width.max())
    np.testing.assert_allclose(ours.state.amax(0), np.max(theirs, axis=0), atol=0.02 * width.max())
    assert (np.abs(ours.state.mean(0).numpy()) < 0.03 * width).all()
    assert len(ours.state.unique()) == ours.state.numel()


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_equal_seeds_give_equal_episodes_and_leave_torchs_generator_alone(kind: type[Any]) -> None:
    actions = th.ones(5, dtype=th.int64) if kind is TensorCartPole else th.ones(5, 1)
    first, second, other = kind(5, device="cpu", seed=3), kind(5, device="cpu"), kind(5, device="cpu", seed=4)
    before = th.get_rng_state()
    one, two, three = first.reset_tensors(), second.reset_tensors(seed=3), other.reset_tensors()
    assert th.equal(one, two) and not th.equal(one, three)
    for _ in range(30):
        one, two = first.step_tensors(actions), second.step_tensors(actions)
        assert th.equal(one.observations, two.observations)
    assert th.equal(th.get_rng_state(), before)
    assert not th.equal(first.reset_tensors(), second.reset_tensors(seed=3)), "without a seed the random numbers go on"


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_no_step_waits_for_the_device(kind: type[Any]) -> None:
    env = kind(8, device="cpu", seed=0, max_episode_steps=3)
    actions = th.zeros(8, dtype=th.int64) if kind is TensorCartPole else th.zeros(8, 1)
    env.reset_tensors()
    with NoSync():
        for _ in range(10):
            env.step_tensors(actions)


def test_the_helper_finds_what_waits() -> None:
    numbers = th.arange(4.0)
    for waits in (
        lambda: numbers.sum().item(),
        lambda: bool((numbers > 1).any()),
        lambda: numbers[numbers > 1],
        lambda: th.nonzero(numbers),
        lambda: numbers.masked_select(numbers > 1),
        lambda: numbers.clone().index_put_((numbers > 1,), th.zeros(())),
    ):
        with NoSync(), pytest.raises(HostSyncError):
            waits()
    with NoSync():
        numbers[th.tensor([1, 2])].masked_fill(numbers[:2] > 1, 0.0)


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_pictures_are_gymnasiums(kind: type[Any]) -> None:
    pytest.importorskip("pygame")
    env = kind(3, device="cpu", seed=0, render_mode="rgb_array")
    env.reset()
    env.step(np.array([env.action_space.sample() for _ in range(3)]))
    picture = env.render()
    reference = gym.make("CartPole-v1" if kind is TensorCartPole else "Pendulum-v1", render_mode="rgb_array")
    reference.reset(seed=0)
    reference.unwrapped.state = env.state[0].numpy().copy()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(picture, reference.render())
    env.close()


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_bad_arguments_are_named(kind: type[Any]) -> None:
    for arguments, name in (
        ({"num_envs": 0}, "num_envs"),
        ({"num_envs": 2, "max_episode_steps": 0}, "max_episode_steps"),
        ({"num_envs": 2, "render_mode": "human"}, "render_mode"),
    ):
        with pytest.raises(ValueError, match=name):
            kind(**arguments)

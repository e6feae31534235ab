"""Checkpoints are whole or not there, the last ones are kept, and other libraries and scripts can open them."""

import os
import shutil
import signal
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
from hypothesis import assume, given
from hypothesis import strategies as st
from opaque_environment import Opaque
from resume_scenarios import CONTEXT, ROLLOUT, Crash, fingerprint, train
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.saving import checkpoint_file

write: Any = checkpoint_file.write  # Any: most tests write less than the state of a training


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def a_model() -> Any:
    return PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)


def test_the_last_ones_are_kept(tmp_path: Path, a_model: Any) -> None:
    for a_model.num_timesteps in (5, 50, 500, 1000):
        write(tmp_path, a_model, {"number": a_model.num_timesteps}, keep=2)
    assert names(tmp_path) == ["rl_model_1000_steps.zip", "rl_model_500_steps.zip"]
    checkpoint: Any = checkpoint_file.newest(tmp_path)
    assert checkpoint.state == {"number": 1000}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory, a_model: Any) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for a_model.num_timesteps in (1, 2):
        write(folder, a_model, {"number": a_model.num_timesteps}, keep=2)
    return folder


def contents(path: Path) -> list[bytes] | None:
    """What the entries of a zip hold; None if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [archive.read(entry) for entry in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error):
        return None


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), truncate=st.booleans())
def test_a_torn_one_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, two_checkpoints: Path, where: float, bit: int, truncate: bool
) -> None:
    """Cut anywhere, or one bit changed in the contents of any entry: the older one is taken."""
    folder = tmp_path_factory.mktemp("ckpt")
    shutil.copytree(two_checkpoints, folder, dirs_exist_ok=True)
    path = folder / "rl_model_2_steps.zip"
    content = bytearray(path.read_bytes())
    if truncate:
        content = content[: int(where * len(content))]
    else:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        entry = entries[int(where * len(entries))]
        header = entry.header_offset
        name_length, extra_length = struct.unpack("<HH", content[header + 26 : header + 30])
        start = header + 30 + name_length + extra_length
        content[start + int(where * entry.compress_size)] ^= 1 << bit
    path.write_bytes(content)
    assume(contents(path) != contents(two_checkpoints / path.name))  # the last bits of a compressed entry hold nothing
    with pytest.warns(UserWarning, match="not a complete checkpoint"):
        checkpoint: Any = checkpoint_file.newest(folder)
    assert checkpoint.state == {"number": 1}
    assert names(folder) == ["rl_model_1_steps.zip", "rl_model_2_steps.zip.torn"]


def test_a_torn_one_does_not_count_as_kept(tmp_path: Path, a_model: Any) -> None:
    for a_model.num_timesteps in (1, 9):
        path = write(tmp_path, a_model, {}, keep=2)
    path.write_bytes(b"PK")
    with pytest.warns(UserWarning):
        checkpoint_file.newest(tmp_path)
    a_model.num_timesteps = 5
    write(tmp_path, a_model, {}, keep=1)
    assert names(tmp_path) == ["rl_model_5_steps.zip", "rl_model_9_steps.zip.torn"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk(tmp_path: Path) -> None:
    """The next checkpoint goes to a device without room: a clear error, and the earlier ones are there to go on from."""
    whole = train(tmp_path / "whole")
    with pytest.raises(Crash):
        train(tmp_path / "run", crash_at=5 * ROLLOUT)
    folder = tmp_path / "run" / "ckpt"
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    (folder / f"rl_model_{6 * ROLLOUT}_steps.zip.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\).*run the same script again"):
        train(tmp_path / "run")
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert fingerprint(train(tmp_path / "run")) == fingerprint(whole)


def _die_while_writing(folder: Path, function: Any, calls: Any) -> None:
    original = getattr(os, function)

    def die(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, function, die)
    train(folder)


@pytest.mark.skipif(CONTEXT is None, reason="needs processes that start fast")
@pytest.mark.parametrize(("function", "calls"), [("fsync", 3), ("replace", 2)])
def test_killed_while_writing(tmp_path: Path, function: str, calls: int) -> None:
    assert CONTEXT is not None
    process = CONTEXT.Process(target=_die_while_writing, args=(tmp_path / "run", function, calls))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = names(tmp_path / "run" / "ckpt")
    assert [name for name in left if name.endswith(".zip")] == [f"rl_model_{2 * ROLLOUT}_steps.zip"]
    assert any(name.endswith(".partial") for name in left)
    assert fingerprint(train(tmp_path / "run")) == fingerprint(train(tmp_path / "whole"))
    assert not any(name.endswith(".partial") for name in names(tmp_path / "run" / "ckpt"))


@pytest.mark.parametrize("algorithm", ["PPO", "TRPO"])
def test_opens_in_stock_sb3(tmp_path: Path, algorithm: str) -> None:
    stock = stable_baselines3.PPO if algorithm == "PPO" else pytest.importorskip("sb3_contrib").TRPO
    model = train(tmp_path, algorithm=algorithm)
    path = tmp_path / "ckpt" / f"rl_model_{8 * ROLLOUT}_steps.zip"
    loaded = stock.load(path)
    observations = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    assert loaded.num_timesteps == model.num_timesteps
    assert loaded.policy.optimizer.state_dict()["state"].keys() == model.policy.optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"algorithm": "TRPO"}, "its algorithm is PPO, here it is TRPO"),
        ({"env": "MountainCarContinuous-v0"}, "its observation space is"),
        ({"policy_kwargs": {"net_arch": [8]}}, "its networks or its optimizer differ"),
    ],
)
def test_another_script_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(Crash):
        train(tmp_path, crash_at=3 * ROLLOUT)
    with pytest.raises(ValueError, match=named):
        train(tmp_path, **change)


def learn(folder: Path, n_envs: int = 2, total: int = 64, **options: Any) -> Any:
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs), n_steps=16, batch_size=16, seed=0)
    model.learn(total, callback=ResumableCheckpointCallback(folder, save_freq=32), **options)
    return model


def test_another_number_of_environments_is_refused(tmp_path: Path) -> None:
    learn(tmp_path)
    with pytest.raises(ValueError, match="its number of environments is 2, here it is 3"):
        learn(tmp_path, n_envs=3)


def test_one_folder_for_each_call_of_learn(tmp_path: Path) -> None:
    model = learn(tmp_path)
    with pytest.raises(ValueError, match=r"its first timestep of this learn\(\) is 0, here it is 64"):
        model.learn(64, reset_num_timesteps=False, callback=ResumableCheckpointCallback(tmp_path, save_freq=32))


def test_two_phases_in_two_folders(tmp_path: Path) -> None:
    """A script that calls learn twice goes on in the second call, with that call's horizon."""

    def script(folder: Path, crash_at: float = float("inf")) -> dict[str, str] | None:
        from resume_scenarios import CrashAt

        model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=16, batch_size=16, learning_rate="lin_0.01", seed=0)
        model.learn(64, callback=ResumableCheckpointCallback(folder / "1", save_freq=32))
        callbacks = [ResumableCheckpointCallback(folder / "2", save_freq=32), CrashAt(crash_at)]
        return fingerprint(model.learn(128, callback=callbacks, reset_num_timesteps=False))

    whole = script(tmp_path / "whole")
    with pytest.raises(Crash):
        script(tmp_path / "run", crash_at=150)
    assert script(tmp_path / "run") == whole


def test_a_longer_training_goes_on_and_says_what_its_schedules_do(tmp_path: Path) -> None:
    learn(tmp_path)
    with pytest.warns(UserWarning, match="of a training to timestep 64, which now goes to 128"):
        model = learn(tmp_path, total=128)
    assert model.num_timesteps == 128


@pytest.mark.parametrize("wrong", [{"save_freq": 0}, {"save_freq": 1.5}, {"save_freq": 8, "keep": 0}])
def test_nonsense_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"save_freq|keep"):
        ResumableCheckpointCallback(tmp_path, **wrong)


def test_other_algorithms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"needs PPO or TRPO of sb3_policyopt, got stable_baselines3\.ppo\.ppo\.PPO"):
        stable_baselines3.PPO("MlpPolicy", "CartPole-v1").learn(1, callback=ResumableCheckpointCallback(tmp_path, 1))


def test_two_resumes_agree_where_the_environment_cannot_be_kept(tmp_path: Path) -> None:
    """It is said once, and new episodes begin, the same ones each time, although the environment was never seeded."""
    from resume_scenarios import CrashAt

    def script(folder: Path, crash_at: float = float("inf")) -> dict[str, str] | None:
        model = PPO("MlpPolicy", DummyVecEnv([Opaque, Opaque]), n_steps=16, batch_size=16)
        np.random.seed()
        callbacks = [ResumableCheckpointCallback(folder, save_freq=32), CrashAt(crash_at)]
        return fingerprint(model.learn(320, callback=callbacks))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(Crash):
            script(tmp_path / "a", crash_at=200)
    assert [str(warning.message) for warning in said if "cannot be kept" in str(warning.message)] == [
        "The training environment cannot be kept in a checkpoint: Opaque.numbers (generator) cannot be pickled: cannot "
        "pickle 'generator' object. A resumed run will start with new episodes; give the environment get_state() and "
        "set_state(state) to continue exactly."
    ]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.warns(UserWarning, match="cannot be kept"):
        first, second = script(tmp_path / "a"), script(tmp_path / "b")
    assert first == second


def test_from_a_zoo_file(tmp_path: Path) -> None:
    utils = pytest.importorskip("rl_zoo3.utils")
    entry = {"sb3_policyopt.callbacks.ResumableCheckpointCallback": {"path": str(tmp_path / "ckpt"), "save_freq": 32}}
    (callback,) = utils.get_callback_list({"callback": [entry]})
    PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32).learn(64, callback=callback)
    assert names(tmp_path / "ckpt") == ["rl_model_32_steps.zip", "rl_model_64_steps.zip"]


def test_ending_what_never_started_hides_no_error(tmp_path: Path) -> None:
    """rl-zoo3 calls ``on_training_end`` of its first callback after any error."""
    ResumableCheckpointCallback(tmp_path, save_freq=32).on_training_end()

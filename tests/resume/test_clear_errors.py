"""What cannot be read or written is said with its cause, and torn rows of a log are passed over."""

import json
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.recording import RunRecorder
from sb3_policyopt.saving import checkpoint_file
from sb3_policyopt.saving.provenance import ContinuedCSV
from sb3_policyopt.saving.safe_zip import DESCRIPTION


def learn(callback: BaseCallback) -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1).learn(16, callback=callback)


def test_a_checkpoint_of_a_class_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("module_of_the_script")
    module.Gone = type("Gone", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state: Any = {"environments": module.Gone()}  # as a VecEnv's get_state may return
    path = checkpoint_file.write(tmp_path, PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16), state, keep=1)
    del module.Gone
    with pytest.raises(ValueError, match=r"rl_model_0_steps\.zip is a complete checkpoint .*AttributeError.*Gone.*Restore it"):
        checkpoint_file.newest(tmp_path)
    assert path.is_file()


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_where_the_folder_should_be(tmp_path: Path, inside: bool) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="cannot be a folder, as a file is there: choose another one"):
        learn(ResumableCheckpointCallback(file / "inside" if inside else file, 16))


def test_torn_rows_in_the_middle_of_a_log_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    rows = ["time/total_timesteps,a", "16,1", "3", "32,2,3", "x,2", "time/total_timesteps,a", "48,\0004", "80,5", "6"]
    path.write_text("\n".join(rows))
    ContinuedCSV(str(path), 64).close()
    assert path.read_text().splitlines() == ["time/total_timesteps,a", "16,1", "48,4"]


def test_hyperparameters_whose_keys_are_no_texts_are_recorded(tmp_path: Path) -> None:
    learn(RunRecorder(tmp_path, hyperparameters={"weights": {(1, 2): 3}, "list": [{None: 1, (3,): 2}]}))
    recorded = json.loads((tmp_path / "provenance.json").read_text())["hyperparameters"]
    assert recorded["weights"] == {"(1, 2)": 3} and recorded["list"] == [{"null": 1, "(3,)": 2}]


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        text = '{"format": 1, "algorithm": "PPO", "attributes": {"x": ' + "[" * 100_000 + "]" * 100_000 + "}}"
        archive.writestr(DESCRIPTION, text)
    with pytest.raises(ValueError, match=r"policyopt\.json in .*deep\.zip is damaged"):
        PPO.load(tmp_path / "deep.zip", safe=True)
    with pytest.raises(AssertionError, match="No data found"):  # SB3's own word on a zip without an agent
        PPO.load(tmp_path / "deep.zip", device="cpu")

"""A checkpoint says on which device it was made, and a run that resumes elsewhere hears of it."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch as th
from resume_scenarios import ROLLOUT, Crash, fingerprint, train

from sb3_policyopt.saving import checkpoint_file, generators
from sb3_policyopt.setup.placement import Placed

STATE = checkpoint_file.STATE_ENTRY
DIFFERS = "was made on cuda:0, and training goes on on cpu"


def interrupted(folder: Path, **options: Any) -> Any:
    with pytest.raises(Crash):
        train(folder, crash_at=5.6 * ROLLOUT, **options)
    return checkpoint_file.checkpoints(folder / "ckpt")[-1]


def made_on(path: Path, device: str | None) -> None:
    """Change what a checkpoint says."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    state = pickle.loads(entries[STATE])
    assert state["device"] == "cpu"
    if device is None:
        del state["device"]
    else:
        state["device"] = device
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, pickle.dumps(state) if name == STATE else entry)
    path.write_bytes(content.getvalue())


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_where_the_device_is_missing_a_warning_says_what_will_differ(tmp_path: Path, device: str | None) -> None:
    made_on(interrupted(tmp_path, device=device), "cuda:0")
    with pytest.raises(UserWarning, match=DIFFERS):  # these trainings make errors of warnings
        train(tmp_path, device=device)


def test_the_users_word_counts_more_than_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_on(interrupted(tmp_path, device="cpu"), "cuda:0")
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    with pytest.raises(UserWarning, match=DIFFERS):
        train(tmp_path, device="cpu")


def test_auto_goes_where_the_checkpoint_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_on(interrupted(tmp_path), "cuda:0")
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    moves = []
    monkeypatch.setattr(Placed, "move_to", lambda self, device, reason: moves.append((device, reason)))
    train(tmp_path)
    assert [device for device, _ in moves] == [th.device("cuda")]
    assert moves[0][1].startswith("rl_model_") and moves[0][1].endswith("was made there")


def test_the_bits_are_those_of_a_run_that_was_told_the_device(tmp_path: Path) -> None:
    """What auto means does not change them; an older checkpoint says nothing of devices, and goes on."""
    told = train(tmp_path / "told", device="cpu")
    made_on(interrupted(tmp_path / "auto"), None)
    assert fingerprint(train(tmp_path / "auto")) == fingerprint(told)


class TestGeneratorsOfAGpu:
    @pytest.fixture(autouse=True)
    def two_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states = [th.tensor([1, 2], dtype=th.uint8), th.tensor([3, 4], dtype=th.uint8)]
        monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(th.cuda, "is_available", lambda: True)
        monkeypatch.setattr(th.cuda, "get_rng_state_all", lambda: list(self.states))
        monkeypatch.setattr(th.cuda, "set_rng_state", lambda state, gpu: self.states.__setitem__(gpu, state))

    def test_they_are_kept_if_somebody_uses_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(th.cuda, "is_initialized", lambda: True)
        kept = generators.capture()
        self.states[:] = [th.zeros(2, dtype=th.uint8)] * 2
        generators.restore(kept)
        assert [state.tolist() for state in self.states] == [[1, 2], [3, 4]]

    def test_as_many_as_there_are_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(th.cuda, "is_initialized", lambda: True)
        kept = generators.capture()
        monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
        self.states[:] = [th.zeros(2, dtype=th.uint8)] * 2
        generators.restore(kept)
        assert [state.tolist() for state in self.states] == [[1, 2], [0, 0]]

    def test_a_gpu_that_nobody_uses_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(th.cuda, "is_initialized", lambda: False)
        monkeypatch.setattr(th.cuda, "get_rng_state_all", lambda: pytest.fail("touched"))
        assert "cuda" not in generators.capture()

"""A file is replaced as a whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from sb3_policyopt.saving.files import write_atomically


@pytest.mark.parametrize("old", [b"old", None], ids=["replaced", "new"])
@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, fails: str
) -> None:
    path = tmp_path / "file.json"
    if old is not None:
        write_atomically(path, old)

    def full(*arguments: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(OSError, match="no space left"):
            write_atomically(path, b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({} if old is None else {path.name: old})
    write_atomically(path, b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: b"new"}


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.with_name("file.json.partial").write_bytes(b"half of a longer text")
    write_atomically(path, b"new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: b"new"}

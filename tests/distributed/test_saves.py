"""What a script saves between two trainings is there on every rank when ``save`` returns, and nobody waits in vain."""

import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from launch import HERE, free_port, run, torchrun
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sb3_policyopt.parallel import launcher
from sb3_policyopt.parallel.saves import Saves

SAVED = {f"model {number} {again}.zip" for number in range(2) for again in range(2)} | {"of rank 0 alone.zip"}


def test_every_rank_finds_what_it_has_saved(tmp_path: Path) -> None:
    for rank, ended in enumerate(run(2, "saves.py", tmp_path)):
        assert ended.code == 0 and f"rank {rank} is done" in ended.output, ended.output
        assert "goes on" not in ended.output  # nobody waited until the time was over
    assert {path.name for path in tmp_path.glob("*.zip") if not path.name.startswith("rl_model")} == SAVED


@pytest.mark.slow
def test_the_same_where_torchrun_keeps_the_store(tmp_path: Path) -> None:
    ended = torchrun(2, HERE / "saves.py", tmp_path)
    assert ended.code == 0 and ended.output.count("is done") == 2, ended.output
    assert "goes on" not in ended.output


@pytest.fixture
def ranks() -> Any:
    """What two ranks know, in one process."""

    def make(seconds: float) -> list[Saves]:
        store = TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
        return [Saves(store, rank, timedelta(seconds=seconds)) for rank in range(2)]

    return make


def save(rank: Saves) -> float:
    """How long a rank saves."""
    start = time.monotonic()
    with rank.saving():
        pass
    return time.monotonic() - start


def test_the_others_wait_for_as_many_saves(ranks: Any) -> None:
    rank_0, other = ranks(600)
    for rank in (rank_0, other):
        with rank.training():
            save(rank)  # of a callback
    for _ in range(2):
        later = threading.Timer(0.3, save, [rank_0])
        later.start()
        assert save(other) > 0.2
        later.join()


def test_a_save_that_failed_counts(ranks: Any) -> None:
    rank_0, other = ranks(600)
    with pytest.raises(OSError, match="the disk is full"):
        with rank_0.saving():
            raise OSError("the disk is full")
    assert save(other) < 10


@pytest.mark.parametrize("what", ["trains", "ends"])
def test_nobody_waits_for_a_rank_0_that_has_gone_on(ranks: Any, what: str) -> None:
    rank_0, other = ranks(600)
    if what == "trains":
        with rank_0.training():
            assert save(other) < 10
    else:
        rank_0.end()
        save(rank_0)
        assert save(other) < 10
        other.end()
        save(other)


def test_a_rank_that_waits_in_vain_goes_on_with_a_warning(ranks: Any) -> None:
    _, other = ranks(0.2)
    with pytest.warns(
        UserWarning, match=rf"rank 0 did not save the model within 0.2 s \({launcher.TIMEOUT}\): rank 1 goes on"
    ):
        save(other)

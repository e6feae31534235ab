"""Whatever happens to one rank, the others end, and say which rank it was and why."""

import pytest
from launch import HERE, Ended, start, torchrun

PATIENCE = 600
"""Seconds after which a test gives up; on an idle machine a training here takes less than ten."""

slow = pytest.mark.slow


def others_end(what: str, unlucky: int, timeout: int) -> list[Ended]:
    """Wait for all ranks but one, which may have been killed, or may hang."""
    processes = start(3, "faulty.py", what, unlucky, SB3_POLICYOPT_TIMEOUT=timeout)
    try:
        others = [process for rank, process in enumerate(processes) if rank != unlucky]
        return [Ended(process.wait(PATIENCE), process.communicate()[0]) for process in others]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "what, unlucky, timeout, said",
    [
        pytest.param("killed", 1, PATIENCE, "rank 1 exited without an error report: process", id="killed"),
        pytest.param(
            "raises", 1, PATIENCE, "rank 1 failed with ZeroDivisionError: the simulator fell over", marks=slow, id="raises"
        ),
        pytest.param(
            "disagrees", 1, PATIENCE, "n_steps differs between the ranks: 32 on rank 0, 40 on rank 1", marks=slow, id="parts"
        ),
        pytest.param("killed", 0, PATIENCE, "rank 0", id="rank_0_killed", marks=slow),
        pytest.param("raises", 0, PATIENCE, "rank 0 failed with ZeroDivisionError", id="rank_0_raises", marks=slow),
        # Starting takes part of these times.
        pytest.param("hangs", 1, 30, "rank 1 is alive but did not come to the exchange within 30 s", id="hangs", marks=slow),
        pytest.param("absent", 1, 30, "rank 1 did not start training within 30 s", id="absent", marks=slow),
    ],
)
def test_every_other_rank_names_the_one_that_was_lost(what: str, unlucky: int, timeout: int, said: str) -> None:
    for ended in others_end(what, unlucky, timeout):
        assert ended.code == 1, ended.output
        error = ended.output.strip().splitlines()[-1]
        assert "Error: " in error, ended.output
        assert said in error


@slow
def test_torchrun_ends_all_and_the_rank_is_named() -> None:
    ended = torchrun(2, HERE / "faulty.py", "raises", 1, timeout=PATIENCE)
    assert ended.code == 1
    assert "ZeroDivisionError: the simulator fell over" in ended.output
    # torchrun stops the other rank, which may have said so by then or not.
    assert "rank 1 failed with" in ended.output or "(local_rank: 1)" in ended.output.split("Root Cause")[1]

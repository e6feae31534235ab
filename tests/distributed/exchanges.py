"""
The collective operations of the ranks in one of two ways, ``exchanges.py WAY``: on "one_host" in shared memory, on
"several_hosts" through the network, which here is the loopback. The last line is the result.
"""

import json
import sys
from typing import Any

import torch as th

from sb3_policyopt.parallel import collectives, group, launcher
from sb3_policyopt.parallel import mailboxes as shared_memory

DTYPES = (th.float32, th.float64, th.int64)
SIZES = (0, 1, 1000, shared_memory.CAPACITY // 4, 3 + shared_memory.CAPACITY // 4, 1, 2)


def take(way: Any) -> None:
    """Let the ranks believe that each is on a host of its own, or not."""
    if way == "several_hosts":
        shared_memory.host = lambda: f"host {launcher.rank()}"


def said(rank: int, size: int, dtype: Any) -> Any:
    """Numbers of a rank: sums and maxima of them are exact."""
    return (th.arange(size) * 7 % 101 * (1 if rank % 2 else -1) + 1000 * rank).to(dtype)


def everything(rank: int, world_size: int) -> Any:
    """Whether each exchange gives what it should, by name."""
    results = {}
    for size in SIZES:
        for dtype in DTYPES:
            all_said = [said(other, size, dtype) for other in range(world_size)]
            for name, exchange, expected in (
                ("sum", collectives.sum_, sum(all_said)),
                ("max", collectives.max_, th.stack(all_said).amax(0)),
                ("broadcast", collectives.broadcast_, all_said[0]),
            ):
                mine = said(rank, size, dtype)
                result = exchange(mine)
                results[f"{name} of {size} {dtype}"] = result is mine and th.equal(result, expected) and result.dtype == dtype
    for length in (0, 10, shared_memory.CAPACITY // 2, 2 * shared_memory.CAPACITY):
        # As long on the last rank alone: whether a message fits is for all ranks to know.
        lengths = [length if other == world_size - 1 else 3 for other in range(world_size)]
        results[f"gather of {length}"] = collectives.gather("x" * lengths[rank]) == ["x" * other for other in lengths]
    results["from rank 0"] = collectives.from_rank_0({"rank": rank}) == {"rank": 0}
    return results


if __name__ == "__main__":
    take(sys.argv[1])
    with group.together():
        in_memory = group.connected().mailboxes is not None
        results = everything(launcher.rank(), launcher.world_size())
        wrong = [name for name, right in results.items() if not right]
        print(json.dumps({"in memory": in_memory, "wrong": wrong}), flush=True)
        collectives.barrier()

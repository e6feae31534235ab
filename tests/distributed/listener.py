"""A rank that says by which policy Linux schedules its threads; their names and policies are on the last line."""

import json
import os
from pathlib import Path

from sb3_policyopt.parallel.collectives import barrier
from sb3_policyopt.parallel.group import together

with together():
    barrier()
    threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()]
    names = {thread: Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in threads}
    print(json.dumps({names[thread]: os.sched_getscheduler(thread) for thread in threads}), flush=True)
    barrier()

"""What every test runs under: one thread, no display, and hypothesis without deadlines, which a busy machine would break."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MUJOCO_GL", "egl")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch as th  # noqa: E402
from hypothesis import settings  # noqa: E402

th.set_num_threads(1)
settings.register_profile("sb3_policyopt", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("sb3_policyopt")

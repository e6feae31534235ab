"""
What every test runs under: one thread, no display, no GPU, and hypothesis without deadlines, which a busy machine would break.

A GPU is hidden from this process and from those that the tests start, so that a machine with one runs the same tests as any
other. Tests with the marker ``gpu`` see it, and are skipped where there is none.
"""

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any
from zlib import crc32

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script started pytest in the background: processes that tests start and interrupt would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MUJOCO_GL", "egl")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest  # noqa: E402
import torch as th  # noqa: E402
from hypothesis import settings  # noqa: E402

th.set_num_threads(1)
settings.register_profile("sb3_policyopt", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("sb3_policyopt")

if "forkserver" in multiprocessing.get_all_start_methods():
    # The process that forks workers imports once what each of them would import.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["sb3_policyopt.callbacks", "stable_baselines3.common.env_util", "gymnasium.envs.mujoco", "torch._dynamo"]
    )

VISIBLE = "CUDA_VISIBLE_DEVICES"
REAL = {name: getattr(th.cuda, name) for name in ("is_available", "device_count", "manual_seed_all")}
# For each seed torch notes, with the stack, what a GPU has to do that it may find later: that takes most of a millisecond.
HIDDEN = {"is_available": lambda: False, "device_count": lambda: 0, "manual_seed_all": lambda seed: None}
HAS_GPU = th.cuda.is_available()

for name, function in HIDDEN.items():  # now, for what is made while the tests are collected
    setattr(th.cuda, name, function)
for name in ("xpu", "mtia"):  # the same for devices that no test has
    module: Any = getattr(th, name, None)
    if hasattr(module, "manual_seed_all"):
        module.manual_seed_all = HIDDEN["manual_seed_all"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but one in n cases of a test with ``thinned(n)``, whatever their order: their names decide."""
    for item in items:
        thinned = item.get_closest_marker("thinned")
        if thinned is not None and item.get_closest_marker("fast") is None and crc32(item.name.encode()) % thinned.args[0]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is there now stays to the end: no later garbage collection looks at it again."""
    gc.freeze()


ENGINES = ["autograd", "closed_form"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Every engine that can do an MlpPolicy on the CPU."""
    return str(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks: more threads only wait for each other."""
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def gpu_hidden_from_children() -> Iterator[str | None]:
    """What the variable was; not set while this file is imported, as pytest's workers would inherit it."""
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    yield before
    if before is None:
        del os.environ[VISIBLE]
    else:
        os.environ[VISIBLE] = before


@pytest.fixture(autouse=True)
def gpu_for_tests_of_it(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, gpu_hidden_from_children: str | None
) -> None:
    """Show the GPU to a test with the marker ``gpu``."""
    if request.node.get_closest_marker("gpu") is None:
        return
    if not HAS_GPU:
        pytest.skip("no GPU: torch.cuda.is_available() is False")
    for name, function in REAL.items():
        monkeypatch.setattr(th.cuda, name, function)
    if gpu_hidden_from_children is None:
        monkeypatch.delenv(VISIBLE)
    else:
        monkeypatch.setenv(VISIBLE, gpu_hidden_from_children)

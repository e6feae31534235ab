"""
What a launcher (``torchrun``, Slurm, Kubernetes) sets in environment variables: how many processes train together, the number
of this one, its GPU, the address of their key-value store, and how long they wait for each other.

A launcher starts the same script several times, with different ``RANK`` and the same ``WORLD_SIZE``, ``MASTER_ADDR`` and
``MASTER_PORT``. If one of the four is missing, there is one process. Nothing here communicates.
"""

import os
from datetime import timedelta

import torch as th

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables that are all set if a launcher has started several processes."""

TIMEOUT = "SB3_POLICYOPT_TIMEOUT"
"""Environment variable: seconds that a rank waits for the others (for a rollout, an evaluation on rank 0), 1800 if unset."""


def world_size() -> int:
    """
    Number of processes that train together.

    :return: 1 without a launcher
    """
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHER) else 1


def rank() -> int:
    """
    The number of this process.

    :return: 0 … world_size − 1; 0 without a launcher
    """
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def timeout() -> timedelta:
    """
    How long a rank waits for the others.

    :return: from the environment variable ``SB3_POLICYOPT_TIMEOUT``, in seconds
    :raises ValueError: if that is not a positive number
    """
    text = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {text!r}")
    return timedelta(seconds=seconds)


def choose_device(device: th.device) -> None:
    """
    Make "cuda" mean this rank's own GPU of its host. Nothing is done without a launcher, and for a model on the CPU, so that
    a rank that uses no GPU takes no memory there.

    :param device: of a model
    """
    if world_size() > 1 and device.type == "cuda" and device.index is None:
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank())) % th.cuda.device_count())


def has_gpu_for_each_rank() -> bool:
    """
    Whether the ranks of this host can have a GPU each.

    :return: False without a GPU
    """
    return th.cuda.is_available() and th.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def master() -> tuple[str, int]:
    """
    The address of the key-value store through which the ranks connect.

    :return: host and port
    """
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def torchrun_keeps_store() -> bool:
    """
    Whether torchrun serves the key-value store, which then exists longer than rank 0.

    :return: False if rank 0 serves it
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def restarts() -> str:
    """
    How often torchrun has restarted the ranks.

    :return: a number; "0" without torchrun
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

"""When a training is interrupted or a worker process of its environments dies: say so, and leave nothing half done."""

import multiprocessing.connection
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_policyopt.errors import WorkerDiedError as WorkerDiedError

EXIT_TIMEOUT = 5.0
"""Seconds that a process which has closed its files may take to end."""


@contextmanager
def guarded(model: BaseAlgorithm) -> Iterator[None]:
    """
    Around a training: whatever ends it early, another call of ``learn`` starts with fresh episodes.

    :param model: the algorithm
    :raises WorkerDiedError: in place of the bare ``EOFError`` or ``BrokenPipeError`` that a dead worker causes; the other
        workers are then stopped, and the environments closed
    """
    try:
        yield
    except BaseException as error:
        model._last_obs = None  # the environments may be a step ahead of it
        venv = _subprocesses(model.get_env())
        if venv is None or venv.closed:
            raise
        lost_connection = isinstance(error, (EOFError, ConnectionError))
        died = _ended_workers(venv, timeout=1.0 if lost_connection else 0.0) or _discard_pending_results(venv)
        if died:
            _stop(venv)
        if died and lost_connection:
            raise WorkerDiedError(
                f"{', '.join(died)}. If an exception in the environment was the cause, its traceback is printed above. "
                "The environments are closed; the model holds the parameters of its last complete update"
            ) from error
        raise


def _subprocesses(venv: VecEnv | None) -> SubprocVecEnv | None:
    """
    What is behind the wrappers.

    :param venv: vectorised environments
    :return: None if they have no processes of their own, or see to them themselves as ``SharedMemoryVecEnv`` does
    """
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
    return venv if isinstance(venv, SubprocVecEnv) and hasattr(venv, "remotes") else None


def _ended_workers(venv: SubprocVecEnv, timeout: float) -> list[str]:
    """
    Which workers are no more.

    :param venv: the environments
    :param timeout: seconds to wait for one that has just closed its connection
    :return: a clause about each
    """
    ended = multiprocessing.connection.wait([process.sentinel for process in venv.processes], timeout)
    clauses = []
    for index, process in enumerate(venv.processes):
        if process.sentinel in ended:  # closed with its last connection, which is before its exit code is known
            process.join(EXIT_TIMEOUT)
        if (code := process.exitcode) is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            clauses.append(f"The worker process of environment {index} {how}")
    return clauses


def _discard_pending_results(venv: SubprocVecEnv) -> list[str]:
    """
    Read what the workers still had to say, so that it is not taken for the answer to the next question.

    :param venv: the environments
    :return: a clause about each worker that has ended instead, as Ctrl-C reaches the workers, too
    """
    try:
        for remote in venv.remotes:
            remote.send(("get_spaces", None))
            answer: Any = None
            while not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], spaces.Space)):
                answer = remote.recv()
    except (EOFError, ConnectionError):
        return _ended_workers(venv, timeout=1.0)
    venv.waiting = False
    return []


def _stop(venv: SubprocVecEnv) -> None:
    """
    End all workers, and mark the environments as closed.

    :param venv: the environments
    """
    for process in venv.processes:
        process.terminate()
    for process in venv.processes:
        process.join()
    for remote in venv.remotes:
        remote.close()
    venv.waiting, venv.closed = False, True

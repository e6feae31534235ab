"""
A checkpoint on disk: the zip that SB3 writes, with one more entry that SB3's loader ignores.

A zip holds a checksum of every entry, and its table of contents comes last, so a file whose entries all pass their check
is complete. It gets its name only once it is on the disk: a crash leaves either the whole file or none.
"""

import io
import os
import pickle
import re
import signal
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypedDict, cast

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, recursive_setattr

from sb3_policyopt.saving.attributes import Changes
from sb3_policyopt.saving.files import write_atomically
from sb3_policyopt.saving.generators import GeneratorStates
from sb3_policyopt.saving.logs import LogState
from sb3_policyopt.saving.policy_state import PolicyChanges
from sb3_policyopt.saving.step_context import StepContext

STATE_ENTRY = "training_state.pkl"
FORMAT = 2
"""Of that entry; it grows when an older one can no longer be continued."""
_NAME = re.compile(r"rl_model_(\d+)_steps(\.resumable)?\.zip")


class RankState(TypedDict):
    """
    What SB3's zip does not hold of the training on one rank.

    :param format: of the entry
    :param run: what must be the same in the run that resumes
    :param configuration: what the script had configured; missing in checkpoints of older versions
    :param device: of the model
    :param elapsed: nanoseconds of training
    :param trained: changed attributes of the model and its wrappers, pickled
    :param policy: changes of the policy that neither its parameters nor its attributes hold
    :param environments: None if their state cannot be kept
    :param callbacks: changed attributes of the other callbacks, pickled
    :param their_environments: of the other callbacks, by attribute
    :param logs: what the logger has written
    :param exploration: gSDE's noise
    :param generators: None on a rank that has to draw other random numbers
    :param context: what a policy with memory or masks needs for the next step; missing in checkpoints of older versions
    """

    format: int
    run: dict[str, object]
    configuration: dict[str, str]
    device: str
    elapsed: float
    trained: Changes
    policy: PolicyChanges
    environments: object
    callbacks: Changes
    their_environments: dict[str, object]
    logs: LogState
    exploration: dict[str, th.Tensor]
    generators: GeneratorStates | None
    context: StepContext


_OtherRanks = TypedDict("_OtherRanks", {"other ranks": list[RankState]})


class TrainingState(RankState, _OtherRanks):
    """The state on rank 0, and under the key "other ranks" those of ranks 1, 2, …"""


class Checkpoint(NamedTuple):
    """
    A complete checkpoint that was read back.

    :param path: where it is
    :param model: the file, which SB3's loader understands
    :param state: what SB3's zip does not hold
    """

    path: Path
    model: io.BytesIO
    state: TrainingState

    def restore_parameters(self, model: BaseAlgorithm) -> None:
        """
        Give a model the parameters, the optimizers' states and the variables that SB3 saves.

        :param model: of the same kind
        :raises ValueError: if its networks or optimizers differ
        """
        model.set_parameters(cast(str, self.model), exact_match=True, device=model.device)  # SB3 takes files, too
        self.model.seek(0)
        for name, value in (load_from_zip_file(self.model, device=model.device, load_data=False)[2] or {}).items():
            recursive_setattr(model, f"{name}.data", value.data)
        self.model.seek(0)

    @property
    def timesteps(self) -> int:
        """Trained before it was written."""
        found = _NAME.fullmatch(self.path.name)
        assert found is not None
        return int(found[1])


def checkpoints(folder: Path) -> list[Path]:
    """
    The checkpoints in a folder, under the names that SB3's ``CheckpointCallback`` and the zoo's ``enjoy`` use.

    :param folder: may be missing
    :return: oldest first, complete or not; without the models that SB3's ``CheckpointCallback`` has saved there
    """
    found = [(int(match[1]), path) for path in folder.glob("rl_model_*.zip") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if not _is_model_only(path)]


def _is_model_only(path: Path) -> bool:
    """Whether a file is a whole zip without the state of a training: not written here, and not to be touched."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
            return "data" in entries and STATE_ENTRY not in entries  # a torn file may end with the zip that an entry is
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # damaged: it may have been one of ours
        return False


def write(folder: Path, model: BaseAlgorithm, state: TrainingState, keep: int) -> Path:
    """
    Write a checkpoint, and only then delete the oldest.

    :param folder: an existing folder
    :param model: what SB3 saves
    :param state: what else there is to keep
    :param keep: number of checkpoints to leave
    :return: the new file
    :raises OSError: if it cannot be written; the earlier checkpoints are then all still there
    """
    buffer = io.BytesIO()  # in memory first: what then can fail is the disk alone
    with _uninterrupted():
        model.save(buffer)
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(STATE_ENTRY, pickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL))
    path = folder / f"rl_model_{model.num_timesteps}_steps.zip"
    if _is_model_only(path):
        path = path.with_suffix(".resumable.zip")
    try:
        write_atomically(path, buffer.getbuffer())
    except OSError as error:
        raise OSError(
            error.errno,
            f"The checkpoint of timestep {model.num_timesteps} could not be written ({error.strerror}); the earlier "
            "checkpoints are untouched. Make room or choose another folder, and run the same script again",
            str(path),
        ) from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect at the end of this; torch's writer would report it as an error of the file."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


def newest(folder: Path) -> Checkpoint | None:
    """
    Read the newest complete checkpoint. Incomplete ones are ignored and renamed.

    :param folder: may be missing
    :return: None if there is none
    :raises OSError: if a file cannot be read now, which says nothing about what it holds
    :raises ValueError: if the newest is whole, but refers to something that is not there
    """
    for path in reversed(checkpoints(folder)):
        content = path.read_bytes()
        try:
            return _read(path, content)
        except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
            aside = path.with_name(path.name + ".torn")
            os.replace(path, aside)
            warnings.warn(f"{path} is not a complete checkpoint ({error}): ignored, and renamed to {aside.name}")
    return None


def _read(path: Path, content: bytes) -> Checkpoint:
    """
    Read a checkpoint, every entry of which is checked.

    :param path: the file
    :param content: what it holds
    :return: its content
    :raises zipfile.BadZipFile: if something of it is missing or changed
    :raises ValueError: if it is whole, but refers to something that is not there
    """
    model = io.BytesIO(content)
    with zipfile.ZipFile(model) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        state = _unpickled(path, archive.read(STATE_ENTRY))
    model.seek(0)
    return Checkpoint(path, model, state)


def _unpickled(path: Path, content: bytes) -> TrainingState:
    """
    The state of a training.

    :param path: the file, for the message
    :param content: the entry of the state, whose checksum is right
    :return: the state
    :raises ValueError: if it refers to something that is not there
    """
    try:
        return cast(TrainingState, pickle.loads(content))
    except (pickle.UnpicklingError, EOFError):
        raise
    except Exception as error:  # a class may raise anything
        raise ValueError(
            f"{path} is a complete checkpoint that cannot be read here ({type(error).__name__}: {error}): it refers to a "
            "class or a module that the script or the installed packages no longer have. Restore it under its old name, "
            "install the versions with which the checkpoint was made, or choose another folder for ResumableCheckpointCallback"
        ) from error

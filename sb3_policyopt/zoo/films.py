"""Where ``record_training`` writes its videos, and how it joins them: corrections of rl-zoo3's command."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import get_latest_run_id

from sb3_policyopt.errors import CommandFailedError, UserError
from sb3_policyopt.process import replaced
from sb3_policyopt.zoo import preflight

#: Names of the files that ``record_video`` and ``record_training`` write.
MADE = re.compile(r"(training|(final-model|best-model|checkpoint-\d+)-.+)\.(mp4|gif)|tmp\.txt")


def video_folder(argv: list[str]) -> Path:
    """
    Find the folder that ``record_training`` empties and writes its videos into.

    :param argv: the command line
    :return: its absolute path
    :raises UserError: if it holds anything but earlier videos, which the command would delete too
    """
    options = preflight.agent_options(argv)
    given = preflight.parse(argv, ("-o", "--output-folder")).output_folder
    folder = _run_folder(options.folder, options.algo, options.env, int(options.exp_id)) / "videos" if given is None else given
    path = Path(os.path.abspath(folder))
    others = sorted(file.name for file in path.glob("*") if file.is_dir() or MADE.fullmatch(file.name) is None)
    if others:
        raise UserError(
            f"-o {folder}: record_training deletes all that is in this folder, and it holds more than its videos "
            f"({others[0]}{', …' if others[1:] else ''}); name a folder that is new or empty"
        )
    return path


@contextmanager
def joined_in(folder: Path) -> Iterator[None]:
    """
    Within this context, ``record_training`` writes the file ``training.mp4`` into a folder, or fails.

    rl-zoo3 gives ffmpeg paths without quotes, so that it finds none with a space, and ignores that ffmpeg fails.

    :param folder: the absolute path that it is given by ``-o``
    :raises CommandFailedError: if ffmpeg fails
    """
    prefix, film = f"{folder}{os.sep}", folder / "training.mp4"
    call = subprocess.call

    def system(command: str) -> int:
        listing = folder / "tmp.txt"  # of the videos to join, whose paths ffmpeg reads relative to this file
        if listing.is_file():
            listing.write_text(listing.read_text(encoding="utf-8").replace(prefix, ""), encoding="utf-8")
        code = subprocess.run(command.replace(prefix, ""), shell=True, cwd=folder, check=False).returncode
        if code != 0:
            raise CommandFailedError(f"{film} was not written: ffmpeg failed with exit code {code}")
        return code

    def call_or_exit(arguments: list[str], *rest: Any, **options: Any) -> int:
        code = call(arguments, *rest, **options)
        if code != 0 and "rl_zoo3.record_video" in arguments:
            raise SystemExit(max(code, 1))  # the child has said why
        return code

    with ExitStack() as context:
        context.enter_context(replaced(os, "system", system))
        context.enter_context(replaced(subprocess, "call", call_or_exit))
        yield
    if not film.is_file():
        raise CommandFailedError(f"{film} was not written: ffmpeg made no file")


def _run_folder(folder: str, algo: str, env_id: str, exp_id: int) -> Path:
    """Find the folder of a run as ``record_training`` does: 0 is the latest run, a negative number the algorithm's folder."""
    name = EnvironmentName(env_id)
    number = exp_id or get_latest_run_id(str(Path(folder, algo)), name)
    return Path(folder, algo, f"{name}_{number}") if number > 0 else Path(folder, algo)

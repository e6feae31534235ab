"""What a logger has written, so that a log goes on where the checkpoint was made."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    Logger,
)


def _files(logger: Logger) -> dict[str, Any]:
    """
    The outputs that write a file of their own: SB3 empties it when a script starts again.

    :param logger: SB3's
    :return: outputs by name of their file
    """
    outputs: list[KVWriter] = [
        output
        for output in logger.output_formats
        if isinstance(output, (CSVOutputFormat, JSONOutputFormat))
        or (isinstance(output, HumanOutputFormat) and output.own_file)
    ]
    return {Path(output.file.name).name: output for output in outputs}  # type: ignore[attr-defined]


def capture(logger: Logger) -> dict[str, Any]:
    """
    What was written, and what waits to be.

    :param logger: SB3's
    :return: for :func:`restore`
    """
    files: dict[str, dict[str, Any]] = {}
    for name, output in _files(logger).items():
        output.file.flush()
        files[name] = {"text": Path(output.file.name).read_text(encoding=output.file.encoding)}
        if isinstance(output, CSVOutputFormat):
            files[name]["keys"] = list(output.keys)
    pending = (dict(logger.name_to_value), dict(logger.name_to_count), dict(logger.name_to_excluded))
    return {"files": files, "pending": pending}


def restore(logger: Logger, state: dict[str, Any]) -> None:
    """
    Bring the files of a logger to where they were.

    :param logger: with outputs to files of the same names; others are left alone
    :param state: of :func:`capture`
    """
    outputs = _files(logger)
    for name, written in state["files"].items():
        if name not in outputs:
            continue
        output = outputs[name]
        output.file.seek(0)
        output.file.truncate()
        output.file.write(written["text"])
        output.file.flush()
        if isinstance(output, CSVOutputFormat):
            output.keys = list(written.get("keys", ()))
    values, counts, excluded = state["pending"]
    logger.name_to_value = defaultdict(float, values)
    logger.name_to_count = defaultdict(int, counts)
    logger.name_to_excluded = dict(excluded)

"""What a logger has written, so that a resumed run continues the log from its checkpoint."""

from collections import defaultdict
from pathlib import Path
from typing import TypedDict

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    Logger,
)

FileOutput = CSVOutputFormat | JSONOutputFormat | HumanOutputFormat


class _Text(TypedDict):
    """
    The content of a file.

    :param text: all of it
    """

    text: str


class WrittenFile(_Text, total=False):
    """
    What an output has written.

    :param keys: the columns, of a CSV file
    """

    keys: list[str]


class LogState(TypedDict):
    """
    What a logger has written, and what it holds for the next row.

    :param files: by name
    :param pending: values, counts and excluded outputs, by name of the quantity
    """

    files: dict[str, WrittenFile]
    pending: tuple[dict[str, float], dict[str, int], dict[str, tuple[str, ...]]]


def _files(logger: Logger) -> dict[str, FileOutput]:
    """
    The outputs that write a file of their own, which SB3 empties when a script starts again.

    :param logger: SB3's
    :return: outputs by name of their file; of files of the same name in several folders the second is "NAME 2", and so on
    """
    outputs: list[FileOutput] = [
        output
        for output in logger.output_formats
        if isinstance(output, (CSVOutputFormat, JSONOutputFormat))
        or (isinstance(output, HumanOutputFormat) and output.own_file)
    ]
    found: dict[str, FileOutput] = {}
    names = [Path(output.file.name).name for output in outputs]
    for index, (name, output) in enumerate(zip(names, outputs, strict=True)):
        earlier = names[:index].count(name)
        found[f"{name} {earlier + 1}" if earlier else name] = output
    return found


def capture(logger: Logger) -> LogState:
    """
    What was written, and what the next row will hold.

    :param logger: SB3's
    :return: for :func:`restore`
    """
    files: dict[str, WrittenFile] = {}
    for name, output in _files(logger).items():
        output.file.flush()
        files[name] = {"text": Path(output.file.name).read_text(encoding=output.file.encoding)}
        if isinstance(output, CSVOutputFormat):
            files[name]["keys"] = list(output.keys)
    pending = (dict(logger.name_to_value), dict(logger.name_to_count), dict(logger.name_to_excluded))
    return {"files": files, "pending": pending}


def restore(logger: Logger, state: LogState) -> None:
    """
    Restore the files of a logger.

    :param logger: with outputs to files of the same names; others are not changed
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

"""
The command line: ``sb3-policyopt`` or ``python -m sb3_policyopt``.

Its exit codes are those of :mod:`sb3_policyopt.cli.exit_codes`: 0, 1, 2 and 130.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import requires, version
from typing import NamedTuple, NoReturn, cast

from sb3_policyopt import registry
from sb3_policyopt.cli.exit_codes import EXPECTED, SUCCESS, USAGE, exit_code, fail
from sb3_policyopt.cli.help import help_of_zoo
from sb3_policyopt.errors import UserError, did_you_mean
from sb3_policyopt.process import replaced

Handler = Callable[[list[str]], int | None]
"""Carries out a command with its options; returns its exit code, or None for success."""


class Command(NamedTuple):
    """One subcommand: its :data:`Handler` as ``module:function``, the extra that it needs, its group, and a line of help."""

    target: str
    extra: str
    group: str
    summary: str

    @property
    def of_zoo(self) -> bool:
        """Whether rl-zoo3 parses the options."""
        return self.target.startswith("sb3_policyopt.zoo.")


def _zoo(name: str, group: str, summary: str) -> Command:
    return Command(f"sb3_policyopt.zoo.commands:{name}", "zoo", group, summary)


_TRAIN, _READ, _FILM, _HUB = "Train and evaluate", "Read and draw runs", "Film agents", "Hugging Face Hub"

COMMANDS = {
    "train": _zoo("train", _TRAIN, "train an agent, or search hyperparameters with -optimize"),
    "enjoy": _zoo("enjoy", _TRAIN, "watch or evaluate a trained agent"),
    "benchmark": _zoo("benchmark", _TRAIN, "evaluate every agent of a folder into a table"),
    "plot": Command("sb3_policyopt.cli.plot:main", "plots", _READ, "draw the learning curve and the metrics of the updates"),
    "doctor": Command("sb3_policyopt.cli.doctor:main", "plots", _READ, "list the problems that the log of a run shows"),
    "plot_train": _zoo("plot_train", _READ, "draw training returns, success or lengths"),
    "all_plots": _zoo("all_plots", _READ, "compare the evaluations of algorithms and folders"),
    "plot_from_file": _zoo("plot_from_file", _READ, "draw what all_plots has saved"),
    "record_video": _zoo("record_video", _FILM, "film a trained agent"),
    "record_training": _zoo("record_training", _FILM, "film the checkpoints of a training"),
    "push_to_hub": Command("sb3_policyopt.cli.hub:push_main", "hub", _HUB, "publish an agent on the Hugging Face Hub"),
    "load_from_hub": Command("sb3_policyopt.cli.hub:load_main", "hub", _HUB, "download an agent from the Hugging Face Hub"),
}
"""By name, in the order of ``--help``."""

_USAGE = """\
usage: sb3-policyopt [-h] [--version] COMMAND ...

TRPO and PPO for Stable-Baselines3, with the commands of rl-zoo3.

{groups}

Algorithms, for --algo (train, enjoy and the others of rl-zoo3 also take its own):
{algorithms}

Options:
  -h, --help       show this text
  --version        show the version

Examples:
  sb3-policyopt train --algo trpo --env CartPole-v1 --progress
  sb3-policyopt enjoy --algo trpo --env CartPole-v1 -f logs
  sb3-policyopt plot logs/trpo/CartPole-v1_1
  sb3-policyopt doctor logs/trpo/CartPole-v1_1

sb3-policyopt COMMAND --help lists the options of a command, with examples.
Exit codes: 0 success, 1 failure, 2 a mistake on the command line or a file that is missing, 130 interrupted."""


def usage() -> str:
    """
    List the commands by group, and the algorithms.

    :return: the text of ``--help``
    """
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    blocks = [
        "\n".join(
            [f"{group}:"] + [f"  {name:<16} {command.summary}" for name, command in COMMANDS.items() if command.group == group]
        )
        for group in groups
    ]
    algorithms = "\n".join(f"  {name:<16} {algorithm.class_name}" for name, algorithm in registry.ALGORITHMS.items())
    return _USAGE.format(groups="\n\n".join(blocks), algorithms=algorithms)


def resolve(command: Command) -> Handler:
    """
    Import the function that carries out a command.

    :param command: the command
    :return: the function
    """
    return cast(Handler, registry.resolve(command.target))


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param argv: its name and options, those of the process by default
    :return: exit code
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return SUCCESS if arguments else USAGE
    if arguments[0] == "--version":
        print(f"sb3-policyopt {version('sb3-policyopt')}")
        return SUCCESS
    name, *options = arguments
    if name not in COMMANDS:
        return fail(f"there is no command {name}{did_you_mean(name, COMMANDS)} (sb3-policyopt --help lists them)")
    return run(name, options)


def run(name: str, options: list[str]) -> int:
    """
    Run a known command, and print the errors that are no bugs as one sentence.

    :param name: name of the command
    :param options: its options
    :return: exit code
    """
    command = COMMANDS[name]
    try:
        with one_sentence_for_options(name), help_of_zoo(name, command.summary) if command.of_zoo else nullcontext():
            return resolve(command)(options) or SUCCESS
    except SystemExit as exit_:  # argparse after --help, or a script of the zoo
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except EXPECTED as error:
        return fail(sentence_for(error, name, command.extra), exit_code(error))


def one_sentence_for_options(name: str) -> AbstractContextManager[None]:
    """
    Within the context, argparse raises a :class:`UserError` instead of printing the usage and exiting.

    :param name: name of the command
    :return: the context
    """

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{name}: {message} (sb3-policyopt {name} --help lists the options)")

    return replaced(argparse.ArgumentParser, "error", error)


def sentence_for(error: BaseException, name: str, extra: str) -> str:
    """
    Describe an error that is no bug.

    :param error: what the command raised
    :param name: name of the command
    :param extra: the extra that contains what the command needs
    :return: a sentence
    """
    if isinstance(error, ImportError):
        return missing(name, extra, error)
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)


def missing(name: str, extra: str, error: ImportError) -> str:
    """
    Name what to install.

    :param name: name of the command
    :param extra: the extra that contains what the command needs
    :param error: what could not be imported
    :return: a sentence
    """
    module = (error.name or "").split(".")[0]
    if not module or module == "sb3_policyopt":  # the message of another library, such as gymnasium
        return str(error)
    distribution = module.replace("_", "-")
    declared = any(re.match(rf"{distribution}\b.*extra == .{extra}", line) for line in requires("sb3-policyopt") or [])
    wanted = f"'sb3-policyopt[{extra}]'" if declared else distribution
    return f"{name} needs {module}, which is not installed: pip install {wanted}"

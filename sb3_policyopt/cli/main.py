"""
The command line: ``sb3-policyopt`` or ``python -m sb3_policyopt``.

Exit codes, of every command: 0 success; 1 what the command does failed (a training, the Hub, a bug), or the doctor found
something; 2 the command was not understood or asks for what is not there; 130 interrupted.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

SUCCESS, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    """One subcommand: where its ``main(argv) -> exit code`` lives, which extra brings what it needs, and a line of help."""

    target: str
    extra: str
    summary: str


COMMANDS = {
    "train": Command("sb3_policyopt.zoo.commands:train", "zoo", "train an agent, or search hyperparameters with -optimize"),
    "enjoy": Command("sb3_policyopt.zoo.commands:enjoy", "zoo", "watch or evaluate a trained agent"),
    "record_video": Command("sb3_policyopt.zoo.commands:record_video", "zoo", "film a trained agent"),
    "record_training": Command("sb3_policyopt.zoo.commands:record_training", "zoo", "film the checkpoints of a training"),
    "benchmark": Command("sb3_policyopt.zoo.commands:benchmark", "zoo", "evaluate every agent of a folder into a table"),
    "plot": Command("sb3_policyopt.cli.plot:main", "plots", "draw the learning curve and the health of the updates"),
    "plot_train": Command("sb3_policyopt.zoo.commands:plot_train", "zoo", "draw training returns, success or lengths"),
    "all_plots": Command("sb3_policyopt.zoo.commands:all_plots", "zoo", "compare the evaluations of algorithms and folders"),
    "plot_from_file": Command("sb3_policyopt.zoo.commands:plot_from_file", "zoo", "draw what all_plots has saved"),
    "push_to_hub": Command("sb3_policyopt.cli.hub:push_main", "hub", "publish an agent on the Hugging Face Hub"),
    "load_from_hub": Command("sb3_policyopt.cli.hub:load_main", "hub", "fetch an agent from the Hugging Face Hub"),
    "doctor": Command("sb3_policyopt.cli.doctor:main", "plots", "find out from its logs what ails a run"),
}


def usage() -> str:
    """
    List the commands.

    :return: the text of ``--help``
    """
    lines = [f"  {name:<16} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sb3-policyopt [--help] [--version] COMMAND ...",
            "",
            "TRPO and PPO for Stable-Baselines3, with the commands of rl-zoo3.",
            "",
            *lines,
            "",
            "sb3-policyopt COMMAND --help lists the options of a command; those of rl-zoo3's commands are its own.",
        ]
    )


def resolve(command: Command) -> Callable[[list[str]], int]:
    """
    Import the function that carries out a command.

    :param command: the command
    :return: the function
    """
    module, _, function = command.target.partition(":")
    handler: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return handler


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
        from importlib.metadata import version

        print(f"sb3-policyopt {version('sb3-policyopt')}")
        return SUCCESS
    name, *options = arguments
    if name not in COMMANDS:
        return fail(f"there is no command {name}{did_you_mean(name, COMMANDS)} (sb3-policyopt --help lists them)")
    return run(name, options)


def run(name: str, options: list[str]) -> int:
    """
    Run a known command, and put what a user can get wrong into one sentence.

    :param name: name of the command
    :param options: its options
    :return: exit code
    """
    from sb3_policyopt.errors import HubError, NonFiniteError, UserError

    command = COMMANDS[name]
    try:
        with one_sentence_for_options(name):
            return resolve(command)(options)
    except SystemExit as exit_:  # argparse after --help, or a script of the zoo
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except UserError as error:
        return fail(str(error))
    except (NonFiniteError, HubError) as error:
        return fail(str(error), FAILURE)
    except ImportError as error:
        return fail(missing(name, command.extra, error))
    except KeyboardInterrupt as interruption:
        return fail(str(interruption) or "interrupted", INTERRUPTED)


@contextmanager
def one_sentence_for_options(name: str) -> Iterator[None]:
    """
    Within this context, argparse raises a :class:`UserError` where it would print forty lines of usage.

    :param name: name of the command
    """
    import argparse

    from sb3_policyopt.errors import UserError

    original = argparse.ArgumentParser.error

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{name}: {message} (sb3-policyopt {name} --help lists the options)")

    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = original  # type: ignore[method-assign]


def missing(name: str, extra: str, error: ImportError) -> str:
    """
    Say what to install.

    :param name: name of the command
    :param extra: the extra that brings what the command needs
    :param error: what could not be imported
    :return: a sentence
    """
    from importlib.metadata import requires

    module = (error.name or "").split(".")[0]
    if not module or module == "sb3_policyopt":  # somebody's own explanation, such as gymnasium's
        return str(error)
    distribution = module.replace("_", "-")
    declared = any(re.match(rf"{distribution}\b.*extra == .{extra}", line) for line in requires("sb3-policyopt") or [])
    wanted = f"'sb3-policyopt[{extra}]'" if declared else distribution
    return f"{name} needs {module}, which is not installed: pip install {wanted}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """
    Suggest the nearest of some names.

    :param word: what was written
    :param known: the names that exist
    :return: a clause to append to a sentence, empty if nothing is near
    """
    import difflib

    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""


def fail(sentence: str, code: int = USAGE) -> int:
    """
    Report an error.

    :param sentence: what is wrong
    :param code: exit code
    :return: the exit code
    """
    print(f"sb3-policyopt: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

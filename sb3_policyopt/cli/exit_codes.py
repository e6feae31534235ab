"""
The exit codes of every command, and how an error becomes one.

0 success; 1 the training, the Hub or the network failed, the doctor has a finding, or there is a bug; 2 the command line is
not valid, or names what is missing or cannot be read; 130 interrupted. Errors are printed as one sentence, except a bug, which
is printed with its traceback.
"""

import sys
from collections.abc import Iterable

from sb3_policyopt.errors import CommandFailedError, HubError, NonFiniteError, UserError

SUCCESS, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130

EXPECTED = (UserError, NonFiniteError, HubError, CommandFailedError, ImportError, KeyboardInterrupt)
"""What a command may raise without a bug."""


def exit_code(error: BaseException) -> int:
    """
    Find the exit code of an error.

    :param error: one of ``EXPECTED``
    :return: the code
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return USAGE if isinstance(error, (UserError, ImportError)) else FAILURE


def fail(sentence: str, code: int = USAGE) -> int:
    """
    Report an error.

    :param sentence: what is wrong
    :param code: exit code
    :return: the exit code
    """
    print(f"sb3-policyopt: {sentence}", file=sys.stderr)
    return code


def tell_skipped(sentences: Iterable[str]) -> None:
    """
    Report what was left out of a folder.

    :param sentences: why, one for each
    """
    for sentence in sentences:
        print(f"sb3-policyopt: left out: {sentence}", file=sys.stderr)

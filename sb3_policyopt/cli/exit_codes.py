"""
The exit codes of every command, and how an error becomes one.

0 success; 1 what the command does failed (a training, the Hub, a bug), or the doctor found something; 2 the command was not
understood, or asks for what is missing or cannot be read; 130 interrupted. Errors are printed as one sentence, except a bug,
which keeps its traceback.
"""

import sys

from sb3_policyopt.errors import HubError, NonFiniteError, UserError

SUCCESS, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130

EXPECTED = (UserError, NonFiniteError, HubError, ImportError, KeyboardInterrupt)
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

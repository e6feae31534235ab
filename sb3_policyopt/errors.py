"""The errors of this package that are not a plain ``ValueError`` or ``TypeError``."""

from collections.abc import Iterator
from contextlib import contextmanager


class NonFiniteError(ValueError):
    """
    A NaN or an infinity reached the algorithm.

    It is a ``ValueError``, so that Optuna (through rl-zoo3) prunes the trial instead of ending the study.
    """


class UserError(Exception):
    """Something a user of the command line got wrong: it is shown as one sentence, without a traceback."""


class HubError(RuntimeError):
    """Publishing or loading failed; the message is one sentence that says why and what to do."""


class HubUserError(HubError, UserError):
    """What was asked of the Hub is not there, cannot be read, or may not be replaced."""


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """
    Within this context errors of some kinds are the user's: what the command names is not there, or cannot be read.

    :param kinds: the classes that become a :class:`UserError` with the same sentence
    """
    try:
        yield
    except (UserError, HubError):
        raise
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error


class RankLostError(RuntimeError):
    """Another process of a distributed training failed or is gone; the message names its rank and says why."""

"""The errors of this package that are not a plain ``ValueError`` or ``TypeError``, and how a message suggests a name."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class NonFiniteError(ValueError):
    """
    A NaN or an infinity reached the algorithm.

    It is a ``ValueError``, so that Optuna (through rl-zoo3) prunes the trial instead of ending the study.
    """


class PickleRequiredError(ValueError):
    """A saved agent cannot be loaded without unpickling parts of it, that is, without running code that it contains."""


class StateNotKeptError(Exception):
    """An environment's state cannot be saved; the message says which part of it."""


class WorkerDiedError(RuntimeError):
    """A worker process of a ``SubprocVecEnv`` or ``SharedMemoryVecEnv`` ended although it was not closed."""


class WorkerTracebackError(Exception):
    """The cause of an exception that an environment raised in a worker process: the traceback there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class RankLostError(RuntimeError):
    """Another process of a distributed training failed or ended; the message names its rank and the reason."""


class CommandFailedError(RuntimeError):
    """A command of the zoo could not do its work although it was understood; the message is one sentence."""


class UserError(Exception):
    """A mistake of the user of the command line: it is printed as one sentence, without a traceback."""


class HubError(RuntimeError):
    """Publishing or loading failed; the message is one sentence with the reason and the remedy."""


class HubUserError(HubError, UserError):
    """What the command names on the Hub or on the disk is missing, cannot be read, or may not be replaced."""


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """
    Within this context errors of some kinds are mistakes of the user: what a command names is missing or cannot be read.

    :param kinds: the classes that become a :class:`UserError` with the same sentence
    :raises UserError: in place of an error of these kinds
    """
    try:
        yield
    except (UserError, HubError):
        raise
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """
    Suggest the name that was probably meant.

    :param word: what was written
    :param known: the names that exist
    :param otherwise: the text if no name is similar
    :return: text to append to a sentence
    """
    similar = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {similar[0]}?" if similar else otherwise

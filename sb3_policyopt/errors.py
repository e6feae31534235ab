"""The errors of this package that are not a plain ``ValueError`` or ``TypeError``."""


class NonFiniteError(ValueError):
    """
    A NaN or an infinity reached the algorithm.

    It is a ``ValueError``, so that Optuna (through rl-zoo3) prunes the trial instead of ending the study.
    """


class UserError(Exception):
    """Something a user of the command line got wrong: it is shown as one sentence, without a traceback."""


class RankLostError(RuntimeError):
    """Another process of a distributed training failed or is gone; the message names its rank and says why."""

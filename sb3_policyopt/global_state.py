"""What training switches for the whole process, and puts back however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from torch.distributions import Distribution

from sb3_policyopt.threads import threads_kept


@contextmanager
def modes_kept() -> Iterator[None]:
    """
    Torch's gradients, its distributions' checks and NumPy's threads are afterwards as they were before.

    Each ``with`` inside puts its own switch back, unless Ctrl-C comes between the switch and the ``with``: then gradients
    would stay off for the rest of a notebook's life, and whatever trains next would fail for no visible reason.

    :return: a context
    """
    gradients, checks = th.is_grad_enabled(), Distribution._validate_args
    try:
        with threads_kept():
            yield
    finally:
        th.set_grad_enabled(gradients)
        Distribution.set_default_validate_args(checks)

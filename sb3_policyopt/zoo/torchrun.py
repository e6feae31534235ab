"""``sb3-policyopt train`` under ``torchrun``: one run folder, written by rank 0, and one seed for all."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np

from sb3_policyopt.errors import UserError
from sb3_policyopt.parallel.collectives import from_rank_0
from sb3_policyopt.parallel.group import together
from sb3_policyopt.parallel.launcher import rank, world_size

SEARCH = ("-optimize", "--optimize-hyperparameters")
SHOWN_ON_RANK_0 = (("-P", "--progress"), ("--track",))


@contextmanager
def training_options(argv: list[str]) -> Iterator[list[str]]:
    """
    Choose the options with which this rank trains; ranks other than 0 neither evaluate, save, log nor print.

    :param argv: the options given to every rank
    :return: those for this rank
    :raises UserError: for a search, whose trials would be the same on every rank
    """
    if world_size() == 1:
        yield argv
        return
    if without_flags(argv, SEARCH) != argv:
        raise UserError("train -optimize runs in one process; to share a search, start several with the same --storage")
    with together():
        given = given_seed(argv)
        drawn = int(np.random.default_rng().integers(2**31))
        argv = [*argv, "--seed", str(from_rank_0(drawn if given is None else given))]
        if rank() == 0:
            yield argv
            return
        quiet = without_flags(argv, *SHOWN_ON_RANK_0)
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield [*quiet, "-f", folder, "--eval-freq", "-1", "--save-freq", "-1", "--verbose", "0"]


def without_flags(argv: list[str], *flags: tuple[str, ...]) -> list[str]:
    """
    Leave options out that take no value, also where they are abbreviated.

    :param argv: the options
    :param flags: the spellings of each that is left out
    :return: the others
    """
    parser = argparse.ArgumentParser(add_help=False)
    for names in flags:
        parser.add_argument(*names, action="store_true")
    return parser.parse_known_args(argv)[1]


def given_seed(argv: list[str]) -> int | None:
    """
    Find the seed among the options of ``train``.

    :param argv: the options
    :return: None if there is none, and rl-zoo3 or rank 0 draws one
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=-1)
    seed: int = parser.parse_known_args(argv)[0].seed
    return seed if seed >= 0 else None

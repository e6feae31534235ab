"""``python -m sb3_policyopt``, and the command ``sb3-policyopt``: the command line, see :mod:`sb3_policyopt.cli.main`."""

import os
import sys
from collections.abc import Sequence

from sb3_policyopt.cli.main import main as run_command


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command. That of the process can name modules of the current folder, as with ``python -m``, if no other has the name.

    :param argv: its name and options, those of the process by default
    :return: exit code
    """
    folder = os.getcwd()
    if argv is None and not {"", folder}.intersection(sys.path):
        sys.path.append(folder)
    return run_command(argv)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m sb3_policyopt``, and the command ``sb3-policyopt``: the command line, see :mod:`sb3_policyopt.cli.main`."""

import os
import sys

from sb3_policyopt.cli.main import main as run_command


def main() -> int:
    """
    Run the command of the process. Modules of the current folder can be named, as ``python -m`` allows it, after all others.

    :return: exit code
    """
    folder = os.getcwd()
    if not {"", folder}.intersection(sys.path):
        sys.path.append(folder)
    return run_command()


if __name__ == "__main__":
    sys.exit(main())

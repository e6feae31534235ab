"""``python -m sb3_policyopt``: the command line, see :mod:`sb3_policyopt.cli.main`."""

import sys

from sb3_policyopt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

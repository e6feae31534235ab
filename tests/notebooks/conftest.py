"""The loopback Hub and its client are those of tests/hub."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "hub"))

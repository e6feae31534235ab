"""
sb3-contrib's own tests of MaskablePPO and RecurrentPPO, with ours in their place.

They are not part of its wheel. With a checkout of it:
``SB3_CONTRIB_TESTS=.../tests pytest tests/memory/test_contrib_own_tests.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("SB3_CONTRIB_TESTS", "")
RUN = """
import sys
import pytest
import sb3_contrib.ppo_mask
import sb3_contrib.ppo_recurrent
import torch as th
from sb3_policyopt import MaskablePPO, RecurrentPPO


def with_engine(algorithm, engine):
    def __init__(self, *arguments, **named):
        algorithm.__init__(self, *arguments, **{"engine": engine, **named})

    return type(algorithm.__name__, (algorithm,), {"__init__": __init__})


if __name__ == "__main__":
    th.set_num_threads(1)
    for module in (sb3_contrib, sb3_contrib.ppo_mask):
        module.MaskablePPO = with_engine(MaskablePPO, sys.argv[1])
    for module in (sb3_contrib, sb3_contrib.ppo_recurrent):
        module.RecurrentPPO = with_engine(RecurrentPPO, sys.argv[1])
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", sys.argv[2], "--rootdir", *sys.argv[3:]]))
"""
FILES = {
    "test_invalid_actions.py": "",
    "test_lstm.py": "not slow",
    "test_cnn.py": "MaskablePPO or RecurrentPPO",
    "test_deterministic.py": "RecurrentPPO",
    "test_run.py": "MaskablePPO or advantage_normalization",
    "test_train_eval_mode.py": "ppo_mask or MaskablePPO or ppomask",
}
"""By file, which of its tests (pytest's ``-k``) are about the two classes."""

# Of its scores a threshold of 90 is reached by sb3-contrib itself with the test's seed, but with none of 12 others (80 to 89,
# as ours). With engine="autograd" ours draws the same actions as sb3-contrib, and reaches it, too.
BY_LUCK = "tests/test_invalid_actions.py::test_identity"


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="SB3_CONTRIB_TESTS does not name the tests of a checkout of sb3-contrib")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_sb3_contribs_own_tests_pass(tmp_path: Path, name: str, engine: str) -> None:
    script, settings = tmp_path / "run.py", tmp_path / "pytest.ini"
    script.write_text(RUN)
    settings.write_text("[pytest]\nmarkers =\n    slow: takes minutes\n    expensive: takes longer\n")
    tests = Path(FOLDER).resolve()
    command = [sys.executable, str(script), engine, str(settings), str(tests.parent), str(tests / name)]
    if engine == "auto":
        command += ["--deselect", BY_LUCK]
    selected = FILES[name]
    command += ["-m", selected] if selected == "not slow" else ["-k", selected] if selected else []
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    print(done.stdout[-300:])

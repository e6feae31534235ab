"""
All modules of SB3's own tests that use ``SubprocVecEnv``, with ``SharedMemoryVecEnv`` in its place.

They are not part of its wheel. With a checkout of it: ``SB3_TESTS=.../tests pytest tests/envs/test_sb3_own_tests.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("SB3_TESTS", "")
RUN = """
import functools
import sys
import pytest
from stable_baselines3.common import env_util, vec_env
from sb3_policyopt.envs import SharedMemoryVecEnv

class WhereTrainerSteps(SharedMemoryVecEnv):
    __init__ = functools.partialmethod(SharedMemoryVecEnv.__init__, trainer_steps=True)

if __name__ == "__main__":
    vec_env.SubprocVecEnv = env_util.SubprocVecEnv = {"workers": SharedMemoryVecEnv, "trainer": WhereTrainerSteps}[sys.argv[1]]
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", sys.argv[2], "--rootdir", *sys.argv[3:]]))
"""


@pytest.mark.skipif(not FOLDER, reason="SB3_TESTS does not name the tests of a checkout of SB3")
@pytest.mark.parametrize("who_steps", ["workers", "trainer"])
@pytest.mark.parametrize(
    "name", ["test_vec_envs.py", "test_vec_monitor.py", "test_dict_env.py", "test_her.py", "test_utils.py"]
)
def test_sb3_own_tests_pass(tmp_path: Path, name: str, who_steps: str) -> None:
    script, nothing = tmp_path / "run.py", tmp_path / "pytest.ini"
    script.write_text(RUN)
    nothing.write_text("[pytest]\n")
    tests = Path(FOLDER).resolve()
    command = [sys.executable, str(script), who_steps, str(nothing), str(tests.parent), str(tests / name)]
    done = subprocess.run(command, cwd=tests.parent, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]

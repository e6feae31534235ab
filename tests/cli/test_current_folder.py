"""A module in the current folder, such as one with an environment, is found by the installed command."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

gym.register("Here-v0", CartPoleEnv, max_episode_steps=20)
"""
COMMAND = "import sys\nfrom sb3_policyopt.__main__ import main\nsys.exit(main())\n"  # as pip writes it
TRAIN = "train --algo ppo --env Here-v0 --gym-packages here -n 64 --eval-freq -1 --verbose 0 -params n_steps:32 batch_size:32"


def test_a_module_of_the_current_folder_is_found(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("bin", "mine", "elsewhere")}
    for folder in folders.values():
        folder.mkdir()
    (folders["bin"] / "command.py").write_text(COMMAND)
    (folders["mine"] / "here.py").write_text(MODULE)
    (folders["mine"] / "json.py").write_text("raise RuntimeError('not the one of Python')")

    def run(folder: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(folders["bin"] / "command.py"), *TRAIN.split()]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    done = run(folders["mine"])
    assert done.returncode == 0, done.stderr
    assert (folders["mine"] / "logs" / "ppo" / "Here-v0_1" / "Here-v0.zip").exists()
    refused = run(folders["elsewhere"])
    assert (refused.returncode, refused.stderr) == (2, "sb3-policyopt: --gym-packages here: No module named 'here'\n")

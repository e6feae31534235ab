"""An algorithm that nobody imports but the commands of the zoo, as --gym-packages names its module."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

MINE = """
from sb3_policyopt import PPO
from sb3_policyopt.registry import Algorithm, find, register

class Mine(PPO):
    "Of a module that only --gym-packages names."

ppo = find("ppo")
parts = {"panels": ppo.panels, "rules": ppo.rules, "sampler": ppo.sampler}
register(Algorithm("mine", "mine:Mine", FILE, metric="train/mine", **parts))
"""


def test_the_commands_take_an_algorithm_of_a_module_that_gym_packages_names(
    tmp_path: Path, cli: Callable[..., CompletedProcess[str]], process: Callable[..., CompletedProcess[str]]
) -> None:
    """Each in a process of its own, in which nothing but the command imports the module."""
    (tmp_path / "mine.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 64, n_steps: 32, batch_size: 32}\n")
    (tmp_path / "mine.py").write_text(MINE.replace("FILE", repr(str(tmp_path / "mine.yml"))))
    which = "--algo mine --env CartPole-v1 --gym-packages mine"
    cli(tmp_path, f"train {which} --seed 1 --eval-freq -1")
    assert "Episode Reward" in cli(tmp_path, f"enjoy {which} -f logs --no-render -n 600").stdout
    cli(tmp_path, f"push_to_hub {which} -orga me -n 20 --no-video --dry-run card")
    assert "Mine" in (tmp_path / "card" / "README.md").read_text()
    unknown = process(["-m", "sb3_policyopt", "train", *which.replace("--algo mine", "--algo min").split()], tmp_path)
    assert unknown.returncode == 2 and "there is no algorithm min, did you mean mine?" in unknown.stderr
    (tmp_path / "mine.py").write_text(MINE.replace("FILE", "'x.yml'").replace("mine:Mine", "mine:Other"))
    broken = process(["-m", "sb3_policyopt", "train", *which.split()], tmp_path)
    assert broken.returncode == 2 and "--gym-packages mine: an algorithm cannot be imported" in broken.stderr

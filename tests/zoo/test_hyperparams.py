"""hyperparams/*.yml against rl-zoo3's own files, and the numbers that are converted."""

import importlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import rl_zoo3
import yaml
from torch import nn

from sb3_policyopt import hyperparams, registry

pytestmark = pytest.mark.fast

MUJOCO_V5 = {
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
}
#: Action dimensions of what cannot be asked here: no longer registered, or an extra that need not be installed.
DIMENSIONS = {
    "HalfCheetahBulletEnv-v0": 6,
    "AntBulletEnv-v0": 8,
    "Walker2DBulletEnv-v0": 6,
    "HopperBulletEnv-v0": 3,
    "ReacherBulletEnv-v0": 2,
    "MinitaurBulletEnv-v0": 8,
    "MinitaurBulletDuckEnv-v0": 8,
    "HumanoidBulletEnv-v0": 17,
    "InvertedDoublePendulumBulletEnv-v0": 1,
    "InvertedPendulumSwingupBulletEnv-v0": 1,
}


def stock(algo: str) -> dict[str, dict[str, Any]]:
    path = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml"
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())
    return loaded


def action_dimensions(env_id: str) -> int:
    """Independent action dimensions over which sb3-contrib takes the mean of the KL divergence: those of a Box."""
    if env_id in DIMENSIONS:
        return DIMENSIONS[env_id]
    space = gym.make(env_id).action_space
    return space.shape[0] if isinstance(space, gym.spaces.Box) else 1


def test_every_environment_of_the_zoo_and_every_mujoco_environment_is_there() -> None:
    wanted = set(stock("ppo")) | set(stock("trpo")) | MUJOCO_V5 | {"atari", "default"}
    assert set(hyperparams.load("ppo")) == set(hyperparams.load("trpo")) == wanted


OWN = {
    "ppo": {"MountainCar-v0", "MountainCarContinuous-v0"},
    "trpo": {"BipedalWalker-v3", "LunarLander-v3", "MountainCarContinuous-v0"},
}
"""Entries of our own in the place of the zoo's, by algorithm. docs/scores.md has the returns of both."""


@pytest.mark.parametrize("algo", OWN)
def test_entries_in_the_place_of_the_zoos_say_so(algo: str) -> None:
    for env_id in OWN[algo]:
        assert hyperparams.load(algo)[env_id] != stock(algo)[env_id]
        assert origin(algo, env_id).startswith("# tuned here"), env_id


def test_ppo_has_the_numbers_of_the_zoo() -> None:
    ours, wanted = hyperparams.load("ppo"), set(stock("ppo")) - OWN["ppo"]
    assert {env_id: ours[env_id] for env_id in wanted} == {env_id: stock("ppo")[env_id] for env_id in wanted}


TUNED_HERE = {("HalfCheetah-v4", "target_kl"): 0.12}
"""What differs from the conversion on purpose; the file says why."""


@pytest.mark.parametrize("env_id", sorted(set(stock("trpo")) - OWN["trpo"] - {"default"}))
def test_trpo_has_the_numbers_of_the_zoo_on_the_joint_scale(env_id: str) -> None:
    """
    sb3-contrib's KL is the mean over the d dimensions of a Box, ours their sum.

    So its KL and its Fisher matrix F are ours divided by d: the same trust region has target_kl·d, and (F + λI)/d·x = g/d
    has the direction of (F + λI)x = g if λ is contrib's damping times d. Its defaults are 0.01 and 0.1.
    """
    ours, theirs = hyperparams.load("trpo")[env_id], stock("trpo")[env_id]
    dimensions = action_dimensions(env_id)
    for name, default in (("target_kl", 0.01), ("cg_damping", 0.1)):
        converted_value = dimensions * theirs.get(name, default)
        assert ours.get(name, default) == pytest.approx(TUNED_HERE.get((env_id, name), converted_value)), name
    converted = {"target_kl", "cg_damping"}
    assert {key: value for key, value in ours.items() if key not in converted} == {
        key: value for key, value in theirs.items() if key not in converted
    }


def origin(algo: str, env_id: str) -> str:
    """The line above an entry."""
    lines = hyperparams.path(algo).read_text().splitlines()
    return next(before for before, line in pairwise(lines) if line.startswith(f"{env_id}:"))


NO_VELOCITIES = {
    "CartPoleNoVel-v1",
    "PendulumNoVel-v1",
    "MountainCarNoVel-v0",
    "MountainCarContinuousNoVel-v0",
    "LunarLanderNoVel-v3",
    "LunarLanderContinuousNoVel-v3",
}


def test_recurrent_ppo_has_the_numbers_of_the_zoo_but_for_three_entries() -> None:
    """The zoo's default is a policy without memory, and version 2 of LunarLander no longer exists."""
    theirs = {env_id.replace("NoVel-v2", "NoVel-v3"): entry for env_id, entry in stock("ppo_lstm").items()}
    theirs["default"]["policy"] = "MlpLstmPolicy"
    assert hyperparams.load("ppo_lstm") == theirs
    mended = [env_id for env_id in theirs if origin("ppo_lstm", env_id).startswith("# mended")]
    assert sorted(mended) == ["LunarLanderContinuousNoVel-v3", "LunarLanderNoVel-v3", "default"]


@pytest.mark.parametrize("algo", ["ppo_lstm", "trpo_lstm"])
def test_environments_without_velocities_exist(algo: str) -> None:
    import rl_zoo3.import_envs  # noqa: F401  registers them

    named = {env_id for env_id in hyperparams.load(algo) if "NoVel" in env_id}
    assert named == NO_VELOCITIES <= set(gym.registry)


def evaluated(entry: dict[str, Any]) -> Any:
    """The arguments of the policy, as rl-zoo3 reads them."""
    return eval(entry["policy_kwargs"], {"nn": nn})


@pytest.mark.parametrize("env_id", sorted(NO_VELOCITIES))
def test_recurrent_trpo_has_the_discount_and_the_network_of_ppo(env_id: str) -> None:
    ours, ppo = hyperparams.load("trpo_lstm")[env_id], hyperparams.load("ppo_lstm")[env_id]
    assert ours["policy"] == ppo["policy"] == "MlpLstmPolicy" and ours["normalize"] is ppo["normalize"] is True
    assert ours["gamma"] == ppo["gamma"] and ours["n_envs"] == ppo["n_envs"]
    if "policy_kwargs" in ppo:  # MountainCarNoVel has the default network there, with a hidden size of 256
        assert evaluated(ours) == evaluated(ppo)


@pytest.mark.parametrize("algo", ["ppo_mask", "trpo_mask"])
def test_environments_with_masks_have_entries(algo: str) -> None:
    import sb3_policyopt.envs  # noqa: F401  registers them

    assert set(hyperparams.load(algo)) == {"default", "MaskedRoute-v0", "MaskedWorkshop-v0"}
    assert {"MaskedRoute-v0", "MaskedWorkshop-v0"} <= set(gym.registry)


@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_every_entry_says_where_its_numbers_come_from(algo: str) -> None:
    lines = hyperparams.path(algo).read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\S+:", line):
            assert re.match(r"# (zoo|converted|carried|derived|mended|tuned here|untuned)\b", lines[number - 1]), line


@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_the_module_gives_a_fresh_dictionary(algo: str) -> None:
    """rl-zoo3 deletes from the dictionary what it has used."""
    module = importlib.import_module(f"sb3_policyopt.hyperparams.{algo}")
    del module.hyperparams["default"]["policy"]
    assert module.hyperparams == hyperparams.load(algo)


@pytest.mark.parametrize("algo", [algo for algo in registry.ALGORITHMS if "trpo" in algo])
def test_the_critic_of_trpo_has_an_extractor_of_its_own_for_images(algo: str) -> None:
    """Its passes train nothing that it shares with the actor."""
    for name, entry in hyperparams.load(algo).items():
        if re.search("Cnn|MultiInput", str(entry["policy"])):
            assert "share_features_extractor=False" in str(entry.get("policy_kwargs")), name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="algo must be one of ppo, trpo"):
        hyperparams.path("sac")
    with pytest.raises(AttributeError, match="nothing"):
        importlib.import_module("sb3_policyopt.hyperparams.ppo").nothing  # noqa: B018

"""Whether a checkpoint is of the run that a script continues, and what the script has changed since."""

import warnings
from collections.abc import Mapping

from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from sb3_policyopt.callbacks.roots import names_of_wrappers
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.parallel.launcher import rank, world_size
from sb3_policyopt.saving.checkpoint_file import FORMAT, Checkpoint

UPDATES = "updates before this learn()"


def facts_of(model: PolicyOptimization, wrappers: list[VecEnvWrapper], updates: int) -> dict[str, object]:
    """
    What must be the same in the run that resumes.

    :param model: in training
    :param wrappers: around its VecEnv
    :param updates: that the model had seen when this call of ``learn`` started
    :return: the facts by name
    """
    return {
        "algorithm": type(model).__name__,
        "observation space": str(model.observation_space),
        "action space": str(model.action_space),
        "seed": model.seed,
        "number of environments": model.n_envs,
        "first timestep of this learn()": model._num_timesteps_at_start,
        "last timestep": model._total_timesteps,
        "number of VecNormalize wrappers": sum(isinstance(layer, VecNormalize) for layer in wrappers),
        UPDATES: updates,
    }


def check_format(checkpoint: Checkpoint) -> None:
    """
    Refuse a checkpoint of another version.

    :param checkpoint: the newest one
    :raises ValueError: that names it
    """
    if checkpoint.state.get("format") != FORMAT:
        raise ValueError(
            f"{checkpoint.path} was written by an older version of sb3-policyopt, which alone can continue it. Install "
            "that version, or choose another folder for ResumableCheckpointCallback"
        )


def check(checkpoint: Checkpoint, before: Mapping[str, object], now: Mapping[str, object], free: set[str]) -> None:
    """
    Raise an error for a checkpoint of another run, and warn of another number of ranks or timesteps.

    :param checkpoint: the newest one
    :param before: the facts of its run
    :param now: the facts of this run
    :param free: names of those that may differ
    :raises ValueError: that names the difference
    """
    for fact, value in before.items():
        if fact in free or now.get(fact, value) == value:
            continue
        if fact == UPDATES:
            raise ValueError(
                f"{checkpoint.path} cannot be continued with this model, which has seen {now[fact]} updates before this "
                f"learn(), where the run had seen {value}: a checkpoint holds what training has changed since then. Make the "
                "model, its environments and the callbacks anew, as the script does, or choose another folder for "
                "ResumableCheckpointCallback"
            )
        raise ValueError(
            f"{checkpoint.path} cannot be continued by this script: its {fact} is {value}, here it is {now[fact]}. "
            "Choose another folder for ResumableCheckpointCallback, or restore the old setting"
        )
    n_ranks = 1 + len(checkpoint.state["other ranks"])
    if n_ranks != world_size() and rank() == 0:
        warnings.warn(
            f"{checkpoint.path} was written by {n_ranks} rank(s), now there are {world_size()}, so that an update sees "
            f"{world_size() / n_ranks:g} times as many transitions. Parameters, optimizer and step counts go on; "
            "ranks that were not there start new episodes, and the episodes of ranks that are no more are lost"
        )
    if before["last timestep"] != now["last timestep"]:
        warnings.warn(
            f"{checkpoint.path} is of a training to timestep {before['last timestep']}, which now goes to "
            f"{now['last timestep']}: schedules follow the new end from here on"
        )


def tell_of_changes(checkpoint: Checkpoint, names: list[str], changed: Mapping[str, str], last_timestep: int) -> None:
    """
    Warn of what the script has changed since a checkpoint of the same run: wrappers and hyperparameters.

    :param checkpoint: of the run
    :param names: of what is kept of the training now
    :param changed: hyperparameters that differ, as texts by name
    :param last_timestep: at which the training is complete
    """
    before, now = names_of_wrappers([*checkpoint.state["trained"]["attributes"]]), names_of_wrappers(names)
    if before != now and rank() == 0:
        warnings.warn(
            f"{checkpoint.path} was made with the wrappers {before} around the VecEnv, now there are {now}: what is new "
            "starts afresh"
        )
    if changed and rank() == 0:
        complete = checkpoint.timesteps >= last_timestep
        warnings.warn(
            f"{checkpoint.path} was made with other hyperparameters: "
            + "; ".join(f"{name} {difference}" for name, difference in changed.items())
            + (
                ". They have no effect, as the training is complete: choose another folder to train with them"
                if complete
                else ". Training goes on with those of here"
            )
        )

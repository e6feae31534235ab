"""The callback by which a run that was ended continues to the same final bits."""

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.callbacks import roots, same_run
from sb3_policyopt.callbacks.tree import all_callbacks, forget_lost_best_models, numbered
from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.on_policy import PolicyOptimization
from sb3_policyopt.parallel.collectives import from_rank_0, gather
from sb3_policyopt.parallel.launcher import rank
from sb3_policyopt.parallel.rollouts import adopt_moments
from sb3_policyopt.saving import checkpoint_file, generators, logs, step_context
from sb3_policyopt.saving.attributes import NOTHING, ChangingAttributes
from sb3_policyopt.saving.checkpoint_file import Checkpoint, RankState
from sb3_policyopt.saving.configuration import OPTIMIZER, configuration_of, differences, optimizer_options
from sb3_policyopt.saving.environments import VecEnvState, start_new_episodes
from sb3_policyopt.saving.places import named
from sb3_policyopt.saving.policy_state import PolicyRecord
from sb3_policyopt.setup import arguments


class ResumableCheckpointCallback(BaseCallback):
    """
    Save everything that training depends on, and continue from it when the same script is run again.

    ::

        model = PPO("MlpPolicy", "HalfCheetah-v5", seed=0)
        model.learn(1_000_000, callback=ResumableCheckpointCallback("ckpt", save_freq=50_000))

    The first run starts from scratch. If it is killed, the next run of the script continues from the newest complete
    checkpoint in the folder, to the parameters that the first run would have had, bit for bit on the same machine and
    versions. Once the training is complete, running the script again returns the trained model at once.

    Kept are parameters, optimizer, random generators, step counts, ``VecNormalize`` and other wrappers, the state of the
    environments, episode statistics, the logger's files, and what other callbacks have gathered; objects that they share stay
    shared. If the state of an
    environment cannot be kept, a warning is given, and a resumed run starts with new episodes, which are the same in every
    run that resumes from that checkpoint. With ``device="auto"`` training continues on the device of the checkpoint; if that
    device is missing, or the script chooses another one, a warning says that the bits will differ.

    A checkpoint is also a model of SB3: ``PPO.load("ckpt/rl_model_50000_steps.zip")``. It contains pickles, so resume only
    from folders that you trust. One folder belongs to one call of ``learn`` with one seed. Hyperparameters that the script has
    changed since take effect where training goes on, with a warning that names them.

    With several ranks, rank 0 writes one checkpoint that holds the environments and random generators of all, and reads it
    for all. A run may go on with another number of ranks: those that were not there start new episodes.

    :param path: the folder of the checkpoints; it is created if it is missing
    :param save_freq: timesteps (of all environments together) between two checkpoints, each made at the start of a rollout
    :param keep: number of checkpoints to leave; the oldest is deleted after a new one is complete
    :param verbose: 0 no output, 1 prints what is saved and from which checkpoint training continues
    :raises ValueError: if an argument makes no sense, or the folder holds checkpoints of another kind of run
    :raises OSError: if a checkpoint cannot be written; the earlier ones are then untouched
    """

    model: PolicyOptimization

    def __init__(self, path: str | os.PathLike[str], save_freq: int, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path = Path(path)
        self.save_freq = arguments.integer("save_freq", save_freq)
        self.keep = arguments.integer("keep", keep)
        #: Whether a run may be continued with another seed than its own, which it then takes: set by the command line where
        #: no ``--seed`` was given, as rl-zoo3 draws one then.
        self.any_seed = False
        self.started = False
        self.callbacks: ChangingAttributes | None = None
        self.warned = False

    def _init_callback(self) -> None:
        if not isinstance(self.model, PolicyOptimization):
            raise TypeError(
                f"ResumableCheckpointCallback needs PPO or TRPO of sb3_policyopt, got {type(self.model).__module__}."
                f"{type(self.model).__name__}, which draws random numbers before a rollout's callbacks"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"path is {self.path}, which cannot be a folder, as a file is there: choose another one"
            ) from error

    # ------------------------------------------------------------------ when

    def _on_training_start(self) -> None:
        if self.started:
            raise ValueError("a ResumableCheckpointCallback is for one call of learn: make another, with a path of its own")
        model = self.model
        assert model.env is not None
        self.configuration = configuration_of(model)
        self.environments = VecEnvState(model.env)
        self.trained = ChangingAttributes(*roots.trained(model, self.environments))
        self.policy_at_start = PolicyRecord(model.policy)
        self.updates_before = model._n_updates
        self.last_saved = model.num_timesteps
        self.resumed = from_rank_0(checkpoint_file.newest(self.path) if rank() == 0 else None)
        if self.resumed is not None:
            self._check(self.resumed)
            self._go_where_it_ran(self.resumed)
            self._restore_model(self.resumed)
            changed = self._changed(self.resumed)
            same_run.tell_of_changes(self.resumed, [*self.trained.objects], changed, model._total_timesteps)
            self.last_saved = model.num_timesteps
        self.iterations_before = model._n_iterations
        self.started = True

    def _on_rollout_start(self) -> None:
        self._after_all_started()
        if self.model.num_timesteps - self.last_saved >= self.save_freq:
            self.save()
        self.iterations_before = self.model._n_iterations

    def _on_step(self) -> bool:
        if self.callbacks is None:
            raise ValueError(
                "ResumableCheckpointCallback saves at the start of a rollout, and was not called there: give it to learn as "
                "it is, not to a callback such as EveryNTimesteps; save_freq says how often it saves"
            )
        return True

    def _on_training_end(self) -> None:
        if not self.started:  # rl-zoo3 ends also what an error kept from starting
            return
        self._after_all_started()
        model = self.model
        whole = model._n_iterations > self.iterations_before  # not in the middle of a rollout, or of its update
        if whole and model.num_timesteps >= max(model._total_timesteps, self.last_saved + 1):
            self.save()

    def _after_all_started(self) -> None:
        """Read the other callbacks once, when all of them have started: from then on only training changes them."""
        if self.callbacks is not None:
            return
        everyone = [*all_callbacks(self.locals["callback"])]
        others = numbered([callback for callback in everyone if callback is not self])
        self.their_environments = {
            f"{name}.{attribute}": VecEnvState(value)
            for name, callback in others.items()
            for attribute, value in vars(callback).items()
            if isinstance(value, VecEnv)
        }
        wrappers = {
            f"{name} {wrapper}": layer
            for name, environment in self.their_environments.items()
            for wrapper, layer in numbered([*environment.wrappers, *roots.own_venv(environment.venv)]).items()
        }
        exclude: set[str | tuple[str, str]] = {
            "model",
            "parent",
            "locals",
            "globals",
            *VecEnvState.wrapper_attributes,
            *roots.left_out_of_venvs(wrappers),
        }
        venvs = [self.environments, *self.their_environments.values()]
        self.callbacks = ChangingAttributes({**others, **wrappers, **roots.shared(venvs)}, exclude)
        self.standing = roots.standing(self.model, everyone, venvs)
        if self.resumed is not None:
            self._restore_model(self.resumed)  # again, as callbacks may have changed something of it when they started
            self._restore_surroundings(self.resumed)
            self.resumed = None

    # ------------------------------------------------------------------ saving

    def save(self) -> None:
        """
        Write a checkpoint of this moment, which must be the start of a rollout.

        :raises OSError: if it cannot be written; the earlier ones are then untouched
        """
        model = self.model
        assert self.callbacks is not None
        trained, callbacks = self.trained.state(), self.callbacks.state()
        kept = named(trained=self.trained.kept, callbacks=self.callbacks.kept)
        elsewhere = {id(thing): name for name, thing in {**kept, **self.standing}.items()}
        state: RankState = {
            "format": checkpoint_file.FORMAT,
            "run": same_run.facts_of(model, self.environments.wrappers, self.updates_before),
            "configuration": self.configuration,
            "device": str(model.device),
            "elapsed": time.time_ns() - model.start_time,
            "trained": trained,
            "policy": self.policy_at_start.changes(model.policy),
            "environments": self._capture("The training environment", self.environments, elsewhere),
            "callbacks": callbacks,
            "their_environments": {
                name: self._capture(name, venv, elsewhere) for name, venv in self.their_environments.items()
            },
            "logs": logs.capture(model.logger),
            "exploration": generators.exploration_matrices(model),
            "generators": generators.capture(),
            "context": step_context.capture(model),
        }
        other_ranks = gather(state)[1:]
        self.last_saved = model.num_timesteps
        if rank() == 0:
            path = checkpoint_file.write(self.path, model, {**state, "other ranks": other_ranks}, self.keep)
            if self.verbose >= 1:
                print(f"Saved {path}")

    def _capture(self, name: str, environments: VecEnvState, elsewhere: Mapping[int, str]) -> object:
        """
        The state of environments, or None with one warning.

        :param name: for the warning
        :param environments: which
        :param elsewhere: names of objects that are kept elsewhere, by their identity
        :return: the state
        """
        try:
            return environments.capture(elsewhere)
        except StateNotKeptError as error:
            if not self.warned:
                warnings.warn(
                    f"{name} cannot be kept in a checkpoint: {error}. A resumed run will start with new episodes; give the "
                    "environment get_state() and set_state(state) to continue exactly."
                )
            self.warned = True
            return None

    # ------------------------------------------------------------------ restoring

    def _check(self, checkpoint: Checkpoint) -> None:
        """
        Raise an error for a checkpoint of another run, and warn of what the script has changed since.

        :param checkpoint: the newest one
        :raises ValueError: that names the difference
        """
        same_run.check_format(checkpoint)
        now = same_run.facts_of(self.model, self.environments.wrappers, self.updates_before)
        free = {"last timestep", *(["seed"] if self.any_seed or self.model.seed is None else [])}
        same_run.check(checkpoint, self._state_of_this_rank(checkpoint)["run"], now, free)

    def _changed(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Hyperparameters that the script has changed since a checkpoint of the same run, as texts by name."""
        return differences(checkpoint.state.get("configuration", {}), self.configuration)

    def _go_where_it_ran(self, checkpoint: Checkpoint) -> None:
        """
        Take the device of the checkpoint, because only there the numbers are equal, if it exists and ``device="auto"``.

        :param checkpoint: of the same run
        """
        model, before = self.model, th.device(checkpoint.state.get("device", self.model.device))
        if before.type == model.device.type:
            return
        if model._device_is_auto and (before.type == "cpu" or th.cuda.is_available()):
            model.move_to(th.device(before.type), f"{checkpoint.path.name} was made there")
        elif rank() == 0:
            warnings.warn(
                f"{checkpoint.path} was made on {before}, and training goes on on {model.device}: from the same parameters, "
                f"step counts and environments, but to results that differ by rounding and in the actions drawn. For equal "
                f'bits resume where there is a {before.type} device, with device="{before.type}" or "auto"'
            )

    def _restore_model(self, checkpoint: Checkpoint) -> None:
        """
        Restore the model and the wrappers.

        :param checkpoint: of the same run
        :raises ValueError: if the networks differ
        """
        model, state = self.model, self._state_of_this_rank(checkpoint)
        changed, options = self._changed(checkpoint), optimizer_options(model)
        try:
            checkpoint.restore_parameters(model)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{checkpoint.path} cannot be continued by this script, because its networks or its optimizer differ: {error}"
            ) from error
        if OPTIMIZER in changed:
            for group in model.policy.optimizer.param_groups:
                group.update(options)
        with model.keeping_schedules(changed):
            self.trained.restore(state["trained"], without={("model", name) for name in changed})
        self.policy_at_start.restore(model.policy, state["policy"])
        model.seed = cast("int | None", state["run"].get("seed", model.seed))
        adopt_moments(model.get_vec_normalize_env())
        model.start_time = time.time_ns() - state["elapsed"]
        generators.restore_exploration_matrices(model, state["exploration"])
        self._restore_generators(state)

    def _state_of_this_rank(self, checkpoint: Checkpoint) -> RankState:
        """
        What this rank has saved, or, if the run had fewer ranks, what all share.

        :param checkpoint: of the same run
        :return: the state; without environments and random generators if they have to start anew
        """
        states: list[RankState] = [checkpoint.state, *checkpoint.state["other ranks"]]
        if rank() < len(states):
            return states[rank()]
        return {**states[0], "environments": None, "generators": None, "callbacks": NOTHING, "their_environments": {}}

    def _restore_generators(self, state: RankState) -> None:
        """
        Continue the sequences of random numbers, or begin others.

        :param state: of this rank
        """
        if state["generators"] is None:
            set_random_seed(self._fresh_seed(), using_cuda=self.model.device.type == "cuda")
        else:
            generators.restore(state["generators"])

    def _fresh_seed(self) -> int:
        """A seed that depends on the checkpoint and the rank only."""
        model = self.model
        return int(np.random.SeedSequence((model.seed or 0, model.num_timesteps, rank())).generate_state(1)[0])

    def _restore_surroundings(self, checkpoint: Checkpoint) -> None:
        """
        Restore the environments, the other callbacks, the logger and, last of all, the random generators.

        :param checkpoint: of the same run
        """
        assert self.callbacks is not None
        state = self._state_of_this_rank(checkpoint)
        elsewhere = {**named(trained=self.trained.things, callbacks=self.callbacks.things), **self.standing}
        if state["environments"] is None:
            start_new_episodes(self.model, self._fresh_seed())
        else:
            self.environments.restore(state["environments"], elsewhere)
            step_context.restore(self.model, state.get("context"))
        before, now = set(state["callbacks"]["attributes"]), set(self.callbacks.objects)
        if before and before != now:
            warnings.warn(
                f"{checkpoint.path} was written beside other callbacks: {sorted(now - before)} are new and start afresh, "
                f"{sorted(before - now)} are no more"
            )
        self.callbacks.restore(state["callbacks"])
        forget_lost_best_models(self.callbacks.objects.values())
        for name, environment in state["their_environments"].items():
            if environment is not None and name in self.their_environments:
                self.their_environments[name].restore(environment, elsewhere)
        logs.restore(self.model.logger, state["logs"])
        self._restore_generators(state)
        if self.verbose >= 1 and rank() == 0:
            print(f"Continuing from {checkpoint.path} to timestep {self.model._total_timesteps}")

"""rl-zoo3's commands, run in this process with the algorithms of this package registered; their options are unchanged."""

import argparse
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium.error import DependencyNotInstalled

import sb3_policyopt.zoo  # noqa: F401  registers the algorithms
from sb3_policyopt import registry
from sb3_policyopt.errors import UserError
from sb3_policyopt.process import render_without_display, replaced
from sb3_policyopt.zoo import benchmark as benchmark_command
from sb3_policyopt.zoo import evaluations, films, preflight, shims
from sb3_policyopt.zoo import torchrun as ranks
from sb3_policyopt.zoo.agents import acting_with_masks
from sb3_policyopt.zoo.experiment import VEC_ENVS, Experiment, unknown_argument


class ZooCommand(NamedTuple):
    """
    A command of rl-zoo3.

    :param target: ``module:function`` to call, or ``module`` to run as a script
    :param check: checks the options and raises a :class:`sb3_policyopt.errors.UserError`
    :param records: whether it renders off screen
    :param draws: whether it ends by showing figures
    :param acts: whether it loads an agent and lets it act
    """

    target: str
    check: Callable[[list[str]], None]
    records: bool = False
    draws: bool = False
    acts: bool = False


#: The backends of matplotlib that draw into files only; matplotlib chooses one of them if there is no display.
FILE_BACKENDS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}

COMMANDS = {
    "train": ZooCommand("rl_zoo3.train:train", preflight.check_training),
    "enjoy": ZooCommand("rl_zoo3.enjoy:enjoy", preflight.check_playing, acts=True),
    "record_video": ZooCommand("rl_zoo3.record_video", preflight.check_filming, records=True, acts=True),
    "record_training": ZooCommand("rl_zoo3.record_training", preflight.check_filming, records=True),
    "benchmark": ZooCommand("rl_zoo3.benchmark", preflight.check_benchmark),
    "plot_train": ZooCommand("rl_zoo3.plots:plot_train", evaluations.check_training_curves, draws=True),
    "all_plots": ZooCommand("rl_zoo3.plots:all_plots", evaluations.check_evaluations, draws=True),
    "plot_from_file": ZooCommand("rl_zoo3.plots:plot_from_file", evaluations.check_input, draws=True),
}


def run(name: str, argv: list[str]) -> None:
    """
    Run a command of rl-zoo3.

    :param name: its name
    :param argv: its options
    :raises UserError: if an option names what is missing
    """
    command = COMMANDS[name]
    if command.check in (preflight.check_playing, preflight.check_filming):
        argv = preflight.with_own_runs(argv)
    if name in ("plot_train", "all_plots"):
        argv = evaluations.with_folder_names(argv)
    if not preflight.requests_help(argv):
        command.check(argv)
    with ExitStack() as context:
        folder: Path | None = None
        if name == "record_training" and not preflight.requests_help(argv):
            folder = films.video_folder(argv)
            argv = [*argv, "-o", str(folder)]
        if name == "train" and not preflight.requests_help(argv):
            context.enter_context(replaced(Experiment, "seed_is_given", ranks.given_seed(argv) is not None))
            argv = context.enter_context(ranks.training_options(argv))
        context.enter_context(command_line(name, argv))
        if name == "train":
            context.enter_context(our_vec_envs_among_choices())
        if shims.children_are_stock(name):
            context.enter_context(shims.our_children(preflight.parse(argv).gym_packages))
        if folder is not None:
            context.enter_context(films.joined_in(folder))
        if name in ("record_video", "record_training", "benchmark"):
            context.enter_context(shims.gym_packages_everywhere())
        if name == "benchmark":
            context.enter_context(shims.namespaced_environments())
            context.enter_context(benchmark_command.corrected(argv))
        if command.records:
            context.enter_context(shims.ffmpeg_on_path())
            render_without_display()
        if command.acts:
            context.enter_context(acting_with_masks(command.target.partition(":")[0]))
        if command.draws:
            context.enter_context(figures_without_display(name))
        try:
            call(command.target)
        except DependencyNotInstalled as error:
            raise UserError(f"{error} (pip install 'sb3-policyopt[envs]' installs what the environments need)") from error
        except TypeError as error:
            sentence = unknown_argument(error) if command.acts else None
            if sentence is None:
                raise
            raise UserError(f"--env-kwargs: {sentence}") from error


def call(target: str) -> None:
    """
    Call a function, or run a module as a script.

    :param target: ``module:function`` or ``module``
    """
    if ":" in target:
        function = registry.resolve(target)
        assert callable(function)
        function()
    else:
        sys.modules.pop(target, None)  # else runpy warns that it was imported before
        runpy.run_module(target, run_name="__main__")


def command_line(name: str, argv: list[str]) -> AbstractContextManager[None]:
    """
    Within the context, ``sys.argv`` is the command line of one command.

    :param name: name of the command
    :param argv: its options
    :return: the context
    """
    return replaced(sys, "argv", [f"sb3-policyopt {name}", *argv])


def our_vec_envs_among_choices() -> AbstractContextManager[None]:
    """
    Within the context, ``--vec-env`` also takes the ``VEC_ENVS`` of :class:`.experiment.Experiment`.

    :return: the context
    """
    owner = argparse._ActionsContainer  # the class that defines the method
    original = owner.add_argument

    def add_argument(self: argparse.ArgumentParser, *names: str, **options: Any) -> argparse.Action:
        if "--vec-env" in names:
            options["choices"] = [*options["choices"], *VEC_ENVS]
        return original(self, *names, **options)

    return replaced(owner, "add_argument", add_argument)


@contextmanager
def figures_without_display(name: str) -> Iterator[None]:
    """
    Within this context, figures are written into the current folder if there is no display.

    :param name: name of the command, for the names of the files
    """
    from matplotlib import pyplot as plt

    if plt.get_backend().lower() not in FILE_BACKENDS:
        yield
        return

    def save(*_: object, **__: object) -> None:
        for number in plt.get_fignums():
            path = Path(f"{name}_{number}.png")
            plt.figure(number).savefig(path)
            print(f"No display: the figure is in {path}")

    with replaced(plt, "show", save):
        yield


train = partial(run, "train")
enjoy = partial(run, "enjoy")
record_video = partial(run, "record_video")
record_training = partial(run, "record_training")
benchmark = partial(run, "benchmark")
plot_train = partial(run, "plot_train")
all_plots = partial(run, "all_plots")
plot_from_file = partial(run, "plot_from_file")

"""rl-zoo3's commands, run in this process with PPO and TRPO registered; their options pass through unchanged."""

import argparse
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium.error import DependencyNotInstalled

import sb3_policyopt.zoo  # noqa: F401  registers the algorithms
from sb3_policyopt.errors import UserError
from sb3_policyopt.zoo import preflight, shims
from sb3_policyopt.zoo import torchrun as ranks


class ZooCommand(NamedTuple):
    """
    A command of rl-zoo3: ``module:function`` to call or ``module`` to run as a script, and what is done before.

    ``records`` marks the commands that render without a window, ``draws`` those that end by showing figures.
    """

    target: str
    check: Callable[[list[str]], None]
    records: bool = False
    draws: bool = False


#: The backends of matplotlib that draw into files only; it picks one of them where there is no display.
FILE_BACKENDS = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}

COMMANDS = {
    "train": ZooCommand("rl_zoo3.train:train", preflight.check_training),
    "enjoy": ZooCommand("rl_zoo3.enjoy:enjoy", preflight.check_agent),
    "record_video": ZooCommand("rl_zoo3.record_video", preflight.check_agent, records=True),
    "record_training": ZooCommand("rl_zoo3.record_training", preflight.check_agent, records=True),
    "benchmark": ZooCommand("rl_zoo3.benchmark", preflight.check_benchmark),
    "plot_train": ZooCommand("rl_zoo3.plots:plot_train", preflight.check_runs, draws=True),
    "all_plots": ZooCommand("rl_zoo3.plots:all_plots", preflight.check_runs, draws=True),
    "plot_from_file": ZooCommand("rl_zoo3.plots:plot_from_file", preflight.check_input, draws=True),
}


def run(name: str, argv: list[str]) -> int:
    """
    Run a command of rl-zoo3.

    :param name: its name
    :param argv: its options
    :return: exit code
    """
    command = COMMANDS[name]
    if not preflight.wants_help(argv):
        command.check(argv)
    with ExitStack() as context:
        if name == "train" and not preflight.wants_help(argv):
            argv = context.enter_context(ranks.training_options(argv))
        context.enter_context(command_line(name, argv))
        if name == "train":
            context.enter_context(our_vec_envs_among_choices())
        if shims.children_are_stock(name):
            context.enter_context(shims.our_children())
        if name == "benchmark":
            context.enter_context(shims.namespaced_environments())
        if command.records:
            context.enter_context(shims.ffmpeg_on_path())
            render_without_display()
        if command.draws:
            context.enter_context(figures_without_display(name))
        try:
            call(command.target)
        except DependencyNotInstalled as error:
            raise UserError(f"{error} (pip install 'sb3-policyopt[envs]' brings what the environments need)") from error
    return 0


def call(target: str) -> None:
    """
    Call a function, or run a module as a script.

    :param target: ``module:function`` or ``module``
    """
    module, _, function = target.partition(":")
    if function:
        getattr(importlib.import_module(module), function)()
    else:
        runpy.run_module(module, run_name="__main__")


@contextmanager
def command_line(name: str, argv: list[str]) -> Iterator[None]:
    """
    Within this context, ``sys.argv`` is the command line of one command.

    :param name: name of the command
    :param argv: its options
    """
    original = sys.argv
    sys.argv = [f"sb3-policyopt {name}", *argv]
    try:
        yield
    finally:
        sys.argv = original


@contextmanager
def our_vec_envs_among_choices() -> Iterator[None]:
    """Within this context, ``--vec-env`` takes "envpool" and "shared", which :class:`.experiment.Experiment` understands."""
    original = argparse._ActionsContainer.add_argument

    def add_argument(self: Any, *names: str, **options: Any) -> argparse.Action:
        if "--vec-env" in names:
            options["choices"] = [*options["choices"], "envpool", "shared"]
        return original(self, *names, **options)

    argparse._ActionsContainer.add_argument = add_argument  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse._ActionsContainer.add_argument = original  # type: ignore[method-assign]


def render_without_display() -> None:
    """Let MuJoCo render on a Linux machine without a display, where it would look for a window."""
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"))):
        os.environ["MUJOCO_GL"] = "egl"


@contextmanager
def figures_without_display(name: str) -> Iterator[None]:
    """
    Within this context, figures that no window can show are written into the current folder.

    :param name: name of the command, for the names of the files
    """
    from matplotlib import pyplot as plt

    if plt.get_backend().lower() not in FILE_BACKENDS:
        yield
        return
    original = plt.show

    def save(*_: object, **__: object) -> None:
        for number in plt.get_fignums():
            path = Path(f"{name}_{number}.png")
            plt.figure(number).savefig(path)
            print(f"No display: the figure is in {path}")

    plt.show = save
    try:
        yield
    finally:
        plt.show = original


train = partial(run, "train")
enjoy = partial(run, "enjoy")
record_video = partial(run, "record_video")
record_training = partial(run, "record_training")
benchmark = partial(run, "benchmark")
plot_train = partial(run, "plot_train")
all_plots = partial(run, "all_plots")
plot_from_file = partial(run, "plot_from_file")

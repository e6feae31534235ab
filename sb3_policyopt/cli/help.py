"""The help texts: examples, defaults, and the same form for the parsers of this package and of rl-zoo3."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from sb3_policyopt.process import replaced


class Example(NamedTuple):
    """One command line, without the ``sb3-policyopt`` in front, and what it does."""

    command: str
    purpose: str


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "train": (
        Example("train --algo trpo --env CartPole-v1 --progress", "train by the hyperparameter file, with a progress bar"),
        Example("train --algo ppo --env Pendulum-v1 -n 50000 --eval-freq 10000", "50,000 steps, an evaluation every 10,000"),
        Example("train --algo ppo --env Pendulum-v1 -params n_envs:8 ent_coef:lin_0.01", "change hyperparameters"),
        Example("train --algo ppo --env HalfCheetah-v5 --vec-env shared", "environments in worker processes"),
        Example("train --algo trpo_lstm --env CartPoleNoVel-v1", "a policy with memory, where velocities are not observed"),
        Example("train --algo ppo_mask --env MaskedRoute-v0", "a policy with masks, where most actions are forbidden"),
        Example(
            "train --algo trpo --env Pendulum-v1 -optimize --n-trials 100 --storage study.log --study-name pendulum",
            "search hyperparameters",
        ),
    ),
    "enjoy": (
        Example("enjoy --algo trpo --env CartPole-v1 -f logs", "watch the latest run"),
        Example("enjoy --algo trpo --env CartPole-v1 -f logs --load-best --no-render -n 5000", "evaluate its best model"),
    ),
    "benchmark": (Example("benchmark --log-dir logs --no-hub", "evaluate every agent in logs/ into benchmark.md"),),
    "plot": (
        Example("plot logs/trpo/CartPole-v1_1", "write training.png into the run folder"),
        Example("plot logs/trpo logs/ppo --out comparison.pdf", "all runs on one page; seeds of an experiment are pooled"),
    ),
    "doctor": (
        Example("doctor logs/trpo/CartPole-v1_1", "examine one run"),
        Example("doctor logs/ppo", "examine every run of a folder"),
    ),
    "plot_train": (Example("plot_train -a trpo -e CartPole-v1 -f logs -w 100", "returns, smoothed over 100 episodes"),),
    "all_plots": (Example("all_plots -a ppo trpo -e Pendulum-v1 -f logs -o results", "compare, and save into results.pkl"),),
    "plot_from_file": (Example("plot_from_file -i results -l PPO TRPO -b -o comparison", "draw results.pkl with box plots"),),
    "record_video": (
        Example("record_video --algo ppo --env CartPole-v1 -f logs -n 1000", "film 1,000 steps of the latest run"),
    ),
    "record_training": (
        Example("record_training --algo ppo --env CartPole-v1 -f logs --gif", "film each checkpoint, and join them in a GIF"),
    ),
    "push_to_hub": (
        Example("push_to_hub --algo ppo --env CartPole-v1 -f logs -orga NAME --dry-run card", "write all files, send nothing"),
        Example("push_to_hub --algo ppo --env CartPole-v1 -f logs -orga NAME --load-best", "publish the best model"),
    ),
    "load_from_hub": (
        Example("load_from_hub --algo ppo --env CartPole-v1 -orga NAME -f logs", "download without unpickling"),
        Example("load_from_hub --algo ppo --env CartPole-v1 -orga sb3 -f logs --trust", "a pickled agent of stock SB3"),
    ),
}
"""By command. Tests run each through the parser of its command."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of description and epilog, and adds a default to what does not name one itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        unset = action.default is None or action.default is False or action.default in ("", [])
        if unset or "default" in text.lower() or "%" in text:
            return action.help
        return super()._get_help_string(action)


def examples(name: str) -> str:
    """
    Write the examples of a command.

    :param name: name of the command
    :return: a heading, and two lines for each example
    """
    lines = [f"  # {example.purpose}\n  sb3-policyopt {example.command}" for example in EXAMPLES[name]]
    return "\n".join(["examples:", *lines])


def new_parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """
    Make the parser of a command of this package.

    :param name: name of the command
    :param description: what it does
    :param epilog: what follows the examples
    :return: the parser, without options
    """
    return argparse.ArgumentParser(
        prog=f"sb3-policyopt {name}",
        description=description,
        epilog="\n\n".join(filter(None, [examples(name), epilog])),
        formatter_class=HelpFormatter,
    )


def help_of_zoo(name: str, summary: str) -> AbstractContextManager[None]:
    """
    Within the context, the help of rl-zoo3's parsers says what the command does, shows defaults, and ends with examples.

    :param name: name of the command
    :param summary: what it does
    :return: the context
    """
    original: Callable[[argparse.ArgumentParser], str] = argparse.ArgumentParser.format_help

    def format_help(self: argparse.ArgumentParser) -> str:
        self.prog = f"sb3-policyopt {name}"  # rl-zoo3's plots have their description here
        self.description = f"{summary[0].upper()}{summary[1:]}. The options are those of rl-zoo3."
        self.epilog = examples(name)
        self.formatter_class = HelpFormatter
        return original(self)

    return replaced(argparse.ArgumentParser, "format_help", format_help)

"""The help texts: what they list, and that each example is a command line that its command takes."""

import argparse
import shlex

import pytest

from sb3_policyopt.cli import doctor, hub, plot
from sb3_policyopt.cli.help import EXAMPLES, HelpFormatter
from sb3_policyopt.cli.main import COMMANDS, main, usage
from sb3_policyopt.process import replaced

pytestmark = pytest.mark.fast

PARSERS = {
    "plot": plot.parser,
    "doctor": doctor.parser,
    "push_to_hub": hub.push_parser,
    "load_from_hub": hub.load_parser,
}
"""Of the commands whose options are of this package."""

LISTED = """\
Train and evaluate:
  train
  enjoy
  benchmark
Read and draw runs:
  plot
  doctor
  plot_train
  all_plots
  plot_from_file
Film agents:
  record_video
  record_training
Hugging Face Hub:
  push_to_hub
  load_from_hub"""


def test_the_algorithms_are_listed() -> None:
    listed = usage().split("Algorithms")[1].split("Options")[0]
    assert [line.split() for line in listed.splitlines() if line.startswith("  ")] == [
        ["ppo", "PPO"],
        ["trpo", "TRPO"],
        ["ppo_lstm", "RecurrentPPO"],
        ["trpo_lstm", "RecurrentTRPO"],
        ["ppo_mask", "MaskablePPO"],
        ["trpo_mask", "MaskableTRPO"],
    ]


class Parsed(Exception):
    """A parser of rl-zoo3 has taken a command line."""


def parse_with_zoo(name: str, options: list[str]) -> None:
    """Parse the options of a command of rl-zoo3 with the parser that it makes, and do nothing else."""
    commands = pytest.importorskip("sb3_policyopt.zoo.commands")
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *arguments: list[str]) -> None:
        raise Parsed(parse(self, *arguments))

    with (
        replaced(argparse.ArgumentParser, "parse_args", only_parse),
        commands.command_line(name, options),
        commands.our_vec_envs_among_choices(),
        pytest.raises(Parsed),
    ):
        commands.call(commands.COMMANDS[name].target)


def test_the_commands_are_listed_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    listed = [line[:19].rstrip() for line in text.split("Algorithms")[0].splitlines()[4:] if line]
    assert "\n".join(listed) == LISTED
    assert text.startswith("usage: sb3-policyopt [-h] [--version] COMMAND ...\n")
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_call_without_a_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.strip() == usage()


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    name, number = capsys.readouterr().out.split()
    assert name == "sb3-policyopt" and number[0].isdigit()


def test_every_command_has_examples_of_its_own() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()
    assert {example.command.split()[0] for name in EXAMPLES for example in EXAMPLES[name]} == set(COMMANDS)
    assert all(example.command.startswith(f"{name} ") for name in EXAMPLES for example in EXAMPLES[name])
    assert {name for name, command in COMMANDS.items() if not command.of_zoo} == PARSERS.keys()


def examples_of_usage() -> list[str]:
    lines = usage().split("Examples:")[1].split("\n\n")[0].splitlines()
    return [line.strip().removeprefix("sb3-policyopt ") for line in lines if line.strip()]


LINES = [example.command for name in EXAMPLES for example in EXAMPLES[name]] + examples_of_usage()


@pytest.mark.parametrize("line", LINES)
def test_every_example_is_parsed(line: str) -> None:
    name, *options = shlex.split(line)
    if name in PARSERS:
        PARSERS[name]().parse_args(options)
    else:
        parse_with_zoo(name, options)


def test_an_option_that_does_not_exist_is_not_parsed() -> None:
    """The test above would see a wrong example."""
    with pytest.raises(SystemExit):
        PARSERS["plot"]().parse_args(["run", "--no-such-option"])
    with pytest.raises(BaseException, match="2"):
        parse_with_zoo("enjoy", ["--no-such-option"])


@pytest.mark.parametrize("name", PARSERS)
def test_help_of_our_own_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sb3-policyopt {name} [-h]")
    assert "examples:" in text
    assert all(f"  sb3-policyopt {example.command}" in text.splitlines() for example in EXAMPLES[name])


def test_defaults_are_shown_once() -> None:
    text = " ".join(hub.push_parser().format_help().split())
    assert "log folder (default: logs)" in text
    assert "default: ALGO-ENV (default" not in text, "an option that names its default shows no other"
    assert "(default: None)" not in text and "(default: False)" not in text
    assert "(default: seeds)" in " ".join(plot.parser().format_help().split())


@pytest.mark.parametrize("name", ["train", "plot_train"])
def test_help_of_commands_of_the_zoo(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``plot_train`` too, whose parser has a sentence in place of its name in rl-zoo3."""
    pytest.importorskip("rl_zoo3")
    before = argparse.ArgumentParser.format_help
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sb3-policyopt {name} [-h]")
    assert "The options are those of rl-zoo3." in " ".join(text.split())
    assert f"  sb3-policyopt {EXAMPLES[name][0].command}" in text.splitlines()
    assert "(default: None)" not in text
    assert argparse.ArgumentParser.format_help is before


def test_a_percent_sign_in_a_help_text_is_left_as_it_is() -> None:
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--share", default=3, help="100%% of %(default)s")
    assert "100% of 3\n" in parser.format_help()

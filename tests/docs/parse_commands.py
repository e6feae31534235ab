"""
Read command lines from standard input, a JSON list of lists of words, and let each program parse its options, no more.

Prints a JSON list: "" where all options were accepted, else what the program said.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
from typing import Any


class Parsed(BaseException):
    """The program has parsed its options; it ends here."""


def parse_args(self: Any, args: Any = None, namespace: Any = None) -> None:
    """Parse as ever, then stop."""
    original(self, args, namespace)
    raise Parsed


def answer(words: list[str]) -> str:
    """What a program says to its options."""
    program, arguments = words[0], words[1:]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code: Any
            if program == "sb3-policyopt":
                code = main(arguments)
            else:
                sys.argv = [program, *arguments]
                code = runpy.run_module(program, run_name="__main__") and 0
        except Parsed:
            return ""
        except SystemExit as exit_:
            code = exit_.code
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
    return "" if code == 0 and ({"--help", "--version"} & set(arguments)) else f"exit code {code}: {out.getvalue()[-600:]}"


if __name__ == "__main__":
    original = argparse.ArgumentParser.parse_args
    setattr(argparse.ArgumentParser, "parse_args", parse_args)  # noqa: B010 (to mypy a method cannot be assigned)
    from sb3_policyopt.cli.main import main

    answers = [answer(words) for words in json.load(sys.stdin)]
    print("\x1e" + json.dumps(answers))

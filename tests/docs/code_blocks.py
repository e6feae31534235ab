"""
The code blocks and commands of README.md and docs/, and how they are made short enough for a test.

Only numbers change: timesteps in :func:`shortened`, and ``-n`` of training commands in :func:`short_command`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![`\w])`((?:sb3-policyopt|python -m|make|torchrun|pytest) [^`\n]+)`(?!`)")
STEPS = 2048
EPISODES = 2


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line of its first line."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [Block(found[1], found[2], text[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(text)]


def shortened(code: str) -> str:
    """Python code with fewer timesteps and episodes, and nothing else changed."""
    code = re.sub(r"(\.learn\(\s*)([\d_]+)", lambda m: m[1] + str(min(int(m[2]), STEPS)), code)
    code = re.sub(r"(n_eval_episodes=)\d+", rf"\g<1>{EPISODES}", code)
    return re.sub(r"^(evaluate_policy\(.*, )\d+\)$", rf"\g<1>{EPISODES})", code, flags=re.MULTILINE)


def script(page: str, prelude: str, inserted: dict[str, str]) -> tuple[str, list[tuple[int, str]]]:
    """
    All Python blocks of a page as one script, which announces each block by a line on standard output.

    :param page: its name
    :param prelude: code before the first block
    :param inserted: code before each block that has the word in it
    :return: the script; for each block its line, and the output that a ``text`` block below it quotes or a prompt asks for
    """
    parts, expected = [prelude, "import doctest as _doctest"], []
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language != "python":
            continue
        before = [code for word, code in inserted.items() if word in block.text]
        code = "\n".join([*before, shortened(block.text)])
        quoted = after.text if after is not None and after.language == "text" else ""
        if code.startswith(">>>"):
            code = (
                f"_test = _doctest.DocTestParser().get_doctest({code!r}, globals(), {page!r}, None, 0)\n"
                "assert _doctest.DocTestRunner().run(_test, clear_globs=False).failed == 0"
            )
        parts.append(f'if __name__ == "__main__":\n    print("\\x1e{block.line}", flush=True)\n{code}')
        expected.append((block.line, quoted))
    return "\n".join(parts), expected


def commands(page: str, inline: bool = True) -> list[tuple[int, str]]:
    """The commands of a page with their lines: those in ``bash`` blocks, and ``inline`` those in running text."""
    text = PAGES[page].read_text(encoding="utf-8")
    found = []
    for block in blocks(page):
        if block.language == "bash":
            joined = block.text.replace("\\\n", " ")
            for line in joined.splitlines():
                for part in re.split(r"\s*&&\s*", re.sub(r"(^|\s)#.*", "", line)):
                    if part.strip():
                        found.append((block.line, part.strip()))
    prose = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    if not inline:
        return found
    found += [(prose[: match.start()].count("\n") + 1, match[1]) for match in INLINE.finditer(prose)]
    return found


def console(page: str) -> list[tuple[str, str]]:
    """The commands of ``console`` blocks, with the output that is quoted below each."""
    pairs = []
    for block in blocks(page):
        if block.language == "console":
            for part in block.text.split("$ ")[1:]:
                command, _, output = part.partition("\n")
                pairs.append((command, output.strip()))
    return pairs


def words(command: str) -> list[str]:
    """A command line as its words; placeholders become values."""
    for placeholder, value in (("COMMAND", "train"), ("ALGO", "ppo"), ("ENV", "CartPole-v1"), ("SEED", "0")):
        command = re.sub(rf"\b{placeholder}\b", value, command)
    return shlex.split(command)


def short_command(arguments: list[str]) -> list[str]:
    """The arguments of a command of ours, with fewer timesteps if it trains."""
    return [*arguments, "-n", str(STEPS)] if arguments[0] == "train" and "-n" not in arguments else arguments

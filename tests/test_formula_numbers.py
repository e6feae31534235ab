"""``pytest -k`` with a number of the table in docs/formulas.md selects its tests, in the file that the table names."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| ([STPMR]\d+) \|.*\| `(tests/[^`]+)` \|$", re.MULTILINE)
TABLE = ROW.findall((ROOT / "docs" / "formulas.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def collected() -> list[str]:
    folders = sorted({match[0] for _, path in TABLE if (match := re.match(r"tests/\w+", path))})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_the_table_was_found() -> None:
    numbers = [number for number, _ in TABLE]
    classic = [*(f"S{i}" for i in range(1, 6)), *(f"T{i}" for i in range(1, 12)), *(f"P{i}" for i in range(1, 7))]
    assert numbers == [*classic, "M1", "R1", "R2"]


@pytest.mark.parametrize(("number", "path"), TABLE, ids=[number for number, _ in TABLE])
def test_the_number_selects_tests_of_the_file_in_its_row(number: int, path: Path, collected: Any) -> None:
    """``-k`` takes every test whose name holds the word."""
    selected = [test for test in collected if re.search(rf"::test_(\w+_)?{number}_", test)]
    assert any(test.startswith(path) for test in selected), f"no test of {path} has {number} in its name: {selected[:3]}"

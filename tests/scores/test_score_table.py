"""What stands in docs/scores.md, from rows made for the purpose."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scores import charts, entries, runs, table

IDENTITY = entries.identity(entries.load("trpo", "HalfCheetah-v5"))


def row(
    seed: int, mean: int, implementation: str = "ours", entry_hash: str = IDENTITY, entry: str = "shipped"
) -> dict[str, str]:
    own: dict[str, Any] = {
        "implementation": implementation,
        "entry_hash": entry_hash,
        "entry": entry,
        "seed": str(seed),
        "mean": str(mean),
    }
    common: dict[str, Any] = {
        "algo": "trpo",
        "env_id": "HalfCheetah-v5",
        "n_timesteps": "1000000",
        "wall_seconds": "90",
        "curve": "1 2 3 4",
    }
    return {**dict.fromkeys(runs.COLUMNS, ""), **common, **own}


ROWS = [
    *(row(seed, mean) for seed, mean in enumerate([5000, 6000, 7000, 1800])),
    *(row(seed, mean, "stock") for seed, mean in enumerate([4000, 1700])),
    row(1000, 4321, entry_hash="other", entry="shared gamma=0.98"),
]


def test_the_line_of_an_entry() -> None:
    line = table.main_table(ROWS).splitlines()[2]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:4] == ["HalfCheetah-v5", "TRPO", "1,000,000", "4"]
    assert cells[4].startswith("5,500 [")  # of 5000 and 6000
    assert cells[5] == "3 of 4"
    assert cells[6] == "2,850 (2)"
    assert cells[7] == "0.88"  # of eight pairs only 1800 against 4000 is lost
    assert cells[8].startswith("4,471 ± 804.9 (tianshou)")
    assert cells[9:] == ["1.5", "5,000, 6,000, 7,000, 1,800"]
    assert "over the 1 environments" in table.main_table(ROWS) and "0.88 [" in table.main_table(ROWS)


def test_what_was_tried_beside_it() -> None:
    lines = table.tried_table(ROWS).splitlines()
    assert lines[2] == "| HalfCheetah-v5 | TRPO | `shared gamma=0.98` | 1,000,000 | 1000 | 4,321 |"
    assert "took 0.0 core-hours" in lines[-1]
    assert "4,321" not in table.main_table(ROWS)


def test_the_document_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    document = tmp_path / "scores.md"
    marks = [f"<!-- {name} -->\nold\n<!-- end of {name} -->" for name in ("table", "tried", "sources")]
    document.write_text("before\n" + "\nbetween\n".join(marks) + "\nafter\n")
    table.write(ROWS, document)
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and text.count("between") == 2
    assert "old" not in text and "5,500" in text and "4,321" in text and "Tianshou" in text
    table.write(ROWS, document)
    assert document.read_text() == text


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "scores.md"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="lacks <!-- table -->"):
        table.write(ROWS, document)


def test_the_table_of_the_repository_can_be_made() -> None:
    """Every row of the CSV file finds its place."""
    rows = runs.read()
    assert len(table.main_table(rows).splitlines()) + len(table.tried_table(rows).splitlines()) > 10


def test_both_charts_are_drawn(tmp_path: Path) -> None:
    charts.draw_all(ROWS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "score_curves.png"}

"""What stands in docs/scores.md and README.md, from rows made for the purpose."""

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
        "commit": "0123456789",
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
    assert cells[6] == "2,850 (2, the same)"
    assert cells[7] == "0.88"  # of eight pairs only 1800 against 4000 is lost
    assert cells[8].startswith("4,471 ± 804.9 (tianshou)")
    assert cells[9:] == ["1.5", "5,000, 6,000, 7,000, 1,800"]
    assert "(1 of the environments)" in table.main_table(ROWS) and "0.88 [" in table.main_table(ROWS)


def test_one_seed_is_no_probability_over_all() -> None:
    assert "probability" not in table.main_table(ROWS[:4] + ROWS[4:5])


def test_another_entry_of_stock_says_so_and_both_are_listed() -> None:
    rows = [*ROWS[:4], row(0, 3000, "stock", "other", "defaults")]
    assert "| 3,000 (1, another) |" in table.main_table(rows)
    assert table.stock_table(rows).splitlines()[2:] == ["| HalfCheetah-v5 | TRPO | `defaults` | 1,000,000 | 0 | 1.5 | 3,000 |"]


def test_only_what_is_shipped_now_is_called_so() -> None:
    rows = [row(0, 1, "stock"), row(0, 2, "stock", "other")]
    assert [line.split("`")[1] for line in table.stock_table(rows).splitlines()[2:]] == ["an earlier entry", "shipped"]


def test_an_environment_without_an_entry_is_listed_as_tried() -> None:
    rows = [{**row(0, 5, entry_hash="other", entry="constructor"), "env_id": "MyEnv-v0"}]
    assert "| MyEnv-v0 | TRPO | `constructor` | 1,000,000 | 0 | 1.5 | 5.0 |" in table.tried_table(rows)
    assert "MyEnv" not in table.main_table(rows)


def test_what_was_tried_beside_it() -> None:
    lines = table.tried_table(ROWS).splitlines()
    assert lines[2] == "| HalfCheetah-v5 | TRPO | `shared gamma=0.98` | 1,000,000 | 1000 | 1.5 | 4,321 |"
    assert "took 0.0 core-hours" in lines[-1]
    assert "4,321" not in table.main_table(ROWS)


def test_the_summary_has_both_algorithms_in_a_line_and_what_is_not_ten_seeds() -> None:
    ten = [row(seed, 5000 + seed) for seed in range(10)]
    assert table.summary_table(ten).splitlines()[2:] == ["| HalfCheetah-v5 |  | 5,784 | 5,004 | 4,471 | , 1.5 |"]
    assert "| 5,500 (4 seeds) |" in table.summary_table(ROWS)
    assert "5,000 (1 seed)" in table.summary_table(ROWS[:1])


@pytest.fixture
def documents(tmp_path: Path) -> tuple[Path, Path]:
    """A document and a README with old tables."""
    document, readme = tmp_path / "scores.md", tmp_path / "README.md"
    marks = [f"<!-- {name} -->\nold\n<!-- end of {name} -->" for name in ("table", "stock", "tried", "sources")]
    document.write_text("before\n" + "\nbetween\n".join(marks) + "\nafter\n")
    readme.write_text("before\n<!-- scores -->\nold\n<!-- end of scores -->\nafter\n")
    return document, readme


def test_the_documents_keep_what_stands_around_the_tables(documents: tuple[Path, Path]) -> None:
    table.write(ROWS, *documents)
    text, summary = (document.read_text() for document in documents)
    for written in (text, summary):
        assert written.startswith("before\n") and written.endswith("after\n") and "old" not in written and "5,500" in written
    assert text.count("between") == 3 and "4,321" in text and "Tianshou" in text and "4,321" not in summary
    table.write(ROWS, *documents)
    assert [document.read_text() for document in documents] == [text, summary]


@pytest.mark.parametrize(("name", "mark"), [("scores.md", "table"), ("README.md", "scores")])
def test_a_document_without_marks_is_refused(documents: tuple[Path, Path], name: str, mark: str) -> None:
    (documents[0].parent / name).write_text("nothing")
    with pytest.raises(ValueError, match=f"{name} lacks <!-- {mark} -->"):
        table.write(ROWS, *documents)


def test_the_documents_of_the_repository_have_the_tables_of_its_csv_file(tmp_path: Path) -> None:
    """If not: ``python -m benchmarks.scores table``."""
    kept = (table.DOCUMENT, table.README)
    copies = [tmp_path / document.name for document in kept]
    for document, copy in zip(kept, copies, strict=True):
        copy.write_text(document.read_text())
    table.write(runs.read(), *copies)
    assert [copy.read_text() for copy in copies] == [document.read_text() for document in kept]


def test_both_charts_are_drawn(tmp_path: Path) -> None:
    charts.draw_all(ROWS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.png", "score_curves.png"}

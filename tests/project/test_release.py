"""Version, changelog and citation agree, and the changelog has the form of Keep a Changelog."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "From SB3 and sb3-contrib"}


def version() -> str:
    (found,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found


def releases() -> list[tuple[str, str]]:
    """The headings of the changelog: version and date, the newest first."""
    return re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", CHANGELOG, re.MULTILINE)


def test_the_newest_release_is_the_version_of_the_package() -> None:
    (first, no_date), (newest, date) = releases()[:2]
    assert (first, no_date) == ("Unreleased", "")
    assert newest == version()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_releases_stand_in_order() -> None:
    versions = [Version(name) for name, _ in releases()[1:]]
    dates = [date for _, date in releases()[1:]]
    assert versions == sorted(versions, reverse=True) and len(set(versions)) == len(versions)
    assert dates == sorted(dates, reverse=True)


def test_every_heading_has_a_link() -> None:
    assert [name for name, _ in releases()] == re.findall(r"^\[([^\]]+)\]: https://", CHANGELOG, re.MULTILINE)


def test_sections_have_the_names_of_keep_a_changelog() -> None:
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= SECTIONS
    for release in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert len(headings) == len(set(headings)), release.splitlines()[0]


def test_the_citation_is_of_the_newest_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (str(citation["version"]), str(citation["date-released"])) == releases()[1]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert all({"title", "authors", "type"} <= reference.keys() for reference in [citation, *citation["references"]])

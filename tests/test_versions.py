"""What pyproject.toml admits is what the constraints files pin, so that the make targets try both ends of it."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)


def extra(name: str) -> list[Requirement]:
    """The requirements of one list of pyproject.toml, those of the project's own extras in their place."""
    (written,) = re.findall(rf"^{name} = \[(.*?)\](?:\s*#.*)?$", PROJECT, re.DOTALL | re.MULTILINE)
    requirements = [Requirement(text) for text in re.findall(r'"([^"]+)"', re.sub(r"(?m)^\s*#.*$", "", written))]
    ours = [inner for one in requirements if one.name == "sb3-policyopt" for part in one.extras for inner in extra(part)]
    return [one for one in requirements if one.name != "sb3-policyopt"] + ours


SUPPORTED = [*extra("requires"), *extra("dependencies"), *extra("tests")]


def pins(file: str, python: str) -> dict[str, Version]:
    """What a constraints file pins for one version of Python."""
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    wanted = [one for one in map(Requirement, filter(None, lines)) if applies(one, python)]
    names = [canonicalize_name(one.name) for one in wanted]
    assert len(set(names)) == len(names), f"{file} pins something twice for Python {python}"
    return {canonicalize_name(one.name): Version(str(one.specifier).removeprefix("==")) for one in wanted}


def applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


def lower_bound(specifiers: SpecifierSet) -> "Version | None":
    return next((Version(one.version) for one in specifiers if one.operator == ">="), None)


def test_the_versions_of_python_were_found() -> None:
    assert PYTHONS[0] == "3.10" and f'requires-python = ">={PYTHONS[0]}"' in PROJECT
    assert {"hatchling", "torch", "optuna", "envpool", "pytest"} <= {one.name for one in SUPPORTED}


def test_every_requirement_says_where_it_begins() -> None:
    assert [one.name for one in SUPPORTED if lower_bound(one.specifier) is None] == []


def test_a_package_begins_at_the_same_version_everywhere() -> None:
    bounds = {(canonicalize_name(one.name), lower_bound(one.specifier)) for one in SUPPORTED}
    assert len(bounds) == len({name for name, _ in bounds})


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_both_ends_are_pinned_within_the_bounds(file: str, python: str) -> None:
    pinned = pins(file, python)
    for one in SUPPORTED:
        if applies(one, python):
            pin = pinned.get(canonicalize_name(one.name))
            assert pin is not None and pin in one.specifier, f"{one} in {file} for Python {python}"


def test_the_lowest_pins_are_the_bounds() -> None:
    """A later pin is allowed where a version of Python came after the bound's wheels: another Python tries the bound."""
    for one in SUPPORTED:
        name = canonicalize_name(one.name)
        lowest = min(pins("constraints-lowest.txt", python)[name] for python in PYTHONS if applies(one, python))
        assert lowest == lower_bound(one.specifier), str(one)


def test_every_part_has_fast_tests() -> None:
    """Those apart whose tests start processes or need a GPU."""
    files = list((ROOT / "tests").glob("*/test_*.py"))
    fast = {file.parent.name for file in files if "mark.fast" in file.read_text(encoding="utf-8")}
    assert {file.parent.name for file in files} - fast == {"distributed", "faults", "gpu"}

"""The project's own files: workflows, templates and configuration are valid, and name what exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md")]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def load(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def test_the_workflows_are_there() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests", "wheel"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_and_an_end(path: Path) -> None:
    workflow = load(path)
    assert True in workflow, "YAML 1.1 reads `on:` as True"
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow["concurrency"]) == {"group", "cancel-in-progress"}
    for job in workflow["jobs"].values():
        assert "uses" in job or (job["timeout-minutes"] <= 90 and "runs-on" in job)
        assert set(job.get("needs", "").split()) <= workflow["jobs"].keys()
        for step in job.get("steps", []):
            assert ("uses" in step) != ("run" in step)
            assert re.search(r"@\S+$", step.get("uses", "@version")), "an action has a version"
            assert "github." not in step.get("run", ""), "a script gets such values through env, as they can contain code"


def test_only_the_publishing_job_gets_a_token() -> None:
    jobs = [(path.stem, name, job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]
    granted = {(stem, name): job["permissions"] for stem, name, job in jobs if "permissions" in job}
    assert granted == {("release", "publish"): {"id-token": "write"}}


def test_the_tests_run_on_every_supported_python_with_both_ends() -> None:
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    jobs = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    matrix = jobs["versions"]["strategy"]["matrix"]
    assert matrix["python"] == supported
    targets = {one["dependencies"]: one["target"] for one in matrix["include"]}
    assert targets == {"lowest": "test-lowest", "newest": "test-python"}
    assert any(step.get("run") == ".ci/run" for step in jobs["all"]["steps"])


TEMPLATE = ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md"


@pytest.mark.parametrize("path", [*WORKFLOWS, *PAGES, TEMPLATE], ids=lambda path: path.name)
def test_make_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("${{ matrix.target }}", "test-lowest")
    named = {target for call in re.findall(r"(?:`|run: )make ((?:[a-z-]+ ?)+)", text) for target in call.split()}
    assert named <= TARGETS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_paths_of_a_page_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:sb3_policyopt|tests|examples|benchmarks|docs)/[\w/.]+)`", text)
    assert [name for name in links + paths if not (ROOT / name).exists() and name not in PROPOSED] == []


PROPOSED = {"sb3_policyopt/distributions/beta.py"}
"""Files that CONTRIBUTING.md tells a contributor to write."""


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_has_what_github_needs(path: Path) -> None:
    form = load(path)
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers)
    assert all(field["attributes"]["label"] for field in fields)


def test_a_report_of_other_numbers_asks_for_traces() -> None:
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / "numbers.yml").read_text(encoding="utf-8")
    assert "python -m benchmarks.traces record" in text and "python -m benchmarks.traces compare" in text


def test_pre_commit_runs_what_make_runs() -> None:
    hooks = {hook["id"] for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy", "end-of-file-fixer", "check-yaml", "check-toml"} <= hooks


def test_the_test_folders_are_those_of_the_table() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Tests")[1].split("Three markers")[0]
    named = {folder for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for folder in re.findall(r"`(\w+)/`", row)}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/*.py")}
    assert folders == named

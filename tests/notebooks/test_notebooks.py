"""
The notebooks of examples/ run from the first cell to the last, as a reader would run them.

Cells are told apart by tags: ``install`` (left out here), ``parameters`` (a cell with other values is run after it, as by
papermill) and ``expectation`` (its assertions must hold).
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hub_client import Client
from loopback import Hub
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXPECTATIONS = {"tour.ipynb": 6, "huggingface_course_unit.ipynb": 1}
SHORT_TOUR = {
    "TRAINING_STEPS": 4096,
    "BROKEN_STEPS": 4096,
    "RESUMED_STEPS": 4096,
    "N_EVAL_EPISODES": 2,
    "VIDEO_STEPS": 10,
}
SHORT_UNIT = {"TRAINING_STEPS": 16_384, "N_EVAL_EPISODES": 2, "VIDEO_STEPS": 10}


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def tagged(notebook: Any, tag: str) -> Any:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def names_set_by(source: str) -> Any:
    return {
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
    }


def shortened(notebook: Any, parameters: Any) -> Any:
    """A copy without the installation, and with other parameters."""
    (cell,) = tagged(notebook, "parameters")
    assert set(parameters) <= names_set_by(cell.source)
    injected = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in parameters.items()))
    position = notebook.cells.index(cell) + 1
    cells = [*notebook.cells[:position], injected, *notebook.cells[position:]]
    return nbformat.v4.new_notebook(cells=[cell for cell in cells if cell not in tagged(notebook, "install")])


def execute(name: str, parameters: Any, folder: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in a folder, in a kernel that sees no address but the client's Hub."""
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(client.folder / variable.lower()))
        client.environment[variable] = str(client.folder / variable.lower())
    notebook = shortened(read(name), parameters)
    folder.mkdir()
    runner = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    runner.execute(env=client.environment)
    client.close()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    return notebook


def printed(notebook: Any) -> Any:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:9", tmp_path / "client")  # the discard port: no server listens
    notebook = execute("tour.ipynb", SHORT_TOUR, tmp_path / "empty", client, monkeypatch)
    text = printed(notebook)
    assert "[exploding_kl]" in text and "Non-finite reward in environment" in text
    assert "12 of 12 parameter tensors are equal bit for bit" in text
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    assert (tmp_path / "empty" / "published_tour" / "replay.mp4").is_file()


def test_the_course_unit_publishes_in_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as hub:
        client = Client(hub.url, tmp_path / "client")
        parameters = SHORT_UNIT | {"USER_NAME": "me"}
        notebook = execute("huggingface_course_unit.ipynb", parameters, tmp_path / "empty", client, monkeypatch)
        repo = hub.repos["me/ppo-LunarLander-v3"]
    assert repo.messages[1:] == ["Upload PPO LunarLander-v3 trained agent"]
    files = repo.files()
    assert {"ppo-LunarLander-v3.zip", "replay.mp4", "README.md"} <= set(files)
    score = json.loads(files["results.json"])
    assert f"mean_reward={score['mean_reward']:.2f} +/- {score['std_reward']:.2f}" in printed(notebook)


@pytest.mark.slow
def test_the_course_unit_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("http://127.0.0.1:9", tmp_path / "client", token="")
    notebook = execute("huggingface_course_unit.ipynb", SHORT_UNIT, tmp_path / "empty", client, monkeypatch)
    assert "nothing was sent" in printed(notebook)
    assert (tmp_path / "empty" / "published_unit" / "ppo-LunarLander-v3.zip").is_file()


def test_an_expectation_that_does_not_hold_is_noticed(tmp_path: Path) -> None:
    failing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 + 1 == 3")])
    with pytest.raises(CellExecutionError, match="AssertionError"):
        NotebookClient(failing, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.fast
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_what_is_stored(name: str) -> None:
    """Small, executed without an error, with an installation that is explained, and without paths of a machine."""
    path, notebook = FOLDER / name, read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert tagged(notebook, "install") == code[:1] and "%pip install" in code[0].source
    before = notebook.cells[notebook.cells.index(code[0]) - 1]
    assert before.cell_type == "markdown" and "placeholder" in before.source
    expected = tagged(notebook, "expectation")
    assert len(expected) == EXPECTATIONS[name] and all("assert " in cell.source for cell in expected)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]
    assert not re.search(r'"[^"]*(/home/|/root/|/tmp/|C:\\\\)', path.read_text(encoding="utf-8"))

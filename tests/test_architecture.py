"""Which part of the package may import what, read from the sources; and what importing the package brings in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_policyopt

pytestmark = pytest.mark.fast

PACKAGE = Path(sb3_policyopt.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions; ``from a import b`` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this package"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_part_of(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def within(path: Path, *places: str) -> bool:
    return path.relative_to(PACKAGE).parts[0] in places


def test_the_sources_were_found():
    names = {str(path.relative_to(PACKAGE)) for path in SOURCES}
    assert {"ppo.py", "trpo.py", "maths/losses.py", "models/torch_policy.py"} <= names


@pytest.mark.parametrize("path", [path for path in SOURCES if within(path, "maths")], ids=lambda path: path.name)
def test_the_mathematics_needs_numpy_and_torch_only(path):
    for module in imported(path):
        assert is_part_of(module, "numpy", "torch", "sb3_policyopt.maths", *sys.stdlib_module_names), module


def uses_torch_distributed(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "distributed"]
    return any(isinstance(node.value, ast.Name) and node.value.id in ("th", "torch") for node in attributes) or any(
        is_part_of(module, "torch.distributed") for module in imported(path)
    )


def test_torch_distributed_is_used_in_one_package_only():
    assert [path.name for path in SOURCES if uses_torch_distributed(path) and not within(path, "parallel")] == []


def test_the_zoo_and_the_hub_stay_in_their_folders():
    for path in SOURCES:
        if not within(path, "zoo", "hub"):
            outside = [m for m in imported(path) if is_part_of(m, "rl_zoo3", "huggingface_hub", "huggingface_sb3")]
            assert outside == [], path


def test_importing_the_algorithms_brings_in_no_extra():
    """After stable_baselines3, nothing but the standard library and the package may be loaded, nor its optional parts."""
    script = (
        "import sys, stable_baselines3\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "from sb3_policyopt import PPO, TRPO\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(after - before - set(sys.stdlib_module_names)))\n"
        "print(*[name for name in sys.modules if name.startswith("
        "('sb3_policyopt.zoo', 'sb3_policyopt.hub', 'sb3_policyopt.plots', 'sb3_policyopt.envs'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["sb3_policyopt", ""]

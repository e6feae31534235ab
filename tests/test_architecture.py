"""Which part of the package may import what, read from the sources; and what importing the package brings in."""

import ast
import subprocess
import sys
from importlib.util import find_spec
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


LAYERS = (
    *("errors", "process", "identity", "maths", "global_state", "graphs"),
    "optimisation",
    *("distributions", "rollout", "policies"),
    "objectives",
    "models",
    *("parallel", "saving", "setup", "update_log"),
    *("on_policy", "ppo", "trpo", "maskable", "recurrent"),
    *("registry", "hyperparams", "evaluation"),
    "envs",
    *("callbacks", "recording"),
    *("plots", "doctor", "hub", "zoo"),
    *("cli", "__main__"),
)
"""The parts of the package. Each may import those before it, and itself."""


def modules() -> dict[str, set[str]]:
    """By module, the modules of the package that it imports, also inside functions and for types only."""
    names = {}
    for path in SOURCES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: {module for module in imported(path) if module in names and module != name} for name, path in names.items()}


def part_of(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_a_place_among_the_layers() -> None:
    assert {part_of(module) for module in modules() if "." in module} == set(LAYERS)


def test_layers_import_only_what_is_below_them() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in modules().items()
        for other in others
        if "." in module and "." in other and LAYERS.index(part_of(other)) > LAYERS.index(part_of(module))
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    """A package imports its modules, but importing a module of it is no import of the package."""
    graph = {name: others - {"sb3_policyopt"} for name, others in modules().items()}
    packages = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    graph = {name: {o for o in others if not (o in packages and is_part_of(name, o))} for name, others in graph.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def private_names(folder: Path) -> set[str]:
    """Names with one leading underscore that the files of a folder define."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def used_names(path: Path) -> set[str]:
    """Attributes that a file asks for, and names that it imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


def test_tests_use_no_private_name_of_the_package() -> None:
    """Those that SB3, sb3-contrib, rl-zoo3 or the tests themselves define too are not meant."""
    tests = Path(__file__).parent
    others = [
        tests,
        *(
            Path(str(spec.origin)).parent
            for name in ("stable_baselines3", "sb3_contrib", "rl_zoo3")
            if (spec := find_spec(name))
        ),
    ]
    ours = private_names(PACKAGE).difference(*map(private_names, others))
    used = {path: sorted(used_names(path) & ours) for path in tests.rglob("*.py")}
    assert {str(path.relative_to(tests)): names for path, names in used.items() if names} == {}


def test_test_modules_share_helpers_through_helper_modules() -> None:
    tests = Path(__file__).parent
    found = {path.name: [m for m in imported(path) if m.startswith("test_")] for path in tests.rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


def test_the_sources_were_found() -> None:
    names = {str(path.relative_to(PACKAGE)) for path in SOURCES}
    assert {"ppo.py", "trpo.py", "maths/losses.py", "models/torch_policy.py"} <= names


@pytest.mark.parametrize("path", [path for path in SOURCES if within(path, "maths")], ids=lambda path: path.name)
def test_the_mathematics_needs_numpy_and_torch_only(path: Path) -> None:
    for module in imported(path):
        assert is_part_of(module, "numpy", "torch", "sb3_policyopt.maths", *sys.stdlib_module_names), module


def uses_torch_distributed(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "distributed"]
    return any(isinstance(node.value, ast.Name) and node.value.id in ("th", "torch") for node in attributes) or any(
        is_part_of(module, "torch.distributed") for module in imported(path)
    )


def test_torch_distributed_is_used_in_one_package_only() -> None:
    assert [path.name for path in SOURCES if uses_torch_distributed(path) and not within(path, "parallel")] == []


def test_the_zoo_and_the_hub_stay_in_their_folders() -> None:
    for path in SOURCES:
        if not within(path, "zoo", "hub"):
            outside = [m for m in imported(path) if is_part_of(m, "rl_zoo3", "huggingface_hub", "huggingface_sb3")]
            assert outside == [], path


def test_importing_the_algorithms_brings_in_no_extra() -> None:
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

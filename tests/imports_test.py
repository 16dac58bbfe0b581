"""Imports point one way: the table of docs/architecture.md, held by reading every file."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "core": set(),
    "kernels": set(),
    "data": set(),
    "model": {"kernels"},
    "optim": {"kernels"},
    "objectives": {"model", "kernels"},
    "train": {"data", "model", "kernels", "objectives", "optim"},
    "evals": {"train", "data", "model", "kernels", "objectives", "optim"},
    "scaling": {"evals", "train", "data", "model", "kernels", "objectives", "optim"},
    "experiments": {"experiments"},
}
NEVER = {"torch", "tensorflow"}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif ast.unparse(node) == "from model import presets":
            pass  # named models, for experiments too
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path}: relative import")
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_lower_rooms(room):
    paths = list((ROOT / room).rglob("*.py"))
    assert paths, f"{room} is empty"
    for path in paths:
        ours = imported(path) & set(MAY_IMPORT)
        allowed = MAY_IMPORT[room] | {room} | ({"core"} if room != "experiments" else set())
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {ours - allowed}"


def test_sources_rest_on_nothing_of_curation():
    for path in (ROOT / "data" / "sources").rglob("*.py"):
        assert "data.curate" not in path.read_text(), path


def test_no_torch_and_no_tensorflow():
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            assert not imported(path) & NEVER, path


def test_every_room_is_listed():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(MAY_IMPORT)


def test_launch_imports_lazily():
    """What --help needs is the standard library and core; heavy imports wait for the verb."""
    tree = ast.parse((ROOT / "launch.py").read_text())
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in top} <= sys.stdlib_module_names

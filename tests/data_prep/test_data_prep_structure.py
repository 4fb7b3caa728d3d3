"""The doors inside data_prep: every room imports only rooms below it, and no two files import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "data_prep"
PREFIX = "mcjepa.data_prep."
FLOORS = (
    ("errors", "layout", "settings", "code", "process"),
    ("storage",),
    ("corpora",),
    ("filters",),
    ("decode",),
    ("plan",),
    ("dataset",),
    ("card", "workers"),
    ("deduplicate",),
    ("requeue",),
    ("job",),
)
"""From the ground up; rooms of one floor do not know each other."""
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def _modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}".removeprefix(PREFIX) for alias in node.names)


def _known(name: str, modules: dict[str, Path]) -> str:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _arrows() -> dict[str, set[str]]:
    modules = _modules()
    return {
        name: {found for found in (_known(i, modules) for i in _imports(path)) if found and found != name}
        for name, path in modules.items()
    }


def test_every_room_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in _modules() if name} == set(FLOOR)


@pytest.mark.parametrize("room", [room for floor in FLOORS for room in floor])
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in _arrows().items()
        if name.partition(".")[0] == room
        for other in others
        if (below := other.partition(".")[0]) != room and FLOOR[below] >= FLOOR[room]
    ]
    assert wrong == []


def test_no_two_files_import_each_other_by_any_way() -> None:
    TopologicalSorter(_arrows()).prepare()  # raises CycleError

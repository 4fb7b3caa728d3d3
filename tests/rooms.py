"""Which files of a room import which: what the tests of the rooms' doors are made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def imported_names(path: Path) -> Iterator[str]:
    """Full names of what a file imports from modules, wherever in it: `mcjepa.evals.cards.Score`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_within(room: str) -> dict[str, set[str]]:
    """Every file of a room, such as `flow.score`, and the files of the same room that it imports."""
    modules = {}
    for path in (REPOSITORY / room).rglob("*.py"):
        parts = path.relative_to(REPOSITORY / room).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def module_of(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    prefix = f"mcjepa.{room}."
    return {
        name: {module_of(imported.removeprefix(prefix)) for imported in imported_names(path)} - {"", name}
        for name, path in modules.items()
    }


def imports_from_above(arrows: dict[str, set[str]], floors: tuple[tuple[str, ...], ...], room: str) -> list[str]:
    """What in a room imports a room of its own floor or above.

    Args:
        arrows: of `imports_within`.
        floors: rooms from the ground up.
        room: a folder, or a file beside folders.
    """
    floor_of = {name: number for number, floor in enumerate(floors) for name in floor}
    return [
        f"{name} imports {other}"
        for name, others in arrows.items()
        if name.partition(".")[0] == room
        for other in others
        if (below := other.partition(".")[0]) != room and floor_of[below] >= floor_of[room]
    ]

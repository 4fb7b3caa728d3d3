"""The doors inside data_prep: every room imports only rooms below it, and no two files import each other."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

from tests.rooms import imports_from_above, imports_within

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
ARROWS = imports_within("data_prep")
ROOMS = [room for floor in FLOORS for room in floor]


def test_every_room_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in ARROWS if name} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    assert imports_from_above(ARROWS, FLOORS, room) == []


def test_no_two_files_import_each_other_by_any_way() -> None:
    TopologicalSorter(ARROWS).prepare()  # raises CycleError

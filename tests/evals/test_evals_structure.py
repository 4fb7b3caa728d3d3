"""The doors inside evals: kinds know the ground floor and not each other, and no two files import each other."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.rooms import REPOSITORY, imported_names, imports_from_above, imports_within

FLOORS = (
    ("measures",),
    ("progress", "study"),
    ("models", "cards", "pictures", "reading"),
    ("video_writer",),
    ("flow", "probe", "vos", "classification", "infer"),
    ("finetune",),
    ("settings", "report"),
    ("data_state", "record"),
    ("run",),
)
"""From the ground up; rooms of one floor do not know each other. Fine-tuning is tested by the probe's measures."""
ARROWS = imports_within("evals")
ROOMS = [room for floor in FLOORS for room in floor]
KINDS = ("flow", "probe", "vos", "classification", "infer", "finetune")


def test_every_room_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in ARROWS if name} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    assert imports_from_above(ARROWS, FLOORS, room) == []


def test_no_two_files_import_each_other_by_any_way() -> None:
    TopologicalSorter(ARROWS).prepare()  # raises CycleError


@pytest.mark.parametrize("settings", ["settings", *(f"{kind}.settings" for kind in KINDS)])
def test_settings_import_settings_their_checks_and_names_only(settings: str) -> None:
    assert {name for name in ARROWS[settings] if not name.endswith("settings")} <= {"progress", "measures"}


@pytest.mark.parametrize(
    ("door", "users"),
    [
        ("mcjepa.data_prep.decode", {"evals/infer/inputs.py"}),
        ("mcjepa.pipeline.stream.workers", {"evals/reading.py"}),
        ("mcjepa.data_prep.card.frame", {"evals/report/page.py"}),
        ("mcjepa.data_prep.card.charts", {"evals/report/content.py", "evals/report/page.py"}),
        ("mcjepa.data_prep.card", {"evals/report/content.py", "evals/report/page.py"}),
    ],
)
def test_a_door_of_another_room_is_used_where_it_was_made_for(door: str, users: set[str]) -> None:
    """Reading begins as in training; inference decodes videos; the report has a dataset card's frame and charts."""
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "evals").rglob("*.py")
        if any(name.startswith(door) for name in imported_names(path))
    }
    assert found == users


def test_one_kind_is_run_without_the_code_of_the_others() -> None:
    others = tuple(f"mcjepa.evals.{kind}.score" for kind in KINDS if kind != "probe")
    code = (
        "import sys, mcjepa.evals.run, mcjepa.evals.probe.score\n"
        f"print([name for name in {others} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

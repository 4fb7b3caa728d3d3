"""A run that once had a whole checkpoint always has one, whatever is damaged, saved and killed."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcjepa.data_prep.storage import Store, open_store
from mcjepa.pipeline.checkpoint.manifest import VERSION, step_name
from mcjepa.pipeline.checkpoint.resume import find_start
from mcjepa.pipeline.checkpoint.rotation import Rotation, set_aside_after
from mcjepa.pipeline.settings.train import CheckpointConfig
from mcjepa.pipeline.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))
FILES = ("state-00000-of-00002", "state-00001-of-00002")
CONTENT = {name: f"bytes of {name}".encode() * 3 for name in FILES}


def save(store: Store, step: int, upto: int = 4) -> None:
    """The writes of a save in their order; only the first `upto` of them happen when it is killed."""
    folder = f"checkpoints/{step_name(step)}"
    entries = {name: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for name, c in CONTENT.items()}
    manifest = {"version": VERSION, "step": step, "metrics": {}, "files": entries}
    writes = [(f"{folder}/{name}", content) for name, content in CONTENT.items()]
    writes += [
        (f"weights/{step_name(step)}/config.json", b"{}"),
        (f"{folder}/manifest.json", json.dumps(manifest).encode()),
    ]
    for key, content in writes[:upto]:
        store.write(key, content)


def is_whole(store: Store, step: int) -> bool:
    """Independent of the code under test."""
    folder = f"checkpoints/{step_name(step)}"
    try:
        readable = json.loads(store.read(f"{folder}/manifest.json"))["version"] == VERSION
        return readable and all(store.read(f"{folder}/{name}") == content for name, content in CONTENT.items())
    except Exception:  # absent, or no JSON: not whole
        return False


def whole_steps(store: Store) -> list[int]:
    steps = {int(key.split("/")[1].removeprefix("step-")) for key in store.list("checkpoints/step-")}
    return sorted(step for step in steps if is_whole(store, step))


DAMAGES: dict[str, Callable[[Store, str], None]] = {
    "other bytes": lambda store, folder: store.write(f"{folder}/{FILES[1]}", CONTENT[FILES[1]][::-1]),
    "cut": lambda store, folder: store.write(f"{folder}/{FILES[0]}", b"by"),
    "file gone": lambda store, folder: store.remove(f"{folder}/{FILES[0]}"),
    "manifest gone": lambda store, folder: store.remove(f"{folder}/manifest.json"),
    "manifest torn": lambda store, folder: store.write(f"{folder}/manifest.json", b'{"version": 2, "st'),
    "other version": lambda store, folder: store.write(f"{folder}/manifest.json", b'{"version": 9}'),
}
EVENTS = st.one_of(
    st.just(("save",)),
    st.tuples(st.just("kill"), st.integers(0, 4)),
    st.tuples(st.just("damage"), st.integers(0, 5), st.sampled_from(sorted(DAMAGES))),
)


def live(store: Store, events: list[tuple[object, ...]], keep_last: int) -> None:
    """A run through saves, kills at each write of a save, restarts and damage, with its promises checked throughout."""
    config = CheckpointConfig(every_steps=1, keep_last=keep_last)
    step, rotation = 0, Rotation(store, config)
    for event in events:
        before = whole_steps(store)
        if event[0] == "save":
            step += 1
            save(store, step)
            rotation.turn(step)
            assert is_whole(store, step)
        elif event[0] == "kill":
            save(store, step + 1, int(str(event[1])))
            start = find_start(store, ALONE)
            now = whole_steps(store)
            assert (start.step if start else None) == max(now, default=None)
            step = start.step if start else 0
            set_aside_after(store, step)
            rotation = Rotation(store, config)
            if start:
                rotation.trust(start)
        elif len(before) > 1:  # the last whole one is never damaged: no rule could help then
            DAMAGES[str(event[2])](store, f"checkpoints/{step_name(before[int(str(event[1])) % len(before)])}")
        assert not before or whole_steps(store)


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENTS, min_size=3, max_size=16), st.integers(1, 3))
def test_a_run_that_once_had_a_whole_checkpoint_always_has_one(
    events: list[tuple[object, ...]], keep_last: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        live(open_store(folder), [("save",), ("save",), *events], keep_last)


@pytest.mark.parametrize("seed", range(2))
def test_a_run_on_s3_always_keeps_a_whole_checkpoint(s3: str, seed: int) -> None:
    rng = random.Random(seed)
    damages = [("damage", number, kind) for number in range(3) for kind in DAMAGES]
    kinds = [*[("save",)] * 9, *(("kill", upto) for upto in range(5)), *damages]
    live(open_store(s3), [("save",), ("save",), *rng.choices(kinds, k=6)], keep_last=2)


def test_the_newest_two_of_three_damaged_a_continued_run_keeps_its_saves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, config = open_store(str(tmp_path)), CheckpointConfig(every_steps=1, keep_last=2)
    for step in (4, 7, 8):
        save(store, step)
    DAMAGES["other bytes"](store, f"checkpoints/{step_name(8)}")
    DAMAGES["cut"](store, f"checkpoints/{step_name(7)}")
    start = find_start(store, ALONE)
    assert start is not None and start.step == 4
    with caplog.at_level("WARNING"):
        set_aside_after(store, 4)
    assert "checkpoints/damaged-step-000000008" in caplog.text
    rotation = Rotation(store, config)
    for step in (5, 6):
        save(store, step)
        rotation.turn(step)
    assert whole_steps(store) == [5, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        *(f"damaged-{step_name(step)}" for step in (7, 8)), *(step_name(step) for step in (5, 6)),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "weights").glob("step-*")) == [step_name(5), step_name(6)]


def test_one_damaged_behind_the_start_steps_aside_at_the_next_save(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for step in (1, 2, 3):
        save(store, step)
    DAMAGES["other bytes"](store, f"checkpoints/{step_name(2)}")
    assert Rotation(store, CheckpointConfig(every_steps=1, keep_last=2)).turn(3) == []
    assert whole_steps(store) == [1, 3] and (tmp_path / "checkpoints" / f"damaged-{step_name(2)}").is_dir()
    save(store, 2)
    DAMAGES["file gone"](store, f"checkpoints/{step_name(2)}")
    Rotation(store, CheckpointConfig(every_steps=1, keep_last=2)).turn(3)
    assert (tmp_path / "checkpoints" / f"damaged-{step_name(2)}-2").is_dir()

"""Which checkpoints count, and which are kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.checkpoint.manifest import (
    VERSION,
    Checkpoint,
    complete_checkpoints,
    list_checkpoints,
    step_name,
)
from mcjepa.pipeline.checkpoint.resume import find_start
from mcjepa.pipeline.checkpoint.rotation import Rotation
from mcjepa.pipeline.settings.train import CheckpointConfig
from mcjepa.pipeline.world import World


def put(run: Path, step: int, loss: float = 0.0, *, manifest: bool = True) -> Path:
    """A checkpoint with one file, and its weights."""
    folder = run / "checkpoints" / step_name(step)
    folder.mkdir(parents=True)
    content = f"state of {step}".encode()
    (folder / "state").write_bytes(content)
    files = {"state": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    record = {"version": VERSION, "step": step, "metrics": {"loss": loss}, "files": files}
    if manifest:
        (folder / "manifest.json").write_text(json.dumps(record))
    weights = run / "weights" / step_name(step)
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    return folder


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in complete_checkpoints(run)]


def test_a_checkpoint_without_its_manifest_or_with_other_bytes_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3, 4, 5):
        put(tmp_path, step, manifest=step != 5)
    (tmp_path / "checkpoints" / step_name(4) / "state").write_bytes(b"state of ?")
    (tmp_path / "checkpoints" / step_name(3) / "state").unlink()
    (tmp_path / "checkpoints" / step_name(2) / "manifest.json").write_text('{"version": 2, "st')
    with caplog.at_level("WARNING"):
        assert steps(tmp_path) == [1]
    for words in ("no manifest.json", "differs from the manifest", "is absent", "is damaged"):
        assert words in caplog.text


def test_another_version_does_not_count(tmp_path: Path) -> None:
    folder = put(tmp_path, 1)
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | {"version": 1}))
    assert steps(tmp_path) == []


def test_the_last_ones_every_kth_and_the_best_are_kept_with_their_weights(tmp_path: Path) -> None:
    for step, loss in ((10, 5.0), (20, 1.0), (30, 4.0), (40, 3.0), (50, 2.0), (60, 6.0)):
        put(tmp_path, step, loss)
    config = CheckpointConfig(every_steps=10, keep_last=2, keep_every_steps=30, best_metric="loss")
    assert Rotation(open_store(str(tmp_path)), config).turn(60) == [40, 10]
    assert steps(tmp_path) == [60, 50, 30, 20]
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == [step_name(s) for s in (20, 30, 50, 60)]
    highest = CheckpointConfig(every_steps=10, keep_last=1, best_metric="loss", best_is="highest")
    Rotation(open_store(str(tmp_path)), highest).turn(60)
    assert steps(tmp_path) == [60]


def test_what_interrupted_saves_left_is_removed_but_not_what_is_being_written(tmp_path: Path) -> None:
    put(tmp_path, 1, manifest=False)
    put(tmp_path, 2)
    put(tmp_path, 3, manifest=False)
    Rotation(open_store(str(tmp_path)), CheckpointConfig()).turn(2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [step_name(2), step_name(3)]


def test_on_s3_the_same_rules_hold(tmp_path: Path, s3: str) -> None:
    store = open_store(s3)
    for step in (1, 2, 3):
        for path in put(tmp_path, step, manifest=step != 1).iterdir():
            store.write(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    Rotation(store, CheckpointConfig(keep_last=1)).turn(3)
    assert [checkpoint.step for checkpoint in list_checkpoints(store)] == [3]
    assert all(step_name(3) in key for key in store.list("checkpoints/"))


def test_a_run_is_not_begun_anew_because_all_its_checkpoints_are_damaged(tmp_path: Path) -> None:
    world, store = World(0, 1, 0, torch.device("cpu")), open_store(str(tmp_path))
    assert find_start(store, world) is None
    put(tmp_path, 1, manifest=False)
    assert find_start(store, world) is None
    folder = put(tmp_path, 2)
    found = find_start(store, world)
    assert found is not None and found.step == 2
    (folder / "state").write_bytes(b"?")
    with pytest.raises(DataError, match=r"no checkpoint of .* is whole, of 1 that were complete"):
        find_start(store, world)


def test_a_manifest_with_a_wrong_bit_does_not_count_wherever_it_is(tmp_path: Path) -> None:
    """But for one in the name of its digest, where all else is as it was written."""
    store, file = open_store(str(tmp_path)), put(tmp_path, 1) / "manifest.json"
    record = json.loads(file.read_bytes()) | {"updates": {"encoder": 17.0}, "facts": {"seed": 3}, "zero_stage": 1}
    content = Checkpoint(str(tmp_path), 1, record).content
    file.write_bytes(content)
    [found] = list_checkpoints(store)
    assert found.record == record and found.content == content
    unseen = range(content.rindex(b'"sha256"'), content.rindex(b'"sha256"') + len('"sha256"'))
    for place in set(range(len(content))) - set(unseen):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        same = json.loads(content) == _parsed(file)
        assert same or not list_checkpoints(store), file.read_bytes()


def _parsed(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None

"""Manifest and sidecar: round trips, a golden form, and strict readers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mcjepa.data_prep.dataset.manifest import (
    DatasetManifest,
    Member,
    SampleEntry,
    ShardEntry,
    Sidecar,
    Totals,
    compute_dataset_id,
    read_manifest,
    read_sidecar,
    write_manifest,
    write_sidecar,
)
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.json_files import encode_json

SHARDS = (ShardEntry("clip-000000", "aa", 1536, 1), ShardEntry("clip-000001", "bb", 2048, 2))
MANIFEST = DatasetManifest(
    kind="clip",
    dataset_id=compute_dataset_id(SHARDS),
    plan_digest="pp",
    inputs_digest="ii",
    decoder="decord2 3.4.0",
    encoder="simplejpeg 1.9.0",
    parameters={"short_side": 256},
    shards=SHARDS,
    totals=Totals(2, 3, 3584, 4, 2, 1, 1),
)
SIDECAR = Sidecar("clip-000000", "aa", 1536, "pp", (SampleEntry("k-0", (Member("00.jpg", 512, 7),)),), ())


def test_dataset_id_is_the_sha256_of_the_shards_digests_in_order() -> None:
    assert compute_dataset_id(SHARDS) == hashlib.sha256(b"aa\nbb\n").hexdigest()
    assert compute_dataset_id(SHARDS[::-1]) != compute_dataset_id(SHARDS)


def test_manifest_and_sidecar_come_back_as_they_were(tmp_path: Path) -> None:
    assert write_manifest(str(tmp_path), MANIFEST)
    assert read_manifest(str(tmp_path)) == MANIFEST
    write_sidecar(str(tmp_path), SIDECAR)
    assert read_sidecar(str(tmp_path), "clip-000000") == SIDECAR
    assert (tmp_path / "shards" / "clip-000000.json").is_file()


def test_a_second_manifest_is_not_written(tmp_path: Path) -> None:
    assert write_manifest(str(tmp_path), MANIFEST)
    assert not write_manifest(str(tmp_path), replace(MANIFEST, kind="image"))
    assert read_manifest(str(tmp_path)).kind == "clip"


def test_json_is_sorted_and_compact_so_that_reruns_give_the_same_bytes() -> None:
    assert encode_json(SIDECAR) == (
        b'{"bytes":1536,"dropped":[],"hashes":[],"inputs":[],"name":"clip-000000","plan_digest":"pp","samples":[{"key":"k-0",'
        b'"members":[{"bytes":7,"offset":512,"suffix":"00.jpg"}]}],"sha256":"aa","version":2}\n'
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1; expected 2"),
        ({"kind": None}, "no field kind"),
        ({"extra": 1}, "unknown field extra"),
        ({"totals": {"shards": 2}}, "no field bytes"),
        ({"shards": "many"}, "no list `shards`"),
        ({"dataset_id": "00"}, "shards of another"),
    ],
)
def test_a_manifest_with_wrong_fields_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    content = {**json.loads(encode_json(MANIFEST)), **change}
    content = {k: v for k, v in content.items() if v is not None}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_manifest(str(tmp_path))


def test_a_damaged_or_absent_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mcjepa prep run"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_bytes(encode_json(MANIFEST)[:-40])
    with pytest.raises(DataError, match="no JSON"):
        read_manifest(str(tmp_path))


def test_a_sidecar_with_a_member_without_offset_is_refused(tmp_path: Path) -> None:
    write_sidecar(str(tmp_path), SIDECAR)
    path = tmp_path / "shards" / "clip-000000.json"
    path.write_text(path.read_text().replace('"offset":512,', ""))
    with pytest.raises(DataError, match="no field offset"):
        read_sidecar(str(tmp_path), "clip-000000")


def test_the_newest_revision_is_read_unless_another_is_named(tmp_path: Path) -> None:
    assert write_manifest(str(tmp_path), MANIFEST)
    shards = (*SHARDS, ShardEntry("clip-000002", "cc", 99, 1))
    later = replace(
        MANIFEST, shards=shards, dataset_id=compute_dataset_id(shards), revision=2, parent=MANIFEST.dataset_id
    )
    assert write_manifest(str(tmp_path), later) and not write_manifest(str(tmp_path), later)
    assert read_manifest(str(tmp_path)) == later and read_manifest(str(tmp_path), revision=1) == MANIFEST
    with pytest.raises(DataError, match=r"manifest-000003\.json is not there"):
        read_manifest(str(tmp_path), revision=3)

"""Cached features: read again, told apart, continued after a kill, bounded, and never half."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.models import EvalModel, load_model
from mcjepa.evals.probe.cache import FeatureCache
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.features import encode_images, features_key, model_digest
from mcjepa.evals.probe.images import images_digest
from tests.evals.labelled_sets import PLAN, cache_in, features_of, write_items

SIZES = [(64, 80)] * 5 + [(70, 70)] * 3


@pytest.fixture
def model(weights_folder: Path) -> EvalModel:
    """Our tiny model."""
    return load_model(weights_folder, torch.device("cpu"))


@pytest.fixture
def items(tmp_path: Path) -> list[LabelledImage]:
    """Eight images of two sizes."""
    return write_items(tmp_path / "set", SIZES)


def same(one: FeatureFile, two: FeatureFile) -> bool:
    """Whether two sets of features are equal bit for bit."""
    pairs = [(a, b) for a, b in zip(one, two, strict=True)]
    return all(
        a.name == b.name
        and torch.equal(a.labels, b.labels)
        and all(
            torch.equal(x, y)
            for s, t in zip(a.tiles, b.tiles, strict=True)
            for x, y in zip(s.maps, t.maps, strict=False)
        )
        for a, b in pairs
    )


def test_images_are_encoded_once_in_groups_of_equal_size_and_broken_ones_named(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    items = write_items(tmp_path / "set", [(64, 80)] * 4 + [(70, 70)] * 2)
    (tmp_path / "set/5.png").write_bytes(b"no picture")
    model = foreign_model()
    with cache_in(tmp_path / "cache") as cache:
        done: list[int] = []
        found = features_of(cache, model, items, on_image=done.append)
        assert [image.name for image in found] == ["0", "1", "2", "3", "4"]
        assert model.sizes == [(3, 3, 64, 128), (1, 3, 64, 128), (1, 3, 128, 128)]  # type: ignore[attr-defined]
        assert len(found.failed) == 1 and found.failed[0].startswith("5: ") and "no picture" not in found.failed[0]
        assert done[-1] == 6 and sorted(done) == done
        assert features_of(cache, model, items[:1])[0].name == "0"  # other images are other features
    assert list((tmp_path / "cache").glob("*/")) == []  # of a model that cannot be told from another nothing stays


def test_what_is_read_is_what_was_encoded(tmp_path: Path, model: EvalModel, items: list[LabelledImage]) -> None:
    windows = dataclasses.replace(PLAN, window=(64, 64), window_stride=(32, 32), resize=(100, 90), resize_labels=False)
    for plan in (PLAN, windows):
        with cache_in(tmp_path / "cache") as cache:
            found = features_of(cache, model, items, plan)
            for read, fresh in zip(found, encode_images(model, items, plan, 3), strict=True):
                assert (read.name, read.size) == (fresh.name, fresh.size)  # type: ignore[union-attr]
                assert torch.equal(read.labels, fresh.labels)  # type: ignore[union-attr]
                for tile, other in zip(read.tiles, fresh.tiles, strict=True):  # type: ignore[union-attr]
                    assert tile.box == other.box
                    assert all(torch.equal(a, b) for a, b in zip(tile.maps, other.maps, strict=True))
    assert len(found[0].tiles) > 1 and found[0].labels.shape == (64, 80) and found[0].size == (80, 100)


def test_a_second_run_encodes_nothing(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache_in(tmp_path) as cache:
        first = features_of(cache, model, items)
    monkeypatch.setattr("mcjepa.evals.probe.cache.encode_images", None)
    with cache_in(tmp_path) as cache:
        second = features_of(cache, model, items)
        assert same(first, second)


def test_half_precision_takes_half_the_space_and_refuses_what_it_cannot_hold(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage], foreign_model: Callable[..., EvalModel]
) -> None:
    with cache_in(tmp_path) as cache, cache_in(tmp_path, dtype="float16") as half:
        exact, rounded = features_of(cache, model, items), features_of(half, model, items)
        assert rounded.bytes < 0.75 * exact.bytes  # labels are bytes in both
        assert rounded[0].tiles[0].maps[0].dtype == torch.float16
        torch.testing.assert_close(rounded[3].tiles[0].maps[0].float(), exact[3].tiles[0].maps[0], rtol=1e-3, atol=1e-3)

    class Large:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def features(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
            return [level * self.factor for level in foreign_model().features(image_B3HW)]

    with cache_in(tmp_path, dtype="float16") as half:
        with pytest.raises(DataError, match="cache_dtype=float32"):
            features_of(half, Large(1e9), items)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="not finite"):
            features_of(half, Large(float("nan")), items)  # type: ignore[arg-type]


def test_the_key_tells_weights_images_labels_and_preprocessing_apart(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage]
) -> None:
    digest, encoder = images_digest(items), model_digest(model)
    keys = {features_key(encoder, digest, PLAN, "float16", 8)[0]}
    for plan in ({"strides": (8,)}, {"resize": (9, 9)}, {"window": (9, 9)}, {"classes": 6}, {"resize_labels": False}):
        keys.add(features_key(encoder, digest, dataclasses.replace(PLAN, **plan), "float16", 8)[0])  # type: ignore[arg-type]
    keys.add(features_key(encoder, digest, PLAN, "float32", 8)[0])
    with torch.no_grad():
        next(model.model.encoder.parameters()).add_(1e-3)  # type: ignore[attr-defined]
    keys.add(features_key(model_digest(model), digest, PLAN, "float16", 8)[0])
    Path(items[0].labels).write_bytes(Path(items[1].labels).read_bytes())
    keys.add(features_key(encoder, images_digest(items), PLAN, "float16", 8)[0])
    Path(items[0].image).unlink()
    keys.add(features_key(encoder, images_digest(items), PLAN, "float16", 8)[0])
    assert len(keys) == 10


def test_an_image_that_could_not_be_read_for_a_moment_is_encoded_by_the_next_run(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage]
) -> None:
    """The images' digest was taken before the error: the key is that of the healthy images."""
    digest, hurt = images_digest(items), Path(items[4].image)
    broken = Path(items[6].image)
    broken.write_bytes(b"no picture")  # for good

    def features() -> tuple[FeatureFile, int]:
        with cache_in(tmp_path / "cache") as cache:
            found = cache.features(model, items, digest, PLAN)
            return found, (found.folder / "index.jsonl").stat().st_mtime_ns

    hurt.rename(tmp_path / "away")
    found, before = features()
    assert found.failed_places == [4, 6] and len(found) == 6
    assert features()[1] == before  # neither can be read: nothing is done again
    with cache_in(tmp_path / "cache") as reader:  # in use elsewhere, they stay
        used = reader.features(model, items, digest, PLAN)
        (tmp_path / "away").rename(hurt)
        assert features()[1] == before and len(used[5].tiles) == 1
    again, before = features()
    assert again.failed_places == [6] and len(again) == 7
    with cache_in(tmp_path / "fresh") as fresh:
        assert same(again, features_of(fresh, model, items))
    assert features()[1] == before


@pytest.mark.parametrize("harm", ["torn line", "torn maps", "wrong bytes", "no index", "not sealed"])
def test_half_features_are_continued_to_the_same_bytes_and_never_read(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage], harm: str
) -> None:
    with cache_in(tmp_path) as cache:
        folder = features_of(cache, model, items).folder
    before = {name: (folder / name).read_bytes() for name in ("maps.bin", "index.jsonl", "complete.json")}
    (folder / "complete.json").unlink()
    lines = before["index.jsonl"].splitlines(keepends=True)
    maps = before["maps.bin"]
    if harm == "torn line":
        (folder / "index.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    elif harm == "torn maps":
        (folder / "maps.bin").write_bytes(maps[: len(maps) // 2 + 7])
    elif harm == "wrong bytes":  # a machine that went down: the index reached the disk, the maps did not
        (folder / "maps.bin").write_bytes(maps[: len(maps) // 2] + bytes(len(maps) - len(maps) // 2))
    elif harm == "no index":
        (folder / "index.jsonl").unlink()
    with pytest.raises(FileNotFoundError):
        FeatureFile(folder, "float32")
    encoded: list[int] = []
    with cache_in(tmp_path) as cache:
        features_of(cache, model, items, on_image=encoded.append)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert encoded[0] == {"no index": 1, "not sealed": 7, "torn line": 4}.get(harm, encoded[0]) and encoded[0] in (
        1,
        4,
        7,
    )


ENCODE_SLOWLY = """
import sys, time
from pathlib import Path
import torch
from mcjepa.evals.models import load_model
from mcjepa.data_prep.corpora.items import LabelledImage
from tests.evals.labelled_sets import cache_in, features_of

model = load_model(Path(sys.argv[1]), torch.device("cpu"))
with cache_in(Path(sys.argv[2])) as cache:
    folder = Path(sys.argv[3])
    items = [LabelledImage(str(n), folder / f"{n}.png", folder / f"{n}_labels.png") for n in range(40)]
    features_of(cache, model, items, on_image=lambda done: time.sleep(0.05))
"""


@pytest.mark.slow
def test_killed_while_encoding_the_next_run_goes_on_and_a_third_waits(
    tmp_path: Path, weights_folder: Path, model: EvalModel
) -> None:
    words = [sys.executable, "-c", ENCODE_SLOWLY, str(weights_folder), str(tmp_path / "cache"), str(tmp_path / "set")]
    items = write_items(tmp_path / "set", [(64, 80)] * 40)
    child = subprocess.Popen(words, cwd=Path(__file__).resolve().parents[3], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        index = next((tmp_path / "cache").glob("*/index.jsonl"), None)
        if index is not None and index.read_bytes().count(b"\n") >= 8:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    folder = index.parent if index is not None else pytest.fail("nothing was encoded")
    assert not (folder / "complete.json").exists()
    second = subprocess.Popen(words, cwd=Path(__file__).resolve().parents[3], stdout=subprocess.DEVNULL)
    time.sleep(0.2)
    with cache_in(tmp_path / "cache") as cache, cache_in(tmp_path / "undisturbed") as other:
        found, undisturbed = features_of(cache, model, items), features_of(other, model, items)
        assert found.folder == folder and len(found) == 40 and same(found, undisturbed)
    assert second.wait(timeout=60) == 0


def test_the_longest_unused_features_make_room_and_those_in_use_stay(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage]
) -> None:
    with cache_in(tmp_path) as cache:
        size = features_of(cache, model, items).bytes
    shutil.rmtree(tmp_path, ignore_errors=True)
    items = write_items(tmp_path / "set", SIZES)
    bound = 2.6 * size / 2**30
    plans = [dataclasses.replace(PLAN, classes=count) for count in (5, 6, 7, 8)]
    folders = []
    for age, plan in enumerate(plans[:2]):
        with cache_in(tmp_path / "cache", most_gib=bound) as cache:
            folders.append(features_of(cache, model, items, plan).folder)
        os.utime(folders[-1] / "complete.json", (1e9 + age, 1e9 + age))
    with cache_in(tmp_path / "cache", most_gib=bound) as reader:
        features_of(reader, model, items, plans[0])  # the older, now in use
        with cache_in(tmp_path / "cache", most_gib=bound) as cache:
            folders.append(features_of(cache, model, items, plans[2]).folder)
            assert [folder.exists() for folder in folders] == [True, False, True]
            with pytest.raises(DataError, match=r"in use by others.*raise probe.cache_gib"):
                features_of(reader, model, items, plans[3])


def test_too_small_a_limit_or_disk_is_an_error_before_much_is_written(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache_in(tmp_path / "a", most_gib=1e-6) as cache, pytest.raises(DataError, match=r"take about .* GiB"):
        features_of(cache, model, items)
    monkeypatch.setattr("mcjepa.evals.probe.cache.RESERVE_BYTES", 2**62)
    with cache_in(tmp_path / "b") as cache, pytest.raises(DataError, match="a disk with 0 GiB to spare"):
        features_of(cache, model, items)
    assert all(len((path / "index.jsonl").read_text().splitlines()) == 1 for path in tmp_path.glob("?/*/"))


def test_a_damaged_finished_folder_is_named(tmp_path: Path, model: EvalModel, items: list[LabelledImage]) -> None:
    with cache_in(tmp_path) as cache:
        folder = features_of(cache, model, items).folder
    with (folder / "maps.bin").open("ab") as file:
        file.write(b"x")
    with cache_in(tmp_path) as cache, pytest.raises(DataError, match="remove that folder"):
        features_of(cache, model, items)


def test_features_that_are_not_kept_are_gone_afterwards(
    tmp_path: Path, model: EvalModel, items: list[LabelledImage]
) -> None:
    with FeatureCache(tmp_path / "c", most_gib=1.0, dtype="float16", batch=3, keep=False) as cache:
        features = features_of(cache, model, items)
        features.keep_arrays("statistics", {"mean": np.ones(3)})
        assert features.folder.is_dir()
        kept = features.arrays("statistics")
        assert kept is not None and kept["mean"].tolist() == [1, 1, 1] and features.arrays("other") is None
        assert json.loads((features.folder / "key.json").read_text())["dtype"] == "float16"
    assert list((tmp_path / "c").glob("*/")) == []

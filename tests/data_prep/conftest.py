"""Fixtures: small corpora with good and bad inputs, stores of both kinds, and datasets built without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.dataset.manifest import DatasetManifest
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.workers.shard_maker import ShardResult
from tests.data_prep.small_corpora import build_dataset, clip_settings, make_videos, smooth_frames


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of three readable videos."""
    return make_videos(tmp_path / "videos")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published dataset of three videos in two shards, to be copied before it is changed."""
    root = tmp_path_factory.mktemp("published")
    build_dataset(root / "d", clip_settings(make_videos(root / "videos")))
    return root / "d"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five readable images, 80x60 px, in two folders."""
    folder = tmp_path / "images"
    for number in range(5):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        write_png(place / f"{number}.png", smooth_frames(number, 1, 80, 60)[0])
    return folder


@pytest.fixture
def add_bad_videos() -> Callable[[Path], set[str]]:
    """Adds an empty, a truncated, a text and a JPEG file, all named as videos; returns their names."""

    def add(folder: Path) -> set[str]:
        (folder / "empty.mp4").write_bytes(b"")
        (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-700])
        (folder / "text.mp4").write_text("not a video\n" * 50)
        jpeg = cv2.imencode(".jpg", smooth_frames(9, 1, 64, 64)[0])[1]
        (folder / "photo.mp4").write_bytes(jpeg.tobytes())
        return {"empty.mp4", "cut.mp4", "text.mp4", "photo.mp4"}

    return add


@pytest.fixture
def clips_of() -> Callable[..., DatasetConfig]:
    """The function `clip_settings`."""
    return clip_settings


@pytest.fixture
def build() -> Callable[[Path | str, DatasetConfig], tuple[DatasetManifest, list[ShardResult]]]:
    """The function `build_dataset`."""
    return build_dataset


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3"))

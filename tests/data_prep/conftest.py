"""Small corpora with good and bad inputs, S3 and folder stores, and datasets built without Ray."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.config import CorpusConfig, DatasetConfig
from data_prep.corpora.image_files import write_png
from data_prep.corpora.video_files import write_mp4
from data_prep.listing import list_inputs
from data_prep.manifest import DatasetManifest
from data_prep.plan import split_into_shards
from data_prep.plan_files import begin_plan, require_same_plan
from data_prep.publish import publish_dataset
from data_prep.shard_maker import ShardMaker, ShardResult
from data_prep.storage import Store, open_store

BUCKET = "tests"


def smooth_frames(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """A smooth random texture that moves 2 px to the right a frame, RGB (T, H, W, 3) uint8."""
    noise = np.random.default_rng(seed).integers(60, 190, (height // 16 + 2, width // 16 + 4, 3), np.uint8)
    texture = cv2.resize(noise, (width + 2 * frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([texture[:, 2 * (frames - t) :][:, :width] for t in range(frames)])


def make_videos(folder: Path) -> Path:
    """Three readable videos of 6, 9 and 12 frames, 64x96 px."""
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "b.mp4", "deep/c.MP4")):
        write_mp4(folder / name, smooth_frames(number, 6 + 3 * number, 64, 96), 10, 20)
    return folder


def clip_settings(*folders: Path, **changes: object) -> DatasetConfig:
    """Settings of a small clip dataset from folders of videos."""
    corpora = tuple(CorpusConfig(reader="videos", path=str(f)) for f in folders)
    values: dict[str, object] = {"clip_stride": 1, "short_side": 32, "inputs_per_shard": 2, "timeout_s": 20.0}
    return DatasetConfig(kind="clip", corpora=corpora, **{**values, **changes})  # type: ignore[arg-type]


def build_dataset(location: Path | str, config: DatasetConfig) -> tuple[DatasetManifest, list[ShardResult]]:
    """Builds and publishes a dataset in this process, by the same parts as the job but without Ray."""
    store = open_store(str(location))
    plan = begin_plan(store, config, list_inputs(config))
    require_same_plan(store, plan, list_inputs(config))
    maker = ShardMaker(str(location), config, plan.plan_digest)
    try:
        results = [maker.make(shard) for shard in split_into_shards(list_inputs(config), config)]
    finally:
        maker.close()
    return publish_dataset(store, plan), results


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


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server on the loopback interface with one bucket: real HTTP, nothing leaves the machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    session = boto3.session.Session("test", "test", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
    yield endpoint
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty S3 location, reached by the standard AWS variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/prefix"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3"))

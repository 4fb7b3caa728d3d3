"""Fixtures of the loader's tests: published datasets and a small recipe over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_datasets import publish

from mcjepa.pipeline.settings.stream import (
    AugmentConfig,
    PairAugmentConfig,
    SourceConfig,
    StreamConfig,
    ViewAugmentConfig,
)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clips` (26 samples in 3 shards), `images` (37 in 2) and `few` (3 clips), read by every test."""
    root = tmp_path_factory.mktemp("datasets")
    publish(str(root / "clips"), "clip", [10, 9, 7])
    publish(str(root / "images"), "image", [20, 17])
    publish(str(root / "few"), "clip", [3])
    return root


@pytest.fixture(scope="session")
def small_stream(datasets: Path) -> StreamConfig:
    """Small steps in the test's own process."""
    return StreamConfig(
        pairs=(SourceConfig(location=str(datasets / "clips")),),
        views=(SourceConfig(location=str(datasets / "images")),),
        pair_batch=4,
        view_batch=8,
        augment=AugmentConfig(pair=PairAugmentConfig(crop=(24, 32)), view=ViewAugmentConfig(size=16)),
        window=8,
        workers=0,
    )


@pytest.fixture()
def own_images(tmp_path: Path) -> Path:
    """A dataset that a test may damage."""
    publish(str(tmp_path), "image", [4, 4])
    return tmp_path

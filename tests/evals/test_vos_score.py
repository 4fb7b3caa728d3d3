"""Scoring mask propagation: the protocol's sizes, objects, broken sequences, pictures, and DAVIS itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.corpora import VOS_SETS
from data_prep.corpora.items import MaskedVideo
from data_prep.errors import DataError
from evals.model_under_test import ModelUnderTest, Subject
from evals.vos.config import VosConfig
from evals.vos.score import encode_frame, encoded_size, score_vos_set, track_video

CONFIG = VosConfig(set="test", stride=8, short_side=0, radius_cells=4, context_frames=3, pictures=1)
COLOURS = {0: (30, 90, 40), 1: (220, 40, 30), 2: (40, 60, 230)}


def _write_video(folder: Path, name: str, frames: int = 6, size: tuple[int, int] = (96, 128)) -> MaskedVideo:
    """Two coloured blocks that move apart on an even ground."""
    paths: tuple[list[Path], list[Path]] = ([], [])
    folder.mkdir(exist_ok=True)
    for step in range(frames):
        mask = np.zeros(size, np.uint8)
        mask[16:48, 8 + 8 * step : 40 + 8 * step] = 1
        mask[56:88, 88 - 8 * step : 120 - 8 * step] = 2
        image = np.array([COLOURS[label] for label in (0, 1, 2)], np.uint8)[mask]
        for kind, array in zip(paths, (image[..., ::-1], mask), strict=True):
            kind.append(folder / f"{name}_{step}_{len(array.shape)}.png")
            cv2.imwrite(str(kind[-1]), array)
    return MaskedVideo(name, tuple(paths[0]), tuple(paths[1]))


def test_moving_objects_are_followed_where_the_copied_mask_fails(
    tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    video = _write_video(tmp_path / "in", "blocks")
    score = score_vos_set(Subject(model=foreign_model(), name="m"), tmp_path, [video], CONFIG, tmp_path / "out")
    assert [(row["object"], row["frames"]) for row in score.table] == [(1, 4), (2, 4)]
    assert score.metrics["j_mean"] > 0.8 > score.metrics["j_mean_copy_first"]
    assert score.metrics["jf"] == pytest.approx((score.metrics["j_mean"] + score.metrics["f_mean"]) / 2)
    assert score.card.frames == 4 and score.rivals == ("copy_first",)
    assert [picture.kind for picture in score.pictures] == ["vos", "features"]
    assert score.pictures[1].columns == tuple(f"frame {index}" for index in (0, 1, 2, 3, 4))
    assert all(picture.path.is_file() for picture in score.pictures)


def test_copied_mask_has_the_overlap_of_shifted_blocks(
    tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    video = _write_video(tmp_path / "in", "blocks", frames=4)
    score = score_vos_set(Subject(model=foreign_model(), name="m"), tmp_path, [video], CONFIG, tmp_path / "out")
    # Blocks of 32 px shifted by 8 and 16 px: 24/40 and 16/48.
    assert score.metrics["j_mean_copy_first"] == pytest.approx((24 / 40 + 16 / 48) / 2)


def test_tracking_twice_gives_the_same_masks_and_starts_with_the_given_one(
    tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    video = _write_video(tmp_path, "blocks", size=(100, 130))
    first, second = (track_video(foreign_model(), video, CONFIG) for _ in range(2))
    assert np.array_equal(first.predicted, second.predicted)
    assert np.array_equal(first.predicted[0], first.truth[0])
    assert first.predicted.shape == (6, 100, 130)


def test_encoded_size_follows_dinos_rule() -> None:
    assert encoded_size((480, 854), 480) == (480, 832)
    assert encoded_size((854, 480), 480) == (832, 480)
    assert encoded_size((1080, 1920), 480) == (480, 832)
    assert encoded_size((96, 96), 80) == (80, 80)
    assert encoded_size((97, 131), 0) == (97, 131)


def test_padding_is_cut_off_the_features(foreign_model: Callable[..., ModelUnderTest]) -> None:
    model = foreign_model()
    features = encode_frame(model, np.zeros((100, 130, 3), np.uint8), (100, 130), 8)
    assert features.shape == (6, 13, 17)
    assert model.sizes == [(1, 3, 128, 192)]  # type: ignore[attr-defined]


def test_broken_sequences_are_named_and_the_rest_is_scored(
    tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    good = _write_video(tmp_path / "good", "good")
    short = MaskedVideo("short", good.frames[:2], good.masks[:2])
    unpaired = MaskedVideo("unpaired", good.frames, good.masks[:1])
    empty = tmp_path / "empty.png"
    cv2.imwrite(str(empty), np.zeros((96, 128), np.uint8))
    nothing = MaskedVideo("nothing", good.frames, (empty, *good.masks[1:]))
    subject = Subject(model=foreign_model(), name="m")
    videos = [short, unpaired, nothing, good]
    score = score_vos_set(subject, tmp_path, videos, CONFIG, tmp_path / "out")
    assert [failure.split(":")[0] for failure in score.card.failed] == ["short", "unpaired", "nothing"]
    assert {row["sequence"] for row in score.table} == {"good"}
    with pytest.raises(DataError, match="short"):
        score_vos_set(subject, tmp_path, videos[:3], CONFIG, tmp_path / "out")


def test_generated_set_is_scored_through_its_reader(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    videos = VOS_SETS["moving-photos"](moving_photos)
    score = score_vos_set(Subject(model=foreign_model(), name="m"), moving_photos, videos, CONFIG, tmp_path)
    assert score.card.complete
    assert 0 < score.metrics["jf"] <= 1


def test_davis_first_mask_copied_has_the_known_score(
    sample_data: Path, tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    root = sample_data / "davis/DAVIS"
    video = next(video for video in VOS_SETS["davis"](root) if video.name == "car-shadow")
    subject = Subject(model=foreign_model(), name="m")
    config = VosConfig(stride=32, pictures=0)
    score = score_vos_set(subject, root, [video], config, tmp_path)
    assert score.metrics["j_mean_copy_first"] == pytest.approx(0.408, abs=0.001)
    assert score.metrics["f_mean_copy_first"] == pytest.approx(0.252, abs=0.001)
    assert score.card.frames == 38
    assert score.card.resolution.startswith("854x480 px; encoded short side 480 px")

"""Large photos, decoded at a fraction of their size: shape, metadata, colours and refusals are those of the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from profiles import ADOBE_RGB, make_profile

from mcjepa.data_prep.corpora.image_files import decode_rgb
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.cutter import CutSample, cut_input
from mcjepa.data_prep.decode.encoders import shrink
from mcjepa.data_prep.decode.images import read_image, read_picture
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from tests.data_prep.small_corpora import smooth_frames

HEIGHT, WIDTH, SHORT_SIDE = 803, 1105, 50
PHOTO = cv2.resize(smooth_frames(2, 1, 40, 55)[0], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
IMAGES = DatasetConfig(
    kind="image", corpora=(CorpusConfig(reader="images", path="unused"),), short_side=SHORT_SIDE, encoding="png"
)


def cut(path: Path, config: DatasetConfig = IMAGES) -> np.ndarray:
    sample, *others = cut_input(Input(path.name, str(path), "image"), config)
    assert isinstance(sample, CutSample) and not others
    return decode_rgb(sample.members["png"], "png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_eighth_is_decoded_and_stored_as_the_whole_would_be(tmp_path: Path, orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).convert(mode).save(tmp_path / "a.jpg", quality=92, exif=exif)
    found = read_picture(tmp_path / "a.jpg", 64, SHORT_SIDE)
    with Image.open(tmp_path / "a.jpg") as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert found.size == (upright.shape[1], upright.shape[0]) and min(found.rgb.shape[:2]) == -(-HEIGHT // 8)
    stored, whole = cut(tmp_path / "a.jpg"), shrink(upright, SHORT_SIDE)
    assert stored.shape == whole.shape and np.abs(stored.astype(int) - whole).mean() < 1.5


@pytest.mark.parametrize(
    ("short_side", "fraction"), [(100, 4), (101, 2), (200, 2), (201, 1), (803, 1), (9000, 1), (16, 8)]
)
def test_twice_the_wanted_size_is_decoded_at_least(tmp_path: Path, short_side: int, fraction: int) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", progressive=True)
    found = read_picture(tmp_path / "a.jpg", 64, short_side)
    assert found.rgb.shape == (-(-HEIGHT // fraction), -(-WIDTH // fraction), 3) and found.size == (WIDTH, HEIGHT)


def test_the_stored_shape_is_that_of_the_whole_photo(tmp_path: Path) -> None:
    """Of 1/8, which is 130 px wide and 101 high, it would be one pixel less."""
    Image.fromarray(PHOTO[:801, :1038]).save(tmp_path / "a.jpg")
    assert cut(tmp_path / "a.jpg").shape == (50, 65, 3)
    assert shrink(np.zeros((101, 130, 3), np.uint8), 50).shape == (50, 64, 3)


def test_a_photo_is_as_large_as_it_lies_in_its_file(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg")
    assert cut(tmp_path / "a.jpg", replace(IMAGES, min_size=800)).shape[0] == SHORT_SIDE
    with pytest.raises(Unwanted, match=rf"{WIDTH}x{HEIGHT} px; the short side must be at least 900"):
        cut(tmp_path / "a.jpg", replace(IMAGES, min_size=900))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "restart_marker_rows": 4}])
def test_a_large_photo_that_lacks_data_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    """Its last rows and scans, too, of which an eighth needs little."""
    path = tmp_path / "a.jpg"
    Image.fromarray(PHOTO).save(path, **options)
    data = path.read_bytes()
    for part in (data[:-40], data[: len(data) // 2], data[: len(data) * 19 // 20]):
        path.write_bytes(part)
        with pytest.raises(DecodeFailure, match="cut off or damaged"):
            read_picture(path, 64, SHORT_SIDE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_holes_are_found_as_often_as_in_the_whole(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PHOTO).save(path, **options)
    data = path.read_bytes()
    refused = 0
    for hole in range(len(data) // 10, len(data) - 99, len(data) // 10):
        path.write_bytes(data[:hole] + data[hole + 99 :])
        reasons = []
        for short_side in (0, SHORT_SIDE):
            try:
                read_picture(path, 64, short_side)
                reasons.append("")
            except DecodeFailure as failure:
                reasons.append(str(failure))
        assert reasons[0] == reasons[1]
        refused += bool(reasons[0])
    assert refused >= 5


def test_colours_with_a_profile_and_cmyk_stay_right(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "wide.jpg", icc_profile=make_profile(ADOBE_RGB, 2.2), quality=95)
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PHOTO).convert("L").save(tmp_path / "grey.jpg", icc_profile=grey, quality=95)
    for path in tmp_path.iterdir():
        whole = shrink(read_image(path, 64), SHORT_SIDE)
        assert np.abs(cut(path).astype(int) - whole).mean() < 1.5, path.name


def test_large_frames_are_shrunk_by_way_of_whole_blocks_only() -> None:
    for width, height, short_side, coarse in ((192, 128, 32, 2), (192, 128, 33, 1), (193, 128, 32, 1), (96, 64, 8, 4)):
        frame = cv2.resize(PHOTO[:400, :600], (width, height), interpolation=cv2.INTER_AREA)
        found, size = shrink(frame, short_side), (round(width * short_side / height), short_side)
        at_once = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        blocks = frame.reshape(height // coarse, coarse, width // coarse, coarse, 3).mean((1, 3)).round(3)
        exact = np.abs(found - cv2.resize(blocks, size, interpolation=cv2.INTER_AREA)).max()
        assert found.shape == at_once.shape and exact <= 1.01
        assert np.array_equal(found, at_once) == (coarse == 1)
        assert np.abs(found.astype(int) - at_once).mean() < 1

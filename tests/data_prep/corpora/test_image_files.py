"""Pictures and label maps of others: with texts beyond Pillow's measure, and larger than any library opens."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mcjepa.data_prep.corpora.flow.files import read_kitti_png
from mcjepa.data_prep.corpora.image_files import picture_size, read_ids, read_mask, read_rgb, write_id_png
from mcjepa.data_prep.errors import DataError
from tests.own_files import png_of_size

IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 7


def _with_text(path: Path, after: bool) -> None:
    """The label map with two megabytes of compressed text, before or after its pixels."""
    with Image.open(path) as image:
        image.load()
        info = PngInfo()
        info.add(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)), after_idat=after)
        image.save(path, "PNG", pnginfo=info)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"), Image.open(path) as image:
        image.load()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("palette", [False, True])
def test_label_maps_with_a_huge_text_are_read(tmp_path: Path, palette: bool, after: bool) -> None:
    path = tmp_path / "ids.png"
    write_id_png(path, IDS) if palette else cv2.imwrite(str(path), IDS)
    _with_text(path, after)
    assert np.array_equal(read_ids(path), IDS)
    if not palette:
        assert np.array_equal(read_ids(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    if not after:
        assert picture_size(path) == (8, 6)


def test_the_real_picture_with_a_huge_text_has_a_size() -> None:
    path = Path(__file__).resolve().parents[4] / "shared/faults/hugetext.png"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    height, width = read_rgb(path).shape[:2]
    assert picture_size(path) == (width, height)


@pytest.mark.parametrize("read", [read_ids, read_rgb, read_mask, read_kitti_png, picture_size])
@pytest.mark.parametrize("size", [(40_000, 40_000), (2**31 - 1, 1)])
def test_a_picture_that_promises_too_many_pixels_is_one_unreadable_file(
    tmp_path: Path, read: Callable[[Path], object], size: tuple[int, int]
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    with pytest.raises(DataError, match=r"bomb\.png .*expected"):
        read(path)


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_a_label_map_without_pixels_is_one_unreadable_file(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "none.png").write_bytes(png_of_size(*size))
    with pytest.raises(DataError, match=r"none\.png is no readable label map"):
        read_ids(tmp_path / "none.png")


def test_a_cut_header_is_one_unreadable_file(tmp_path: Path) -> None:
    content = bytearray(png_of_size(4, 4))
    content[8:12] = struct.pack(">I", 5)  # of the header's 13 bytes
    (tmp_path / "cut.png").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"cut\.png is no readable label map"):
        read_ids(tmp_path / "cut.png")

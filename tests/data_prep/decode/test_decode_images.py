"""Foreign pictures become 8-bit RGB by stated rules; bombs, animations and damaged files are refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mcjepa.data_prep.decode.encoders import encode, encoder_version
from mcjepa.data_prep.decode.images import read_image
from mcjepa.data_prep.decode.kinds import describe_content
from mcjepa.data_prep.decode.messages import DecodeFailure
from tests.data_prep.small_corpora import smooth_frames

RGB = smooth_frames(3, 1, 48, 64)[0]
GREY = RGB[:, :, 0]


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def test_a_plain_jpeg_is_read_as_every_library_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), quality=90)
    ours = read_image(path, 1)
    assert (ours == np.asarray(Image.open(path))).all() and (ours == cv2.imread(str(path))[:, :, ::-1]).all()


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path: Path) -> None:
    for size, words in (((30_000, 30_000), "too large to be opened"), ((10_000, 10_000), "10000x10000 px are 100.0")):
        (tmp_path / "bomb.png").write_bytes(bomb_png(*size))
        with pytest.raises(DecodeFailure, match=words):
            read_image(tmp_path / "bomb.png", max_megapixels=64)


def test_sixteen_bits_become_eight_by_the_high_byte(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 256 + 200
    cv2.imwrite(str(tmp_path / "rgb.png"), deep[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "grey.png"), deep[:, :, 0])
    cv2.imwrite(str(tmp_path / "grey.pgm"), deep[:, :, 0])
    assert (read_image(tmp_path / "rgb.png", 1) == RGB).all()
    for name in ("grey.png", "grey.pgm"):
        assert (read_image(tmp_path / name, 1) == GREY[..., None]).all(), name


def test_grey_palette_bits_and_alpha_become_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(256)
    alpha = Image.fromarray(np.dstack([RGB, np.full(GREY.shape, 7, np.uint8)]), "RGBA")
    bits = Image.fromarray(GREY > 120)
    assert (read_image(save(tmp_path / "p.png", palette), 1) == np.asarray(palette.convert("RGB"))).all()
    assert (read_image(save(tmp_path / "a.png", alpha), 1) == RGB).all()
    assert (read_image(save(tmp_path / "a.webp", alpha, lossless=True, exact=True), 1) == RGB).all()
    assert (read_image(save(tmp_path / "1.png", bits), 1) == np.where(GREY > 120, 255, 0)[..., None]).all()
    assert (read_image(save(tmp_path / "l.png", Image.fromarray(GREY)), 1) == GREY[..., None]).all()
    grey_jpeg = read_image(save(tmp_path / "l.jpg", Image.fromarray(GREY), quality=95), 1)
    assert grey_jpeg.shape == RGB.shape and np.abs(grey_jpeg[:, :, 0].astype(int) - GREY).mean() < 2


def test_cmyk_comes_in_the_right_colours(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB).convert("CMYK"), quality=95)
    assert np.abs(read_image(path, 1).astype(int) - RGB).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(RGB), exif=exif)
    assert (read_image(path, 1) == np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(f) for f in smooth_frames(1, 5, 32, 32)]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(DecodeFailure, match="holds an animated image of 5 frames, not a still image"):
        read_image(path, 1)
    assert read_image(save(tmp_path / f"still.{suffix}", frames[0]), 1).shape == (32, 32, 3)


def test_documents_of_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(f) for f in smooth_frames(1, 3, 32, 32)]
    path = save(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(DecodeFailure, match="holds 3 pages, not a still image"):
        read_image(path, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "ppm", "tif", "gif"])
def test_files_that_are_cut_off_are_refused_not_filled_up(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(RGB))
    data = path.read_bytes()
    for kept in (len(data) - 40, len(data) // 2, 150):
        path.write_bytes(data[:kept])
        with pytest.raises(DecodeFailure):
            read_image(path, 1)


def test_a_jpeg_with_a_hole_is_refused_and_one_with_a_tail_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), quality=95)
    data = path.read_bytes()
    middle = len(data) * 2 // 3
    path.write_bytes(data[:middle] + data[middle + 300 :])
    with pytest.raises(DecodeFailure, match="cut off or damaged"):
        read_image(path, 1)
    path.write_bytes(data + b"appended by some camera")
    assert read_image(path, 1).shape == RGB.shape


def test_other_contents_are_named(tmp_path: Path) -> None:
    contents = {
        "the file is empty": b"",
        "holds an MP4 or QuickTime video, not an image": b"\0\0\0\x20ftypisom" + bytes(99),
        "holds a ZIP archive, not an image": b"PK\3\4" + bytes(99),
        r"holds nothing known \(it starts with the bytes 01 02 03 04 05 06 07 08\), not an image": bytes(range(1, 99)),
        "holds a PNG image, but it is damaged": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "holds nothing known .*, not an image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for words, data in contents.items():
        (tmp_path / "x.jpg").write_bytes(data)
        with pytest.raises(DecodeFailure, match=words):
            read_image(tmp_path / "x.jpg", 1)
    with pytest.raises(DecodeFailure, match="cannot be read"):
        read_image(tmp_path / "absent.jpg", 1)


def test_floats_and_wide_integers_are_refused(tmp_path: Path) -> None:
    deep = save(tmp_path / "f.tif", Image.fromarray(np.ones((9, 9), np.float32)))
    with pytest.raises(DecodeFailure, match="floating point"):
        read_image(deep, 1)
    wide = save(tmp_path / "i.tif", Image.fromarray(np.full((9, 9), 70_000, np.int32)))
    with pytest.raises(DecodeFailure, match="32-bit"):
        read_image(wide, 1)


def test_encodings_are_what_they_say_and_the_same_every_time() -> None:
    for encoding, kind, error in (("jpeg", "JPEG", 3), ("webp", "WebP", 3), ("png", "PNG", 0)):
        data = encode(RGB, encoding, 95)  # type: ignore[arg-type]
        assert data == encode(RGB, encoding, 95) and kind in describe_content(data[:32])  # type: ignore[arg-type]
        assert np.abs(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) - RGB).mean() <= error
        assert encoder_version(encoding).startswith(f"{encoding} by ")  # type: ignore[arg-type]
    assert len(encode(RGB, "jpeg", 50)) < len(encode(RGB, "jpeg", 95))
    assert len(encode(RGB, "webp", 50)) < len(encode(RGB, "webp", 95))


WITH_LITTLE_MEMORY = """
import resource, sys
import cv2
import numpy as np
from mcjepa.data_prep.decode.encoders import encode

cv2.setNumThreads(1)
rgb = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
whole = encode(rgb, sys.argv[1], 90)
for spare in range(0, 8 << 20, 1 << 18):
    present = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + spare, resource.RLIM_INFINITY))
    try:
        outcome = "whole" if encode(rgb, sys.argv[1], 90) == whole else "cut"
    except MemoryError:
        outcome = "refused"
    except Exception as error:
        outcome = repr(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(outcome)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="its memory is limited as Linux does")
@pytest.mark.parametrize("encoding", ["jpeg", "webp", "png"])
def test_an_encoder_without_memory_gives_no_part_of_a_picture(encoding: str) -> None:
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, encoding]
    quiet = {**os.environ, "OPENCV_LOG_LEVEL": "SILENT"}
    said = subprocess.run(command, env=quiet, capture_output=True, text=True, check=True).stdout
    assert set(said.splitlines()) == {"whole", "refused"}

"""Videos and photos made on the spot: textures that move, and pictures of them; PNGs that promise what they lack."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import av
import cv2
import numpy as np


def write_own_files(root: Path, videos: int = 3, photos: int = 6) -> tuple[Path, Path]:
    """Writes ROOT/videos (h264, 200x160 px, 16 frames that move by 4 and 3 px) and ROOT/photos (JPEG, 320x240 px).

    Returns:
        Both folders.
    """
    rng = np.random.default_rng(0)
    places = root / "videos", root / "photos"
    for place in places:
        place.mkdir(parents=True)
    for n in range(videos):
        _write_video(places[0] / f"{n}.mp4", _texture(rng, 400, 480))
    for n in range(photos):
        cv2.imwrite(str(places[1] / f"{n}.jpg"), _texture(rng, 240, 320))
    return places


def png_of_size(width: int, height: int) -> bytes:
    """A grey PNG whose header promises that size; it holds ten rows at most, and of a wide one none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = bytes((width + 1) * min(height, 10)) if width < 1 << 20 else b""
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.GaussianBlur(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), (0, 0), 1.5)


def _write_video(path: Path, texture: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 200, 160, "yuv420p"
        for t in range(16):
            window = np.ascontiguousarray(texture[20 + 3 * t : 180 + 3 * t, 10 + 4 * t : 210 + 4 * t])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode(None))

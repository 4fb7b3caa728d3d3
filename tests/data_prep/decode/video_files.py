"""Videos of every kind that is not plain, made by PyAV and by hand, and what ffmpeg shows of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

FFMPEG = shutil.which("ffmpeg")


def scene(frames: int, height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """A smooth picture without any symmetry that moves, RGB (T, H, W, 3)."""
    grid = np.random.default_rng(seed).integers(40, 215, (6, 8 + frames, 3), np.uint8)
    wide = cv2.resize(grid, (width + 4 * frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, 4 * t : 4 * t + width] for t in range(frames)])


def write(path: Path, frames: np.ndarray, codec: str = "libx264", rate: int = 25, **settings: Any) -> Path:
    """A video of RGB frames; `settings` are attributes of the codec, `options` among them, `format` and `first_pts`."""
    container_format = settings.pop("format", None)
    first = settings.pop("first_pts", 0)
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = settings.pop("pix_fmt", "yuv420p")
        stream.options = (
            {"crf": "4", **settings.pop("options", {})} if codec == "libx264" else settings.pop("options", {})
        )
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = first + number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Give an mp4's track a display matrix of whole numbers (its `tkhd` box, ISO 14496-12)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    struct.pack_into(">9i", data, at, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def run_ffmpeg(*words: str, content: bytes) -> None:
    """Run ffmpeg with these bytes as its standard input."""
    assert FFMPEG
    subprocess.run([FFMPEG, *words], input=content, check=True)


def shown_by_ffmpeg(path: Path, filters: str = "null") -> np.ndarray:
    """All frames as ffmpeg shows them, RGB (T, H, W, 3)."""
    assert FFMPEG
    words = [
        FFMPEG,
        "-v",
        "error",
        "-i",
        str(path),
        "-vsync",
        "0",
        "-vf",
        filters,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
    ]
    probe = subprocess.run(
        [FFMPEG, "-i", str(path), "-vf", f"{filters},showinfo", "-frames:v", "1", "-f", "null", "-"],
        capture_output=True,
        text=True,
    )
    width, height = map(int, probe.stderr.split(" s:")[1].split(" ")[0].split("x"))
    data = subprocess.run([*words, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)

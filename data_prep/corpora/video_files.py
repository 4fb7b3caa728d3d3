"""Writing short videos, the same bytes every time."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]


def write_mp4(path: Path, frames: ByteArray, fps_hz: int, crf: int) -> None:
    """Encode RGB frames (T, H, W, 3) as h264 in yuv420p, the same bytes every time.

    One thread, and x264's plain C code: with its kernels for AVX-512 the bytes differ from run to run.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps_hz)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {
            "crf": str(crf),
            "preset": "fast",
            "threads": "1",
            "flags": "+bitexact",
            "x264-params": "asm=0",
        }
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())

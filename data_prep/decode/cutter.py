"""Cuts one input into samples: chosen frames, shrunk and encoded as JPEG. Runs inside the decode child."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_prep.config import DatasetConfig
from data_prep.corpora.image_files import decode_rgb, read_bytes
from data_prep.corpora.items import Input
from data_prep.decode.failures import DecodeFailure, Unwanted
from data_prep.decode.jpeg import encode_jpeg, shrink
from data_prep.decode.selection import IntArray, choose_starts, needed_frames
from data_prep.decode.videos import Frame, open_video

IMAGE_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG"}


@dataclass(frozen=True)
class CutSample:
    """One sample without its key: encoded frames, and what its KEY.json says of them."""

    frames: tuple[bytes, ...]
    meta: dict[str, Any]
    """fps_hz (None: no clock), pts_s and frame_index of every frame."""


def cut_input(item: Input, config: DatasetConfig) -> Iterator[CutSample]:
    """Samples of one input, in order of their first frames.

    Raises:
        DecodeFailure: it cannot be decoded (other exceptions of decoders come through as they are).
        Unwanted: it is too small, too short, or a single image where clips are wanted.
    """
    if item.kind == "video":
        _refuse_image(item.uri)
        video = open_video(item.uri, config.decoder)
        starts = _choose(video.frame_count, config)
        frames = video.read(needed_frames(starts, config.frames_per_sample, config.frame_step))
        yield from _group(frames, starts, video.fps_hz or None, config)
    else:
        starts = _choose(len(item.files), config)
        numbers = needed_frames(starts, config.frames_per_sample, config.frame_step)
        yield from _group(_read_images(item.files, numbers), starts, None, config)


def _refuse_image(path: str) -> None:
    """Refuse an empty file, and a single image named .mp4, which decoders take for a short video."""
    with Path(path).open("rb") as file:
        start = file.read(8)
    if not start:
        raise DecodeFailure("the file is empty")
    for kind, magic in IMAGE_MAGIC.items():
        if start.startswith(magic):
            raise DecodeFailure(f"holds a {kind} image, not a video")


def _choose(frame_count: int, config: DatasetConfig) -> IntArray:
    frames = config.frames_per_sample
    starts = choose_starts(frame_count, frames, config.frame_step, config.clip_stride, config.max_samples_per_input)
    if not len(starts):
        span = (frames - 1) * config.frame_step + 1
        raise Unwanted(f"{frame_count} frame(s); a sample spans {span}")
    return starts


def _read_images(files: tuple[str, ...], numbers: IntArray) -> Iterator[Frame]:
    for number in numbers.tolist():
        yield Frame(number, None, decode_rgb(read_bytes(Path(files[number])), files[number]))


def _group(
    frames: Iterator[Frame], starts: IntArray, fps_hz: float | None, config: DatasetConfig
) -> Iterator[CutSample]:
    """Collect encoded frames into samples; only frames that a later sample needs are kept."""
    step, count = config.frame_step, config.frames_per_sample
    waiting: dict[int, tuple[bytes, float | None]] = {}
    pending = starts.tolist()
    for frame in frames:
        if min(frame.rgb.shape[:2]) < config.min_size:
            height, width = frame.rgb.shape[:2]
            raise Unwanted(f"{width}x{height} px; the short side must be at least {config.min_size}")
        encoded = encode_jpeg(shrink(frame.rgb, config.short_side), config.quality)
        waiting[frame.number] = (encoded, frame.pts_s)
        while pending and pending[0] + (count - 1) * step == frame.number:
            numbers = [pending[0] + k * step for k in range(count)]
            yield _sample(numbers, waiting, fps_hz)
            pending.pop(0)
            waiting = {n: v for n, v in waiting.items() if pending and n >= pending[0]}
    if pending:
        raise DecodeFailure(f"ended before frame {pending[0]}")


def _sample(numbers: list[int], waiting: dict[int, tuple[bytes, float | None]], fps_hz: float | None) -> CutSample:
    times = [waiting[n][1] for n in numbers]
    known = [t for t in times if t is not None]
    if any(later <= earlier for earlier, later in pairwise(known)):
        raise DecodeFailure(f"presentation times {known} of frames {numbers} do not increase")
    meta = {
        "fps_hz": None if fps_hz is None else round(fps_hz, 6),
        "pts_s": [None if t is None else round(t, 6) for t in times],
        "frame_index": numbers,
    }
    return CutSample(tuple(waiting[n][0] for n in numbers), meta)

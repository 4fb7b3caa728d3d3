"""Cuts one input into samples: chosen frames, shrunk, judged by the filters and encoded. Runs in the decode child."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.encoders import SUFFIXES, encode
from mcjepa.data_prep.decode.flow_samples import encode_flow_sample, pair_frames, read_pair
from mcjepa.data_prep.decode.images import read_picture
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.decode.selection import (
    IntArray,
    choose_starts,
    frames_at_rate,
    needed_frames,
    unbroken_runs,
)
from mcjepa.data_prep.decode.video.planes import Planes
from mcjepa.data_prep.decode.videos import ByteArray, NumberedFrame, open_video
from mcjepa.data_prep.settings import DatasetConfig

if TYPE_CHECKING:
    from mcjepa.data_prep.filters.judge import SampleJudge


@dataclass(frozen=True)
class CutSample:
    """One sample without its key: its files but for the json, and what its KEY.json says of them."""

    members: dict[str, bytes]
    """Content by suffix: `jpg`; `00.jpg`, `01.jpg` …; of a flow pair `0.png`, `1.png`, `flow.flo`, `valid.png`."""
    meta: dict[str, Any]
    """fps_hz (None: no clock), pts_s and frame_index of every frame; label and scores where there are any."""
    decoder: str = ""
    """Which decoder gave its frames; empty for pictures."""


@dataclass(frozen=True)
class DroppedSample:
    """A sample that a filter refused."""

    frame_index: tuple[int, ...]
    filter: str
    reason: str


def cut_input(
    item: Input, config: DatasetConfig, judge: SampleJudge | None = None
) -> Iterator[CutSample | DroppedSample]:
    """Samples of one input, in order of their first frames.

    Args:
        item: An input whose files are local.
        config: How to cut.
        judge: A new judge for this input; None where all filters are off.

    Raises:
        DecodeFailure: it cannot be decoded (other exceptions of decoders come through as they are).
        Unwanted: it is too small, too short, or of a kind that gives no such samples.
    """
    cutter = _Cutter(config, judge, item.label)
    if item.refusal:
        raise DecodeFailure(item.refusal)
    if config.kind == "flow":
        yield cutter.cut_flow(item)
    elif item.kind == "video":
        yield from _cut_video(cutter, item.uri, config)
    elif item.kind == "pair":  # two neighbours: there is nothing to step or stride over
        cutter = _Cutter(replace(config, frame_step=1, clip_stride=1), judge, item.label)
        read = partial(_read_pictures, pair_frames(item), config)
        yield from cutter.cut(read, np.arange(2))
    else:
        files = [Path(f) for f in item.files]
        yield from cutter.cut(partial(_read_pictures, files, config), np.arange(len(files)))


def _cut_video(cutter: _Cutter, path: str, config: DatasetConfig) -> Iterator[CutSample | DroppedSample]:
    video = open_video(path, config.decoder, config.max_megapixels, config.video)
    cutter.decoder = video.decoder
    cutter.require_size(*video.size)
    table = video.table
    runs = unbroken_runs(table.times_s, table.stretches, config.video.max_gap_s)
    selected = frames_at_rate(table.times_s, config.rate_hz, table.stretches)
    facts: dict[str, Any] = {"fps_hz": round(table.fps_hz, 6) if table.fps_hz else None}
    if table.pixel_aspect != 1:
        facts["pixel_aspect"] = list(table.pixel_aspect.as_integer_ratio())
    yield from cutter.cut(video.read, selected, runs[selected], facts)


def _read_pictures(files: Sequence[Path], config: DatasetConfig, numbers: IntArray) -> Iterator[NumberedFrame]:
    for number in numbers.tolist():
        try:
            picture = read_picture(files[number], config.max_megapixels, config.short_side)
            yield NumberedFrame(number, None, picture.rgb, picture.size)
        except DecodeFailure as failure:
            raise DecodeFailure(f"frame {number}: {failure}" if len(files) > 1 else str(failure)) from failure


@dataclass
class _Stored:
    """A frame as it is stored."""

    pts_s: float | None
    picture: ByteArray | Planes
    encoded: bytes = b""
    """Empty until a sample with it is kept."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.picture.size if isinstance(self.picture, Planes) else self.picture.shape[1::-1]

    @cached_property
    def rgb(self) -> ByteArray:
        """What filters look at, (H, W, 3)."""
        return self.picture.rgb() if isinstance(self.picture, Planes) else self.picture


class _Cutter:
    """Makes samples of one input's frames."""

    def __init__(self, config: DatasetConfig, judge: SampleJudge | None, label: str) -> None:
        self._config = config
        self._judge = judge
        self._label = label
        self.decoder = ""
        """Of a video: which decoder reads it."""

    def require_size(self, width: int, height: int) -> None:
        """Leave out what is too small.

        Raises:
            Unwanted: the short side is below min_size.
        """
        if min(width, height) < self._config.min_size:
            raise Unwanted(f"{width}x{height} px; the short side must be at least {self._config.min_size}")

    def cut(
        self,
        read: Callable[[IntArray], Iterator[NumberedFrame]],
        selected: IntArray,
        runs: IntArray | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Iterator[CutSample | DroppedSample]:
        """Samples of the frames `selected`, whose numbers increase; only frames that a later sample needs are kept.

        Args:
            read: Gives the frames of some numbers.
            selected: Numbers of the frames to cut from, (n,).
            runs: Their runs, which no sample leaves, (n,); None: one run.
            facts: What KEY.json says of a video; None for pictures, which have no clock and must be of one size.
        """
        config = self._config
        runs = np.zeros(len(selected), np.int64) if runs is None else runs
        step, count = config.frame_step, config.frames_per_sample
        starts = choose_starts(runs, count, step, config.clip_stride, config.max_samples_per_input)
        if not len(starts):
            pieces = f" in {runs[-1] + 1} pieces" if len(runs) and runs[-1] else ""
            raise Unwanted(f"{len(selected)} frame(s){pieces}; a sample spans {(count - 1) * step + 1}")
        frames = read(selected[needed_frames(starts, count, step)])
        waiting: dict[int, _Stored] = {}
        for start in starts.tolist():
            numbers = selected[start : start + (count - 1) * step + 1 : step].tolist()
            waiting = {n: stored for n, stored in waiting.items() if n >= numbers[0]}
            while numbers[-1] not in waiting:
                frame = next(frames)
                self.require_size(*frame.size)
                waiting[frame.number] = _Stored(frame.pts_s, frame.shrunk(config.short_side))
            yield self._sample(numbers, [waiting[n] for n in numbers], facts)
        next(frames, None)  # there is no other, but the decoder finishes: damage after the last frame counts too

    def _sample(
        self, numbers: list[int], frames: list[_Stored], facts: dict[str, Any] | None
    ) -> CutSample | DroppedSample:
        known = [f.pts_s for f in frames if f.pts_s is not None]
        if any(later <= earlier for earlier, later in pairwise(known)):
            raise DecodeFailure(f"presentation times {known} of frames {numbers} do not increase")
        sizes = {f.size for f in frames}
        if len(sizes) > 1:
            named = " and ".join(sorted(f"{width}x{height}" for width, height in sizes))
            reason = f"frames {numbers} have different sizes: {named} px"
            if facts is None:
                raise DecodeFailure(reason)
            return DroppedSample(tuple(numbers), "size", reason)
        meta = {
            **({"fps_hz": None} if facts is None else facts),
            "pts_s": [None if f.pts_s is None else round(f.pts_s, 6) for f in frames],
            "frame_index": numbers,
        }
        rgb = [f.rgb for f in frames] if self._judge else []
        return self._judged(rgb, meta, lambda: self._encode(frames))

    def _encode(self, frames: list[_Stored]) -> dict[str, bytes]:
        suffix = SUFFIXES[self._config.encoding]
        for frame in frames:
            frame.encoded = frame.encoded or encode(frame.picture, self._config.encoding, self._config.quality)
        if self._config.kind == "image":
            return {suffix: frames[0].encoded}
        return {f"{k:02d}.{suffix}": frame.encoded for k, frame in enumerate(frames)}

    def cut_flow(self, item: Input) -> CutSample | DroppedSample:
        """The sample of a pair with ground truth."""
        if item.kind != "pair":
            raise Unwanted(f"an input of kind {item.kind}; flow samples are cut from pairs with ground truth")
        frames = read_pair(item, self._config.max_megapixels)
        self.require_size(frames[0].shape[1], frames[0].shape[0])
        meta = {"fps_hz": None, "pts_s": [None, None], "frame_index": [0, 1]}
        return self._judged(frames, meta, lambda: encode_flow_sample(item, frames, self._config.max_megapixels))

    def _judged(
        self, frames: Sequence[ByteArray], meta: dict[str, Any], encode_members: Callable[[], dict[str, bytes]]
    ) -> CutSample | DroppedSample:
        """The sample, encoded, unless a filter drops it."""
        if self._label:
            meta["label"] = self._label
        if self._judge:
            verdict = self._judge.judge(meta["frame_index"], frames)
            if verdict.filter:
                return DroppedSample(tuple(meta["frame_index"]), verdict.filter, verdict.reason)
            meta["scores"] = verdict.scores
        return CutSample(encode_members(), meta, self.decoder)

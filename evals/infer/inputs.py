"""From what a user names to clips: videos, folders of frames, and images, by data preparation's own readers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mcjepa.data_prep.corpora.inputs import companion_of, in_frame_order
from mcjepa.data_prep.corpora.trees import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mcjepa.data_prep.decode.images import read_image
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.decode.videos import open_video
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.infer.clip import Clip, Frame, are_distinct, distinct_names
from mcjepa.pipeline.errors import UsageError

MAX_MEGAPIXELS = 200.0
log = logging.getLogger(__name__)


def open_clips(inputs: Sequence[str], max_frames: int = 0) -> list[Clip]:
    """The clips that the inputs are: one per video, one per folder, and one of all images together.

    Args:
        inputs: paths.
        max_frames: frames taken from the start of each clip; 0 = all.

    Raises:
        UsageError: an input is absent, or two clips would be written to one folder.
        DataError: a folder has no images, or the only input is a video that cannot be opened; beside others it is a
            clip whose reading fails.
    """
    paths = [Path(text).expanduser() for text in inputs]
    for path in paths:
        if not path.exists():
            raise UsageError(f"no file or folder {path}, expected a video, a folder of frames or an image")
    images = [path for path in paths if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    clips = [_image_clip(images)] if images else []
    for path in paths:
        if path.is_dir():
            clips.append(_folder_clip(path))
        elif path not in images:
            clips.append(_video_clip(path, alone=len(paths) == 1))
    return _named_apart([_first_frames(clip, max_frames) for clip in clips])


def _image_clip(paths: list[Path]) -> Clip:
    ends = dict.fromkeys([paths[0].stem, paths[-1].stem])
    return _frames_clip("-".join(ends), paths, [str(path.resolve()) for path in paths])


def _folder_clip(folder: Path) -> Clip:
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        folders = [path for path in files if path.is_dir()]
        found = f" but {len(videos)} videos, {len(folders)} folders" if videos or folders else ""
        raise DataError(f"{folder} has no image{found}; expected frames; name videos and folders of frames instead")
    ordered = in_frame_order(_without_companions(images, folder), lambda path: path.name)
    return _frames_clip(folder.resolve().name, ordered, [str(folder.resolve())])


def _without_companions(images: list[Path], folder: Path) -> list[Path]:
    """The images that are frames, by data preparation's rule; masks and the like beside them are counted."""
    stems = {path.stem for path in images}
    beside = sorted(path.name for path in images if companion_of(path.stem, stems))
    if beside:
        log.warning(
            "%s: %d of %d images belong to a frame by their names (%s) and are left out; name them one by one where "
            "they are frames",
            *(folder, len(beside), len(images), beside[0]),
        )
    return [path for path in images if not companion_of(path.stem, stems)]


def _frames_clip(name: str, paths: list[Path], source: list[str]) -> Clip:
    def read(numbers: Sequence[int]) -> Iterator[Frame]:
        for number in numbers:
            try:
                yield np.require(read_image(paths[number], MAX_MEGAPIXELS), requirements="W")
            except DecodeFailure as failure:
                raise DataError(f"{paths[number]} {failure}; expected a readable image; replace it") from failure

    size, changed = sum(path.stat().st_size for path in paths), max(path.stat().st_mtime_ns for path in paths)
    return Clip(
        name=name, source=tuple(source), frames=distinct_names(paths), read=read, bytes=size, changed_ns=changed
    )


def _video_clip(path: Path, alone: bool) -> Clip:
    try:
        video = open_video(str(path), "pyav", MAX_MEGAPIXELS)
    except DecodeFailure as failure:
        advice = "expected a readable video or image; replace it"
        if alone:
            raise DataError(f"{path} {failure}; {advice}") from failure
        return _unreadable_clip(path, DataError(f"{path} cannot be decoded ({failure}); {advice}"))

    def read(numbers: Sequence[int]) -> Iterator[Frame]:
        frames: Any = video.read(np.asarray(numbers, np.int64))
        while True:
            try:  # decoders raise what they like on damaged frames
                frame = next(frames, None)
            except Exception as error:
                raise DataError(f"{path} cannot be decoded ({error}); expected a whole video; replace it") from error
            if frame is None:
                return
            yield frame.rgb

    names = tuple(f"{number:06d}" for number in range(video.frame_count))
    return Clip(
        name=path.stem,
        source=(str(path.resolve()),),
        frames=names,
        read=read,
        fps_hz=video.table.fps_hz,
        bytes=path.stat().st_size,
        changed_ns=path.stat().st_mtime_ns,
    )


def _unreadable_clip(path: Path, error: DataError) -> Clip:
    """A clip in name only, so that the others are done."""

    def read(numbers: Sequence[int]) -> Iterator[Frame]:
        raise error

    return Clip(name=path.stem, source=(str(path.resolve()),), frames=("000000", "000001"), read=read)


def _first_frames(clip: Clip, most: int) -> Clip:
    return replace(clip, frames=clip.frames[:most]) if most else clip


def _named_apart(clips: list[Clip]) -> list[Clip]:
    """Clips of distinct names: those whose names clash get the whole names of their files.

    Raises:
        UsageError: those clash too.
    """
    names = [clip.name.casefold() for clip in clips]
    apart = [replace(c, name=Path(c.source[0]).name) if names.count(c.name.casefold()) > 1 else c for c in clips]
    if not are_distinct(clip.name for clip in apart):
        clash = next(c for i, c in enumerate(apart) if c.name.casefold() in [d.name.casefold() for d in apart[:i]])
        raise UsageError(
            f"two inputs would be written to the folder {clash.name}, expected a name of its own for each; "
            "pass them in two calls with another --out"
        )
    return apart

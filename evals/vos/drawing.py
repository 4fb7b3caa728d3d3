"""Pictures of a sequence: a late frame with its masks, and the features' main colours over the video.

Predicted masks can be kept as palette PNGs, as DAVIS' servers take them, and as the video tinted by them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.image_files import write_id_png
from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.evals.cards import Picture
from mcjepa.evals.pictures import overlay_labels, pca_pictures, side_by_side, stacked, write_png
from mcjepa.evals.video_writer import VideoWriter
from mcjepa.evals.vos.sequence import Ids
from mcjepa.evals.vos.settings import VosConfig


class SequenceViews:
    """What is kept of a sequence while it passes: the masks of one late frame, the features of a few.

    Args:
        first_HW: the first mask.
        late: the frame whose masks are kept.
        kept: the frames whose features are kept.
    """

    def __init__(self, first_HW: Ids, late: int, kept: set[int]) -> None:
        self.first_HW = first_HW
        self.late = late
        self.predicted_HW: Ids | None = None
        self.truth_HW: Ids | None = None
        self.features: dict[int, NDArray[np.float32]] = {}
        self._kept = kept

    def keep_features(self, index: int, map_Chw: Tensor) -> None:
        """Sees the features of frame `index`."""
        if index in self._kept:
            self.features[index] = map_Chw.numpy().copy()

    def see(self, index: int, predicted_HW: Ids, truth_HW: Ids | None) -> None:
        """Sees the masks of frame `index`."""
        if index == self.late:
            self.predicted_HW, self.truth_HW = predicted_HW, truth_HW


def draw_sequence(video: MaskedVideo, views: SequenceViews, out: Path) -> Iterator[Picture]:
    """Writes masks.png and, where features were kept, features.png."""
    named = {"truth": views.truth_HW, "predicted": views.predicted_HW, "first mask copied": views.first_HW}
    masks = {name: mask for name, mask in named.items() if mask is not None}
    frame = _of_size(video.read_frame(views.late), views.first_HW.shape)
    panels = [frame, *(overlay_labels(frame, mask, clear=0) for mask in masks.values())]
    yield Picture(
        caption=f"{video.name}, frame {views.late} of {len(video.frames)}",
        path=write_png(out / "masks.png", side_by_side(panels)),
        kind="vos",
        columns=("frame", *masks),
    )
    if views.features:
        yield _draw_features(video, views, out / "features.png")


def _draw_features(video: MaskedVideo, views: SequenceViews, path: Path) -> Picture:
    order = sorted(views.features)
    frames = [video.read_frame(index) for index in order]
    size = frames[0].shape[:2]
    colours = [_of_size(picture, size) for picture in pca_pictures(np.stack([views.features[i] for i in order]))]
    return Picture(
        caption=f"{video.name}: features' main directions as red, green, blue, the same over the video",
        path=write_png(path, stacked([side_by_side(frames), side_by_side(colours)])),
        kind="features",
        columns=tuple(f"frame {index}" for index in order),
    )


def _of_size(picture: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """A picture or mask of another size, by its nearest pixels."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), np.uint8)


class MaskSink:
    """Writes the masks of one sequence as they come, in the forms that are asked for; a context manager.

    Args:
        video: the sequence.
        out: folder of the score: masks/SEQUENCE/FRAME.png and overlays/SEQUENCE.mp4 are below it.
        config: which forms.
    """

    def __init__(self, video: MaskedVideo, out: Path, config: VosConfig) -> None:
        self._video = video
        self._folder = out / "masks" / video.name if config.masks else None
        self._movie = VideoWriter(out / "overlays" / f"{video.name}.mp4") if config.overlays else None

    def __enter__(self) -> MaskSink:
        if self._movie:
            self._movie.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._movie:
            self._movie.__exit__(kind, error, trace)

    def add(self, index: int, mask_HW: Ids) -> None:
        """Takes the mask of frame `index`; frames come in order."""
        if self._folder:
            _write_mask(self._folder / f"{Path(str(self._video.frames[index])).stem}.png", mask_HW)
        if self._movie:
            frame = self._video.read_frame(index)
            self._movie.write(overlay_labels(frame, _of_size(mask_HW, frame.shape[:2]), clear=0))


def _write_mask(path: Path, mask_HW: Ids) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_id_png(partial, mask_HW)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

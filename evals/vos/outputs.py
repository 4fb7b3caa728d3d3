"""What can be kept of predicted masks: palette PNGs as DAVIS' servers take them, and the video tinted by them."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from mcjepa.data_prep.corpora.image_files import write_id_png
from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.evals.pictures import overlay_labels
from mcjepa.evals.video_writer import VideoWriter
from mcjepa.evals.vos.sequence import Ids
from mcjepa.evals.vos.settings import VosConfig


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
            if frame.shape[:2] == mask_HW.shape:
                frame = overlay_labels(frame, mask_HW, clear=0)
            self._movie.write(frame)


def _write_mask(path: Path, mask_HW: Ids) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_id_png(partial, mask_HW)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

"""Masks that somebody else's method has written: DIR/SEQUENCE/FRAME.png, palette or grey, as DAVIS' tools read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.vos.sequence import Ids, read_ids_of


def read_estimates(folder: Path, video: MaskedVideo) -> Iterator[tuple[int, Ids]]:
    """The predicted masks of a sequence, in order, without those of the first and the last frame: nobody scores them.

    Grey masks of 0 and 255 have one object; so have all masks where the set says so (DAVIS-2016).

    Yields:
        The frame's number and its object ids (H, W).

    Raises:
        DataError: a mask is absent, damaged or no label map.
    """
    names = tuple(folder / video.name / f"{Path(str(frame)).stem}.png" for frame in video.frames)
    scored = range(1, len(names) - 1)
    missing = [names[index] for index in scored if not names[index].is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(scored)} predicted masks are not there, the first is {missing[0]}; expected one "
            "for every frame but the first and the last; complete them"
        )
    predicted = MaskedVideo(video.name, video.frames, names, video.one_object)
    for index in scored:
        yield index, read_ids_of(predicted, index)


def require_estimates(folder: Path) -> None:
    """Refuses a place that cannot hold estimates.

    Raises:
        DataError: there is no such folder, or it has no folder of a sequence.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder} of estimates; expected SEQUENCE/FRAME.png in it; correct the path")
    if not any(place.is_dir() for place in folder.iterdir()):
        raise DataError(f"{folder} has no folder of a sequence; expected SEQUENCE/FRAME.png; name the folder above")

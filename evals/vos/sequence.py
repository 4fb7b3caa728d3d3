"""J and F of one sequence, frame by frame as its masks come: nothing of a video is held but numbers.

Scored are the objects of the first frame, in every frame but the first, whose mask is given, and the last (the
official rule for the semi-supervised task). Objects that appear later cannot be asked for: they are named, not scored.
An object that is absent from a frame counts as found there only if nothing is predicted.

Existing masks of another method are read from DIR/SEQUENCE/FRAME.png, palette or grey, as DAVIS' tools read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.image_files import read_ids
from mcjepa.data_prep.corpora.items import VOID, MaskedVideo, holds_255_alone
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.vos.metrics import Outline, boundary_accuracy, outline, region_similarity, summarise_sequence

COPY_FIRST, RANDOM = "copy_first", "random"
"""Baselines: the first mask copied, and the features of a random encoder."""
Ids = NDArray[np.uint8]


def read_ids_of(video: MaskedVideo, index: int) -> Ids:
    """Object ids (H, W) of frame `index`; void pixels (255) are background, as in DAVIS' own evaluation.

    Raises:
        DataError: the file is absent, damaged or no label map.
    """
    ids = video.read_mask(index)
    return np.where(ids == VOID, np.uint8(0), ids)


class SequenceScorer:
    """Takes the frames of one sequence in order and gives one row an object.

    Args:
        name: the sequence, for messages.
        first_HW: object ids of the first frame.

    Raises:
        DataError: the first mask is empty.
    """

    def __init__(self, name: str, first_HW: Ids) -> None:
        self.name = name
        self.frames = 0
        self.later: set[int] = set()
        """Ids of objects that the first frame does not show."""
        self.objects = object_ids(first_HW)
        if not self.objects:
            raise DataError(f"the first mask of {name} is empty; expected an object; leave the sequence out")
        self._size = first_HW.shape
        self._copied = {label: outline(first_HW == label) for label in self.objects}
        self._absent = dict.fromkeys(self.objects, 0)
        self._values: dict[tuple[int, str], list[float]] = {}

    def add(self, truth_HW: Ids, predicted_HW: Ids, place: str, random_HW: Ids | None = None) -> None:
        """Scores one frame.

        Args:
            truth_HW: object ids.
            predicted_HW: object ids.
            place: the frame's name, for messages.
            random_HW: object ids by the random encoder, of all frames or of none.

        Raises:
            DataError: a mask has another size, or an object is predicted that the first frame does not show.
        """
        self._require_size(truth_HW, f"the mask of {place}")
        self._require_size(predicted_HW, f"the predicted mask of {place}")
        require_known_ids(predicted_HW, self.objects, place)
        self.frames += 1
        self.later |= set(object_ids(truth_HW)) - set(self.objects)
        for label in self.objects:
            truth = outline(truth_HW == label)
            self._absent[label] += not truth.mask_HW.any()
            self._compare(label, "", truth, outline(predicted_HW == label))
            self._compare(label, f"_{COPY_FIRST}", truth, self._copied[label])
            if random_HW is not None:
                self._compare(label, f"_{RANDOM}", truth, outline(random_HW == label))

    def rows(self) -> list[dict[str, object]]:
        """One row an object: J and F statistics of the prediction, of the copied first mask and of the random encoder.

        Raises:
            DataError: there was no frame.
        """
        if not self.frames:
            raise DataError(f"{self.name} has no frame between its first and last; expected 3 or more; leave it out")
        return [self._row(label) for label in self.objects]

    def _row(self, label: int) -> dict[str, object]:
        row: dict[str, object] = {"sequence": self.name, "object": label, "frames": self.frames}
        row["absent_frames"] = self._absent[label]
        for suffix in ("", f"_{COPY_FIRST}", f"_{RANDOM}"):
            for measure in "jf":
                values = self._values.get((label, measure + suffix))
                if values is not None:
                    statistics = dataclasses.asdict(summarise_sequence(np.array(values)))
                    row |= {f"{measure}_{key}{suffix}": value for key, value in statistics.items()}
        return row

    def _compare(self, label: int, suffix: str, truth: Outline, prediction: Outline) -> None:
        self._values.setdefault((label, f"j{suffix}"), []).append(region_similarity(truth, prediction))
        self._values.setdefault((label, f"f{suffix}"), []).append(boundary_accuracy(truth, prediction))

    def _require_size(self, mask_HW: Ids, what: str) -> None:
        if mask_HW.shape != self._size:
            found, expected = (f"{shape[1]}x{shape[0]} px" for shape in (mask_HW.shape, self._size))
            raise DataError(f"{what} is {found}, the sequence's first one {expected}; expected one size; resize it")


def object_ids(mask_HW: Ids) -> tuple[int, ...]:
    """The objects of a mask, in order; 0 is the background."""
    return tuple(label for label in np.flatnonzero(np.bincount(mask_HW.ravel())).tolist() if label)


def require_known_ids(mask_HW: Ids, objects: tuple[int, ...], place: str) -> None:
    """Refuses a predicted mask with an object that the first frame does not show.

    Raises:
        DataError: naming the first such id.
    """
    unknown = sorted(set(object_ids(mask_HW)) - set(objects))
    if unknown:
        raise DataError(
            f"the predicted mask of {place} has the object id {unknown[0]}; the first frame shows "
            f"{', '.join(map(str, objects))}; number the objects as in the first mask"
        )


def frame_place(video: MaskedVideo, index: int) -> str:
    """A frame as people find it: SEQUENCE/00007."""
    return f"{video.name}/{Path(str(video.frames[index])).stem}"


def read_estimates(folder: Path, video: MaskedVideo, objects: tuple[int, ...]) -> Iterator[tuple[int, Ids]]:
    """The predicted masks of a sequence, in order, without those of the first and the last frame: nobody scores them.

    255 is background. Of a sequence with one object it is that object where the first mask that is not empty has no
    other id: many tools write grey masks of 0 and 255. Where the set has one object (DAVIS-2016), so have all masks.

    Args:
        folder: of the estimates.
        video: the sequence.
        objects: ids of its first mask.

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
    grey = None if len(objects) == 1 else False
    for index in scored:
        ids = read_ids(names[index])
        if grey is None and ids.any():
            grey = holds_255_alone(ids)
        ids = np.where(ids == VOID, np.uint8(objects[0] if grey else 0), ids)
        yield index, np.where(ids > 0, np.uint8(1), np.uint8(0)) if video.one_object else ids


def require_estimates(folder: Path) -> None:
    """Refuses a place that cannot hold estimates.

    Raises:
        DataError: there is no such folder, or it has no folder of a sequence.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder} of estimates; expected SEQUENCE/FRAME.png in it; correct the path")
    if not any(place.is_dir() for place in folder.iterdir()):
        raise DataError(f"{folder} has no folder of a sequence; expected SEQUENCE/FRAME.png; name the folder above")

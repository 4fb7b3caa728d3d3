"""What readers of data sets hand out: inputs to prepare, flow pairs, labelled images and masked videos.

Items hold paths and read on demand, so a list of them is small. Images are RGB (H, W, 3) uint8; flow is
(H, W, 2) float32 in pixels, u to the right and v down, from frame 0 to frame 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.corpora.flow.files import read_flow
from mcjepa.data_prep.corpora.image_files import read_ids, read_mask, read_rgb
from mcjepa.data_prep.corpora.places import Location
from mcjepa.data_prep.errors import DataError

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

InputKind = Literal["video", "image", "frames", "pair"]

VOID = 255
UNKNOWN = -1
"""In a table of classes: a label value that the set does not have."""


@dataclass(frozen=True)
class Input:
    """One unit of raw material of a corpus."""

    name: str
    """Name below the corpus's root, with '/' between parts; the same wherever the corpus lies."""
    uri: str
    """Path or s3:// location of the file; of the folder for frames and pairs; of the tar for a member of one."""
    kind: InputKind
    members: tuple[str, ...] = ()
    """Frames in order, or the files of a pair, as names below `uri`; empty for videos and images."""
    roles: tuple[str, ...] = ()
    """Pairs: what each member is, by the names of FlowPair's fields (`frame0`, `frame1`, `flow`, `valid`, …)."""
    span: tuple[int, int] | None = None
    """Members of a tar: offset and length of the content inside `uri`, bytes."""
    bytes: int = -1
    """Size of all its files where listing told it, else -1."""
    label: str = ""
    """Class by the corpus's folders; empty where it has none or none is wanted."""
    refusal: str = ""
    """Why it cannot be read, where listing showed it (a link into itself): it is quarantined for that."""

    @property
    def files(self) -> tuple[str, ...]:
        """Locations of all its files, in order."""
        return tuple(f"{self.uri}/{m}" for m in self.members) if self.members else (self.uri,)


@dataclass(frozen=True)
class FlowTruth:
    """Ground truth of one pair."""

    flow_px: FloatArray
    """(H, W, 2); zero where invalid."""
    valid: BoolArray
    """(H, W): the flow is known."""
    occluded: BoolArray | None
    """(H, W): the point cannot be seen in frame 1; None where the data set does not say."""


@dataclass(frozen=True)
class FlowPair:
    """Two frames and, where the data set has it, the flow from the first to the second."""

    name: str
    frame0: Location
    frame1: Location
    flow: Location | None
    """A .flo, .pfm or KITTI .png file."""
    valid: Location | None = None
    """Mask file, > 0 where the flow is known."""
    invalid: Location | None = None
    """Mask file, > 0 where the flow is not known (Sintel)."""
    occluded: Location | None = None
    """Mask file, > 0 where occluded."""
    flow_noc: Location | None = None
    """KITTI: flow of the points visible in both frames; its values differ a little from `flow`'s."""
    objects: Location | None = None
    """KITTI 2015: 8-bit map of independently moving objects, 0 is the background."""

    @staticmethod
    def from_input(item: Input) -> FlowPair:
        """The pair that an input of kind `pair` lists.

        Raises:
            DataError: it lacks a frame or the flow.
        """
        files = dict(zip(item.roles, item.files, strict=True))
        missing = [role for role in ("frame0", "frame1", "flow") if role not in files]
        if missing:
            raise DataError(f"{item.name} has no {', '.join(missing)}; expected a pair with its flow; leave it out")
        return FlowPair(item.name, **files)

    def read_frames(self) -> tuple[ByteArray, ByteArray]:
        """Both frames, RGB (H, W, 3); grey images have three equal channels.

        Raises:
            DataError: one cannot be read, or their sizes differ.
        """
        frame0, frame1 = read_rgb(self.frame0), read_rgb(self.frame1)
        if frame0.shape != frame1.shape:
            raise DataError(f"{self.name}: frames of {frame0.shape} and {frame1.shape}; expected one size")
        return frame0, frame1

    def read_truth(self, *, noc: bool = False) -> FlowTruth:
        """Flow, validity and occlusion.

        Args:
            noc: Take flow and validity from `flow_noc` (KITTI's non-occluded score uses that file's values).

        Raises:
            DataError: the pair has no such ground truth, or a file is unreadable or of another size.
        """
        path = self.flow_noc if noc else self.flow
        if path is None:
            kind = "non-occluded ground truth" if noc else "ground truth"
            raise DataError(f"{self.name} has no {kind}; expected a flow file beside it; leave the pair out")
        flow, valid = read_flow(path)
        masks = [("valid", self.valid), ("invalid", self.invalid), ("occluded", self.occluded)]
        read = {name: read_mask(p) for name, p in masks if p is not None}
        for name, mask in read.items():
            if mask.shape != valid.shape:
                raise DataError(f"{self.name}: mask {name} of {mask.shape}; expected the flow's {valid.shape}")
        valid = valid & read.get("valid", valid) & ~read.get("invalid", ~valid)
        return FlowTruth(np.where(valid[..., None], flow, np.float32(0)), valid, self._occlusion(read, valid))

    def _occlusion(self, masks: dict[str, BoolArray], valid: BoolArray) -> BoolArray | None:
        if "occluded" in masks:
            return masks["occluded"]
        if self.flow_noc is not None:
            return valid & ~read_flow(self.flow_noc)[1]
        return None


@dataclass(frozen=True)
class LabelledImage:
    """An image and the class of each of its pixels."""

    name: str
    image: Location
    labels: Location
    void_label: int = VOID
    """Value in the label file that means: not scored."""
    classes: tuple[int, ...] = ()
    """Class of each of the 256 values of the label file, 255 where void, -1 where the set has no such value; empty:
    they are the classes themselves."""

    def read(self) -> tuple[ByteArray, IntArray]:
        """RGB (H, W, 3) and classes (H, W) int64, 255 where void.

        Raises:
            DataError: a file cannot be read, the sizes differ, or the set has no such label.
        """
        image, labels = read_rgb(self.image), read_ids(self.labels)
        if image.shape[:2] != labels.shape:
            raise DataError(f"{self.name}: image {image.shape[:2]}, labels {labels.shape}; expected one size")
        classes = np.asarray(self.classes, np.int64)[labels] if self.classes else labels
        if self.classes and (classes == UNKNOWN).any():
            found = np.unique(labels[classes == UNKNOWN])[:5].tolist()
            known = [value for value, number in enumerate(self.classes) if number != UNKNOWN]
            most = max(value for value in known if value != VOID)
            raise DataError(
                f"{self.labels} has the label ids {found}; expected {min(known)}..{most}, or {VOID} for void; "
                "correct the file or name the set that it belongs to"
            )
        return image, np.where(labels == self.void_label, VOID, classes).astype(np.int64)


@dataclass(frozen=True)
class MaskedVideo:
    """The frames of a sequence and the objects in them."""

    name: str
    frames: tuple[Location, ...]
    masks: tuple[Location, ...]
    """One a frame, or fewer: the first frames only."""
    one_object: bool = False
    """All objects count as one (DAVIS-2016 on the masks of 2017)."""

    def read_frame(self, index: int) -> ByteArray:
        """Frame `index`, RGB (H, W, 3)."""
        return read_rgb(self.frames[index])

    def read_mask(self, index: int) -> ByteArray:
        """Object ids (H, W) of frame `index`: 0 background, 1.. objects, 255 void; DAVIS-2016's 0/255 becomes 0/1."""
        ids = read_ids(self.masks[index])
        if self._is_grey:
            ids = np.where(ids == VOID, np.uint8(1), ids)
        return np.where((ids > 0) & (ids != VOID), np.uint8(1), ids) if self.one_object else ids

    @cached_property
    def _is_grey(self) -> bool:
        """Whether 255 is the object of the whole sequence: the first mask has it alone. Elsewhere it is void, also in
        a frame that shows nothing else."""
        return holds_255_alone(read_ids(self.masks[0]))


def holds_255_alone(ids_HW: ByteArray) -> bool:
    """Whether a mask marks one object by 255 and has no other id, as DAVIS-2016's do."""
    return set(np.unique(ids_HW).tolist()) - {0} == {VOID}

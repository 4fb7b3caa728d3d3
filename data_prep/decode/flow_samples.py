"""Samples of kind `flow`: the two frames of a pair, lossless and unscaled, and the true flow from the first on.

0.png, 1.png   RGB 8 bit
flow.flo       (H, W, 2) float32, px, exact; 1e10 where unknown
valid.png      255 where the flow is known, else 0
occ.png        255 where the point cannot be seen in frame 1, else 0; only where the data set says it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.corpora.flow.files import encode_flo
from mcjepa.data_prep.corpora.items import FlowPair, Input
from mcjepa.data_prep.decode.encoders import encode_png
from mcjepa.data_prep.decode.images import read_image, require_image_size
from mcjepa.data_prep.decode.messages import DecodeFailure

ByteArray = npt.NDArray[np.uint8]

FRAME_ROLES = ("frame0", "frame1")
UNKNOWN_PX = np.float32(1e10)


def pair_frames(item: Input) -> tuple[Path, Path]:
    """The files of a pair's two frames.

    Raises:
        DecodeFailure: it has not both.
    """
    files = dict(zip(item.roles, item.files, strict=True))
    try:
        return Path(files["frame0"]), Path(files["frame1"])
    except KeyError as error:
        raise DecodeFailure(f"the pair has no {error.args[0]}") from None


def read_pair(item: Input, max_megapixels: float) -> tuple[ByteArray, ByteArray]:
    """Both frames of a pair, RGB (H, W, 3), of one size.

    Raises:
        DecodeFailure: one is no readable picture or too large, or their sizes differ.
    """
    frames = [read_image(path, max_megapixels) for path in pair_frames(item)]
    if frames[0].shape != frames[1].shape:
        sizes = " and ".join(f"{f.shape[1]}x{f.shape[0]}" for f in frames)
        raise DecodeFailure(f"frames of {sizes} px")
    return frames[0], frames[1]


def encode_flow_sample(item: Input, frames: tuple[ByteArray, ByteArray], max_megapixels: float) -> dict[str, bytes]:
    """The files of a pair's sample, by suffix.

    Raises:
        DecodeFailure: a mask or coded flow is larger than allowed, or the flow's size is not the frames'.
        DataError: the ground truth cannot be read.
    """
    for role, path in zip(item.roles, item.files, strict=True):
        if role not in FRAME_ROLES and path.lower().endswith(".png"):
            require_image_size(Path(path), max_megapixels)
    truth = FlowPair.from_input(item).read_truth()
    height, width = frames[0].shape[:2]
    if truth.valid.shape != (height, width):
        raise DecodeFailure(f"flow of {truth.valid.shape[1]}x{truth.valid.shape[0]} px, frames of {width}x{height} px")
    flow_px = np.where(truth.valid[..., None], truth.flow_px, UNKNOWN_PX)
    members = {f"{k}.png": encode_png(np.ascontiguousarray(rgb[:, :, ::-1])) for k, rgb in enumerate(frames)}
    members |= {"flow.flo": encode_flo(flow_px), "valid.png": _encode_mask(truth.valid)}
    if truth.occluded is not None:
        members["occ.png"] = _encode_mask(truth.occluded)
    return members


def _encode_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    return encode_png(np.where(mask, np.uint8(255), np.uint8(0)))

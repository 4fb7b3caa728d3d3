"""Optical flow file formats: Middlebury .flo, KITTI 16-bit PNG and PFM, read and written exactly.

Coordinates everywhere: u to the right, v down, in pixels; arrays are (H, W, 2) float32.

* .flo  (Baker et al., vision.middlebury.edu/flow): little-endian float32 202021.25 ("PIEH"), int32 width,
  int32 height, then width*height pairs (u, v), rows from the top. |u| or |v| > 1e9 means unknown.
* KITTI PNG (devkit): 16-bit RGB, u = (R - 2^15) / 64, v = (G - 2^15) / 64, valid = (B > 0).
* PFM: "PF" (3 channels) or "Pf" (1), width height, scale (negative: little-endian), rows from the bottom.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.corpora.image_files import decode_pixels
from mcjepa.data_prep.corpora.places import Location, read_bytes
from mcjepa.data_prep.errors import DataError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

FLO_MAGIC = b"PIEH"
UNKNOWN_FLOW = 1e9
_GAP = rb"(?:\s|#[^\n]*\n)+"
PFM_HEADER = re.compile(
    rb"(?P<kind>P[Ff])" + _GAP + rb"(?P<width>\d+)" + _GAP + rb"(?P<height>\d+)" + _GAP +
    rb"(?P<scale>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)[ \t]*(?:\r?\n|\s)"
)  # fmt: skip
"""Four words with white space or comments to the end of a line between them; one end of a line, then the pixels."""


def read_flow(path: Location) -> tuple[FloatArray, BoolArray]:
    """Read a flow file of any of the three formats, told by its suffix.

    Returns:
        Flow (H, W, 2) float32 in pixels, and where it is known (H, W) bool.

    Raises:
        DataError: another suffix, or the file is unreadable.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".png":
        return read_kitti_png(path)
    if suffix not in (".flo", ".pfm"):
        raise DataError(f"{path} is no flow file by its name; expected .flo, .pfm or KITTI's .png; rename it")
    flow = read_flo(path) if suffix == ".flo" else read_pfm(path)
    if flow.ndim != 3:
        raise DataError(f"{path} has one channel; expected u and v; replace it")
    known = np.isfinite(flow[..., :2]) & (np.abs(flow[..., :2]) <= UNKNOWN_FLOW)
    return flow[..., :2], known[..., 0] & known[..., 1]


def read_flo(path: Location) -> FloatArray:
    """Read a Middlebury .flo file.

    Returns:
        Flow of shape (H, W, 2), float32, (u right, v down) in pixels; unknown values are as stored (> 1e9).

    Raises:
        DataError: wrong magic number, or length other than the header says.
    """
    return decode_flo(read_bytes(path), str(path))


def decode_flo(data: bytes, name: str) -> FloatArray:
    """The flow in the content of a .flo file; `name` is for messages. See `read_flo`."""
    if data[:4] != FLO_MAGIC or len(data) < 12:
        raise DataError(f"{name} has no .flo tag PIEH; expected a Middlebury .flo file; replace it")
    width, height = (int(v) for v in np.frombuffer(data, "<i4", 2, 4))
    expected = 12 + 8 * width * height
    if width < 1 or height < 1 or len(data) != expected:
        raise DataError(f"{name} has {len(data)} bytes; a {width}x{height} .flo has {expected}; copy the file again")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)


def write_flo(path: Path, flow_px: FloatArray) -> None:
    """Write flow of shape (H, W, 2) as a Middlebury .flo file."""
    path.write_bytes(encode_flo(flow_px))


def encode_flo(flow_px: FloatArray) -> bytes:
    """The content of a Middlebury .flo file of flow (H, W, 2)."""
    _require_flow(flow_px)
    height, width = flow_px.shape[:2]
    header = FLO_MAGIC + np.array([width, height], "<i4").tobytes()
    return header + np.ascontiguousarray(flow_px, "<f4").tobytes()


def read_kitti_png(path: Location) -> tuple[FloatArray, BoolArray]:
    """Read a KITTI 16-bit flow PNG.

    Returns:
        Flow (H, W, 2) float32 in pixels, zero where invalid, and validity (H, W) bool.

    Raises:
        DataError: not a 16-bit 3-channel PNG.
    """
    return decode_kitti_png(read_bytes(path), str(path))


def decode_kitti_png(data: bytes, name: str) -> tuple[FloatArray, BoolArray]:
    """Flow and validity in the content of a KITTI PNG; `name` is for messages. See `read_kitti_png`."""
    raw = decode_pixels(data, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 3 or raw.shape[2] != 3:
        found = "an unreadable image" if raw is None else f"{raw.dtype} {raw.shape}"
        raise DataError(f"{name} is {found}; expected a 16-bit RGB flow PNG of KITTI; replace it")
    valid = raw[:, :, 0] > 0  # OpenCV gives B, G, R
    flow = (raw[:, :, 2:0:-1].astype(np.float32) - 32768.0) / 64.0
    flow[~valid] = 0.0
    return flow, valid


def clamp_to_kitti(flow_px: FloatArray) -> tuple[FloatArray, int]:
    """The flow within what KITTI's PNG can say, as the devkit writes it: coded values cut to 0..65535.

    Returns:
        Flow (H, W, 2), and the number of pixels that were cut, in u or in v.
    """
    low, high = np.float32(-512.0), np.float32(65535 / 64 - 512)
    cut = np.clip(flow_px, low, high)
    beyond = (np.rint(flow_px.astype(np.float64) * 64 + 32768) > 65535) | (flow_px < low)
    return cut, int(np.count_nonzero(beyond.any(-1)))


def write_kitti_png(path: Path, flow_px: FloatArray, valid: BoolArray) -> None:
    """Write flow (H, W, 2) in pixels and validity (H, W) as a KITTI PNG; values are rounded to 1/64 px.

    Raises:
        DataError: a valid value lies outside the format's range of -512 to 511.98 px.
    """
    path.write_bytes(encode_kitti_png(flow_px, valid))


def encode_kitti_png(flow_px: FloatArray, valid: BoolArray) -> bytes:
    """The content of a KITTI flow PNG; see `write_kitti_png`."""
    _require_flow(flow_px)
    coded = np.rint(flow_px.astype(np.float64) * 64.0 + 32768.0)
    known = coded[valid]
    if not np.isfinite(known).all() or (known.size and (known.min() < 0 or known.max() > 65535)):
        raise DataError("flow outside -512..511.98 px; expected the range of KITTI's PNG; write a .flo instead")
    raw = np.zeros((*flow_px.shape[:2], 3), np.uint16)
    raw[:, :, 2] = np.where(valid, coded[:, :, 0], 0)
    raw[:, :, 1] = np.where(valid, coded[:, :, 1], 0)
    raw[:, :, 0] = valid
    return cv2.imencode(".png", raw)[1].tobytes()


def read_pfm(path: Location) -> FloatArray:
    """Read a PFM file of either byte order; width and height on one line or on two, with comments (#) or without.

    Returns:
        Array (H, W, 3) or, for one channel, (H, W), float32, first row on top; flow is channels 0, 1.

    Raises:
        DataError: wrong header or length.
    """
    data = read_bytes(path)
    header = PFM_HEADER.match(data)
    if header is None:
        raise DataError(f"{path} has no PFM header; expected 'PF' or 'Pf', size, scale; replace it")
    channels, width, height = 3 if header["kind"] == b"PF" else 1, int(header["width"]), int(header["height"])
    order = "<f4" if float(header["scale"]) < 0 else ">f4"
    body = data[header.end() :]
    if len(body) != 4 * channels * width * height:
        raise DataError(
            f"{path} has {len(body)} bytes of pixels; {width}x{height}x{channels} floats take "
            f"{4 * channels * width * height}; copy the file again"
        )
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.frombuffer(body, order).reshape(shape)[::-1].astype(np.float32)


def _require_flow(flow_px: FloatArray) -> None:
    if flow_px.ndim != 3 or flow_px.shape[2] != 2:
        raise DataError(f"flow has shape {flow_px.shape}; expected (H, W, 2); pass u and v as the last axis")

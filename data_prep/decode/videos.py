"""Frames of a video file in presentation order, by decord, PyAV or torchcodec.

The container is read by PyAV (`data_prep.decode.video.containers`), so number, time and choice of a frame do not depend
on the decoder; the decoders (`data_prep.decode.video.decoders`) give pixels. Frames come upright, pixels square.

decord and torchcodec decode plain videos only; `fitting_decoder` names what PyAV decodes for them. They turn some
pictures wrongly (mirrored ones), squeeze those that come after a change of size, and know no interlacing. So PyAV reads
what the others cannot:

* decord reads only videos that fit into DECORD_BYTES decoded as a whole. For larger ones PyAV takes no more CPU time.
* decord and torchcodec read MP4, QuickTime, Matroska and WebM only: of transport streams decord gives no frame, of
  AVI and MPEG program streams torchcodec loses the last ones. Without a declared duration (recorders in browsers)
  decord fails.

`pyav-planes` is PyAV too, without RGB (`data_prep.decode.video.planes`). A video that must be deinterlaced or mapped to
other colours, or has no planes, goes by RGB as `pyav` does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import cv2
import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.decode.colour import converts
from mcjepa.data_prep.decode.encoders import shrink, stored_size
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.decode.orientation import UPRIGHT
from mcjepa.data_prep.decode.video.containers import VideoTable, open_container, read_table, square_size
from mcjepa.data_prep.decode.video.decoders import (
    DECODERS,
    Pixels,
    decode_by_pyav,
    decode_to_planes,
    frames_in_order,
)
from mcjepa.data_prep.decode.video.planes import PlanarFrame, Planes
from mcjepa.data_prep.settings import DecoderName, VideoConfig

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]

INDEXED_CONTAINERS = ("mov,", "matroska,")
DECORD_BYTES = 128 << 20


@dataclass(frozen=True)
class NumberedFrame:
    """One decoded frame."""

    number: int
    pts_s: float | None
    """Presentation time, seconds; None where the material has no clock."""
    pixels: Pixels
    """RGB (H, W, 3), or a frame of planes, which may have another aspect."""
    whole: tuple[int, int] | None = None
    """Width and height of a picture of which `pixels` are a fraction, or squeezed; None: those of `pixels`."""

    @property
    def rgb(self) -> ByteArray:
        """(H, W, 3)."""
        if isinstance(self.pixels, PlanarFrame):
            return _stretched(self.pixels.rgb(), self.size)
        return self.pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole, px."""
        if self.whole:
            return self.whole
        return self.pixels.size if isinstance(self.pixels, PlanarFrame) else self.pixels.shape[1::-1]

    def shrunk(self, short_side_px: int) -> ByteArray | Planes:
        """The frame as it is stored: its short side `short_side_px`, or its own where that is smaller."""
        if isinstance(self.pixels, PlanarFrame):
            return self.pixels.resized(stored_size(*self.size, short_side_px))
        return shrink(self.pixels, short_side_px, self.size)


def explain_failure(table: VideoTable, decoder: DecoderName, error: Exception) -> str:
    """Why a decoder failed, in words that are the same on every run.

    decord decodes in threads: which of its errors comes first, and at which frame, is chance. PyAV tells which packet
    is damaged.
    """
    if decoder in ("decord", "torchcodec"):
        try:
            with open_container(table.path) as container:
                for _ in frames_in_order(container, table):
                    pass
        except DecodeFailure as failure:
            return str(failure)
    return f"{decoder} cannot decode it ({type(error).__name__}: {error}); PyAV may: set decoder=pyav"


def fitting_decoder(table: VideoTable, decoder: DecoderName) -> DecoderName:
    """The decoder that reads this video where `decoder` is wanted: itself, or PyAV where the video is not plain."""
    if decoder == "pyav-planes":
        return decoder if table.facts.planar else "pyav"
    decoded_bytes = len(table.times_s) * table.width * table.height * 3
    plain = (
        table.container.startswith(INDEXED_CONTAINERS)
        and table.timed
        and table.steady
        and not table.late
        and table.facts.orientation == UPRIGHT
        and not table.facts.interlaced
        and not table.stretches.any()
    )
    return decoder if plain and (decoder != "decord" or decoded_bytes <= DECORD_BYTES) else "pyav"


class Video:
    """A video file: what its container says, and its frames."""

    def __init__(self, table: VideoTable, decoder: DecoderName, config: VideoConfig) -> None:
        """Decode `table`'s stream by `decoder`; nothing is decoded yet.

        Raises:
            Unwanted: its colours or its interlacing are refused by the settings.
        """
        self.table = table
        self.frame_count = len(table.times_s)
        facts = table.facts
        convert = config.wide_colours == "convert" and bool(facts.wide_colours)
        if (
            facts.wide_colours
            and config.wide_colours != "keep"
            and not (convert and converts(facts.transfer, facts.primaries))
        ):
            raise Unwanted(f"{facts.wide_colours}: stored as they are its colours would be wrong; see wide_colours")
        aspect = table.pixel_aspect if config.square_pixels else Fraction(1)
        self.decoder: DecoderName = "pyav" if convert else fitting_decoder(table, decoder)
        self._decode = DECODERS[self.decoder]
        if facts.interlaced and config.interlaced == "refuse":
            raise Unwanted("interlaced: refused by interlaced=refuse")
        deinterlace = config.interlaced == "deinterlace"
        if self.decoder == "pyav":
            self._decode = partial(decode_by_pyav, deinterlace=deinterlace, convert=convert)
        elif self.decoder == "pyav-planes":
            self._decode = partial(decode_to_planes, deinterlace=deinterlace)
        self.size = table.upright_size(aspect)
        """Width and height of its first frames as `read` gives them, px."""
        self._aspect = 1 / aspect if facts.orientation.transposed else aspect

    def read(self, numbers: IntArray) -> Iterator[NumberedFrame]:
        """The frames `numbers` (increasing).

        Raises:
            DecodeFailure: it is damaged, or ends before the last one.
        """
        at, shown = 0, None
        stretched = self._aspect != 1
        for pixels in self._decoded(numbers):
            number = int(numbers[at])
            if stretched:
                shown = square_size(*pixels.size, self._aspect) if isinstance(pixels, PlanarFrame) else None
                pixels = pixels if isinstance(pixels, PlanarFrame) else square(pixels, self._aspect)
            yield NumberedFrame(number, float(self.table.times_s[number]), pixels, shown)
            at += 1
        if at < len(numbers):
            raise DecodeFailure(f"ended before frame {numbers[at]} of {self.frame_count}")

    def _decoded(self, numbers: IntArray) -> Iterator[Pixels]:
        """The decoder's frames; what it says of damage in our words."""
        try:
            yield from self._decode(self.table, numbers)
        except (DecodeFailure, MemoryError):
            raise
        except Exception as error:  # decord's class derives from nothing narrower
            raise DecodeFailure(explain_failure(self.table, self.decoder, error)) from error


def square(rgb: ByteArray, aspect: Fraction) -> ByteArray:
    """A picture (H, W, 3) whose pixels have this width over their height, with square pixels (bilinear)."""
    return _stretched(rgb, square_size(rgb.shape[1], rgb.shape[0], aspect))


def _stretched(rgb: ByteArray, size: tuple[int, int]) -> ByteArray:
    if size == rgb.shape[1::-1]:
        return rgb
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def open_video(
    path: str, decoder: DecoderName, max_megapixels: float = float("inf"), config: VideoConfig | None = None
) -> Video:
    """Open a video file.

    Raises:
        DecodeFailure: no readable video, cut off, or its frames have more pixels than allowed.
        Unwanted: its colours or its interlacing are refused by `config`; None refuses nothing.
    """
    return Video(read_table(path, max_megapixels), decoder, config or VideoConfig(wide_colours="keep"))


def decoder_version(decoder: DecoderName) -> str:
    """Names and versions of what reads and decodes videos, without importing it."""
    package = {"decord": "decord2", "pyav": "av", "pyav-planes": "av"}.get(decoder, decoder)
    versions = [_package_version(package)]
    if package != "av":
        versions.append(_package_version("av"))  # reads containers
    if decoder == "torchcodec":
        versions.append(find_library("avcodec") or "no libavcodec")
    return ", ".join(versions)


def _package_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"

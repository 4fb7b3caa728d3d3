"""Frames of stored samples: bytes that are read, measured and decoded when they are asked for, and kept under a cap.

A JPEG is decoded by libjpeg-turbo (simplejpeg), and can be at 1/2, 1/4 or 1/8 of its size: the inverse transform of
fewer coefficients, which is a low-pass filter and costs a fraction of the time. The sides of the result are rounded up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial

import cv2
import numpy as np
import simplejpeg

from mcjepa.pipeline.stream.shard_reader import CorruptSample

FRAME_SUFFIXES = ("jpg", "webp", "png")
"""Endings of the members that are frames: `jpg` of an image, `00.jpg`, `01.jpg`, ... of a clip."""
REDUCTIONS = (8, 4, 2)
"""Divisors of a JPEG's sides that have fast transforms, the largest first."""
Header = tuple[int, int, bool]
"""Height and width, px, and whether the file is a JPEG."""
_START_OF_IMAGE = b"\xff\xd8"
_MOST_HEADERS = 1 << 16
"""Some 20 MB."""


def frame_suffixes(members: dict[str, tuple[int, int]]) -> list[str]:
    """Suffixes of a sample's frames, in their order, which from the hundredth on is not that of their letters.

    >>> frame_suffixes({"100.jpg": (0, 1), "11.jpg": (1, 2), "02.jpg": (2, 3), "json": (3, 4)})
    ['02.jpg', '11.jpg', '100.jpg']
    """
    frames = (name for name in members if name.rpartition(".")[2] in FRAME_SUFFIXES)
    return sorted(frames, key=lambda name: (int(name.split(".")[0]) if name[0].isdecimal() else -1, name))


class StoredFrame:
    """One frame; a `pipeline.stream.augment.geometry.FrameSource`."""

    def __init__(self, name: Hashable, read: Callable[[], bytes], cache: FrameCache, *, reduced_decode: bool) -> None:
        """Name the frame; nothing is read yet.

        Args:
            name: what the cache calls it.
            read: gives its bytes.
            cache: keeps its decoded forms.
            reduced_decode: whether a JPEG may be decoded at a part of its size.
        """
        self._name, self._read, self._cache, self._reduced_decode = name, read, cache, reduced_decode
        self._data: bytes | None = None
        self._head: tuple[int, int, bool] | None = None

    @property
    def reducible(self) -> bool:
        """Whether `decode` takes a reduction other than 1."""
        return self._reduced_decode and self._header()[2]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at full scale, px.

        Raises:
            CorruptSample: the frame is damaged.
        """
        return self._header()[:2]

    def decode(self, reduction: int = 1) -> np.ndarray:
        """ceil(H / reduction) x ceil(W / reduction) x 3 uint8 RGB; read-only where it is cached.

        Raises:
            CorruptSample: the frame is damaged.
        """
        return self._cache.fetch((self._name, reduction), partial(self._decode, reduction))

    def _header(self) -> tuple[int, int, bool]:
        """Height, width and whether it is a JPEG; kept beside the pixels, so that kept frames need no reading."""
        if self._head is None:
            self._head = self._cache.fetch_header(self._name, self._measure)
        return self._head

    def _measure(self) -> tuple[int, int, bool]:
        data = self._bytes()
        if not is_jpeg(data):
            height, width = self.decode().shape[:2]
            return height, width, False
        try:
            return (*jpeg_size(data), True)
        except ValueError as error:
            raise CorruptSample(str(error)) from error

    def _decode(self, reduction: int) -> np.ndarray:
        data = self._bytes()
        try:
            if is_jpeg(data):
                return decode_jpeg(data, reduction)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        except ValueError as error:
            raise CorruptSample(str(error)) from error
        if image is None:
            raise CorruptSample("its bytes are no JPEG, WebP or PNG that can be decoded")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _bytes(self) -> bytes:
        if self._data is None:
            self._data = self._read()
        return self._data


class FrameCache:
    """Decoded frames by name, the least recently used leaving first; those handed out are shared and read-only."""

    def __init__(self, cap_bytes: int) -> None:
        """Keep at most `cap_bytes` of pixels; 0 keeps none."""
        self._cap_bytes = cap_bytes
        self._held_bytes = 0
        self._frames: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._headers: OrderedDict[Hashable, Header] = OrderedDict()

    def fetch(self, name: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The frame called `name`, decoded now unless it is held."""
        if not self._cap_bytes:
            return decode()
        frame = self._frames.get(name)
        if frame is not None:
            self._frames.move_to_end(name)
            return frame
        frame = decode()
        if 0 < frame.nbytes <= self._cap_bytes:
            frame.setflags(write=False)
            self._frames[name] = frame
            self._held_bytes += frame.nbytes
            while self._held_bytes > self._cap_bytes:
                self._held_bytes -= self._frames.popitem(last=False)[1].nbytes
        return frame

    def fetch_header(self, name: Hashable, measure: Callable[[], Header]) -> Header:
        """Height, width and kind of the file called `name`, measured now unless they are held."""
        if not self._cap_bytes:
            return measure()
        header = self._headers.get(name)
        if header is None:
            header = self._headers[name] = measure()
            if len(self._headers) > _MOST_HEADERS:
                self._headers.popitem(last=False)
        return header


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG file does."""
    return data[:2] == _START_OF_IMAGE


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG file, px, out of its header.

    Raises:
        ValueError: the bytes are no JPEG or end within the header.
    """
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return height, width


def decode_jpeg(data: bytes, reduction: int = 1) -> np.ndarray:
    """Decode one JPEG file.

    Args:
        data: the file's bytes; grey images become three equal channels.
        reduction: 1, or one of `REDUCTIONS`: divisor of both sides.

    Returns:
        H x W x 3 uint8 RGB; with a reduction r, ceil(H / r) x ceil(W / r) x 3.

    Raises:
        ValueError: the bytes are no JPEG, damaged or cut short.
    """
    if reduction == 1:
        image: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
        return image
    height, width = (-(-side // reduction) for side in jpeg_size(data))
    # The smallest of libjpeg-turbo's scales that leaves both sides: one of its scales has exactly these.
    image = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width)
    return image

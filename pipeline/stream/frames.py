"""Frames of stored samples: bytes that are read, measured and decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import cv2
import numpy as np

from mcjepa.pipeline.stream.frame_cache import FrameCache
from mcjepa.pipeline.stream.jpeg import decode_jpeg, is_jpeg, jpeg_size
from mcjepa.pipeline.stream.shard_reader import CorruptSample

FRAME_SUFFIXES = ("jpg", "webp", "png")
"""Endings of the members that are frames: `jpg` of an image, `00.jpg`, `01.jpg`, ... of a clip."""


def frame_suffixes(members: dict[str, tuple[int, int]]) -> list[str]:
    """Suffixes of a sample's frames, in their order."""
    return sorted(name for name in members if name.rpartition(".")[2] in FRAME_SUFFIXES)


class StoredFrame:
    """One frame; a `pipeline.stream.augment.reduction.Frame`."""

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

"""Decoded frames kept in a process's memory under a byte cap, least recently used ones leaving first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

Header = tuple[int, int, bool]
"""Height and width, px, and whether the file is a JPEG."""

_MOST_HEADERS = 1 << 16
"""Some 20 MB."""


class FrameCache:
    """Frames by name; those handed out are shared and read-only."""

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

    @property
    def held_bytes(self) -> int:
        """Bytes of pixels held now."""
        return self._held_bytes

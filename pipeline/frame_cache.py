"""Decoded frames kept in a process's memory under a byte cap, least recently used ones leaving first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np


class FrameCache:
    """Frames by name; those handed out are shared and read-only."""

    def __init__(self, cap_bytes: int) -> None:
        """Keep at most `cap_bytes` of pixels; 0 keeps none."""
        self._cap_bytes = cap_bytes
        self._held_bytes = 0
        self._frames: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def fetch(self, name: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The frame called `name`, decoded now unless it is held."""
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

    @property
    def held_bytes(self) -> int:
        """Bytes of pixels held now."""
        return self._held_bytes

"""A clip: frames in order, wherever they come from, read as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.errors import DataError

Frame = NDArray[np.uint8]
"""(H, W, 3) RGB."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is known of a clip before it is read."""

    name: str
    """Folder of its results; no two clips of a call have the same."""

    source: tuple[str, ...]
    """File or files it is read from."""

    frames: tuple[str, ...]
    """Names of its frames' results, each once."""

    read: Callable[[Sequence[int]], Iterator[Frame]]
    """`fn(numbers)`: those frames, numbers increasing; raises DataError where one cannot be read."""

    fps_hz: float = 0.0
    """Frame rate; 0 where there is no clock."""

    bytes: int = 0
    """Size of its files."""

    changed_ns: int = 0
    """When the newest of them was written, Unix time."""


def read_alike(clip: Clip, numbers: Sequence[int]) -> Iterator[Frame]:
    """Frames of one size.

    Raises:
        DataError: a frame has another size than the first one that was read.
    """
    size = None
    for number, frame in zip(numbers, clip.read(numbers), strict=True):
        if size is not None and frame.shape != size[0]:
            (height, width), (first_height, first_width) = frame.shape[:2], size[0][:2]
            raise DataError(
                f"frame {clip.frames[number]} of {clip.name} is {width}x{height} px, frame {size[1]} is "
                f"{first_width}x{first_height} px; expected one size; resize them, or pass them as clips of their own"
            )
        size = size or (frame.shape, clip.frames[number])
        yield frame


def distinct_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for every file, no two the same: stems, else whole names, else numbers.

    >>> distinct_names([Path("a/1.png"), Path("a/2.png")]), distinct_names([Path("l/1.png"), Path("r/1.png")])
    (('1', '2'), ('000000', '000001'))
    """
    for names in ([path.stem for path in paths], [path.name for path in paths]):
        if are_distinct(names):
            return tuple(names)
    return tuple(f"{number:06d}" for number in range(len(paths)))


def are_distinct(names: Iterable[str]) -> bool:
    """No two are the same, not even on file systems that take large letters for small ones."""
    folded = [name.casefold() for name in names]
    return len(set(folded)) == len(folded)

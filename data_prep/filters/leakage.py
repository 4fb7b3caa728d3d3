"""Evaluation frames by their perceptual hashes, to keep them out of training data.

An index is a file of gzipped JSON lines, `{"hash":"9c3…","name":"bear#00000.jpg"}`, in the order of the sets. A name is
that of the evaluation input, with `#` and the frame's file, role or number where it has several frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.filters.phash import HashArray, bit_distances, hash_to_hex
from mcjepa.data_prep.storage import FolderStore
from mcjepa.data_prep.storage.json_files import read_lines, write_lines


class LeakageIndex:
    """Names and hashes of evaluation frames; of equal hashes the first is kept."""

    def __init__(self, names: list[str], hashes: HashArray) -> None:
        """Take over names and their hashes, one each; `build` and `load` make them."""
        self._names = names
        self._hashes = hashes

    @classmethod
    def build(cls, frames: Iterable[tuple[str, int]]) -> LeakageIndex:
        """An index of these frames, in order."""
        first: dict[int, str] = {}
        for name, value in frames:
            first.setdefault(value, name)
        return cls(list(first.values()), np.fromiter(first, np.uint64, len(first)))

    @classmethod
    def load(cls, path: Path | str) -> LeakageIndex:
        """Read an index that `save` wrote.

        Raises:
            DataError: it is absent, damaged or malformed.
        """
        path = Path(path)
        lines = read_lines(FolderStore(str(path.parent), path.parent), path.name)
        try:
            return cls.build((str(line["name"]), int(line["hash"], 16)) for line in lines)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path} has a malformed line ({error}); expected hash and name; make it again") from error

    def save(self, path: Path | str) -> None:
        """Write the index: the same frames give the same bytes."""
        with Path(path).open("wb") as file:
            write_lines(file, ({"name": name, "hash": hash_to_hex(value)} for name, value in self.lines()))
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[tuple[str, int]]:
        """Names and hashes, in order."""
        return list(zip(self._names, self._hashes.tolist(), strict=True))

    def __len__(self) -> int:
        """Number of different hashes."""
        return len(self._names)

    def match(self, value: int, max_bits: int) -> str | None:
        """Name of the nearest frame, the first of several; None when none is within `max_bits`.

        >>> LeakageIndex.build([("a", 0b1111), ("b", 0b0011)]).match(0b0001, max_bits=2)
        'b'
        """
        if not self._names:
            return None
        distances = bit_distances(self._hashes, value)
        nearest = int(distances.argmin())
        return self._names[nearest] if distances[nearest] <= max_bits else None

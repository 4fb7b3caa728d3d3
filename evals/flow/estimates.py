"""Flow that was computed before and lies in a folder, laid out like the ground truth: .flo, .pfm or KITTI's PNG.

The estimate of a pair has the name of its ground truth's file, or of its first frame in a test part, below the folder:
with the official folders in between, or without as many of the leading ones as keep the names apart. For
`training/flow/alley_1/frame_0002.flo` that is `alley_1/frame_0002.flo`, or all of it. Where a folder holds the
estimates of several sets, each set has its own folder in it, by its name (`sintel-clean`) or its pass (`clean`).
The files of an unpacked submission (see `submission`) are found too: `clean/wall/frame0001.flo`, `flow/000000_10.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.flow.files import read_flow
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.errors import DataError

SUFFIXES = (".flo", ".png", ".pfm")
KITTI_PART = "flow"
"""Folder of a submission to KITTI 2015."""


class EstimateFolder:
    """Finds and reads the estimates of one set's pairs.

    Args:
        folder: where they lie.
        set_name: name of the set.
        root: folder of the set itself.
        pairs: its pairs.
        alone: no other set's estimates are in the folder, so that the set needs none of its own.

    Raises:
        DataError: there is no such folder, or nothing in it fits the set.
    """

    def __init__(self, folder: Path, set_name: str, root: Path, pairs: Sequence[FlowPair], *, alone: bool) -> None:
        if folder.is_file():
            raise DataError(f"estimates {folder} is a file; expected a folder; unpack the archive and name its folder")
        if not folder.is_dir():
            raise DataError(f"no folder of estimates {folder}; expected one laid out like the ground truth; correct it")
        names = [_official_name(pair, root) for pair in pairs]
        self.folder = folder
        self._set_name = set_name
        self._tails = _tails_apart(names)
        self._starts = [start for start in (set_name, _rendering(set_name)) if start and (folder / start).is_dir()]
        self._starts += [""] if alone else []
        self._starts += [
            place for start in self._starts if (folder / (place := f"{start}/{KITTI_PART}".lstrip("/"))).is_dir()
        ]
        self._names = {pair.name: name for pair, name in zip(pairs, names, strict=True)}
        if not any(self._find(pair) for pair in pairs):
            place = f"{set_name}/" if not alone else ""
            raise DataError(
                f"{folder} has no estimate for any of the {len(pairs)} pairs of {set_name}; expected files such as "
                f"{place}{self._shortest(pairs[0])}; correct the folder"
            )

    def read(self, pair: FlowPair) -> NDArray[np.float32]:
        """The estimate of a pair, (H, W, 2) px; NaN where the file says that it is unknown.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        path = self._find(pair)
        if path is None:
            raise DataError(f"no estimate in {self.folder}; expected a file such as {self._shortest(pair)}; add it")
        flow, known = read_flow(path)
        return np.where(known[..., None], flow, np.float32(np.nan))

    def _find(self, pair: FlowPair) -> Path | None:
        return next((self.folder / name for name in self._candidates(pair) if (self.folder / name).is_file()), None)

    def _shortest(self, pair: FlowPair) -> str:
        return str(PurePosixPath(*self._names[pair.name].parts[self._tails[-1] :]))

    def _candidates(self, pair: FlowPair) -> list[str]:
        parts = self._names[pair.name].parts
        tails = [PurePosixPath(*parts[drop:]) for drop in self._tails]
        suffixes = sorted(SUFFIXES, key=lambda suffix: suffix != tails[0].suffix)
        return [
            str(start / name.with_suffix(suffix))
            for start in map(PurePosixPath, self._starts)
            for tail in tails
            for name in dict.fromkeys((tail, tail.with_name(tail.name.replace("frame_", "frame"))))
            for suffix in suffixes
        ]


def _official_name(pair: FlowPair, root: Path) -> PurePosixPath:
    """The name of the ground truth below the set's root; for a pair without it, of the pair's first frame."""
    file = Path(pair.flow if pair.flow is not None else pair.frame0)
    name = PurePosixPath(file.relative_to(root).as_posix())
    return name if pair.flow is not None else PurePosixPath(*name.parts[1:]).with_suffix(".flo")


def _tails_apart(names: Sequence[PurePosixPath]) -> list[int]:
    """How many leading folders may be left out so that all names still differ, none first."""
    deepest = min(len(name.parts) for name in names)
    return [drop for drop in range(deepest) if len({name.parts[drop:] for name in names}) == len(names)]


def _rendering(set_name: str) -> str:
    return next((part for part in ("clean", "final") if part in set_name.split("-")), "")

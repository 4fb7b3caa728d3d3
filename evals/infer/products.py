"""Where a clip's results lie, and how each is written: whole or not at all.

OUT/CLIP/flo/FRAME.flo, kitti/FRAME.png, colour/FRAME.png, features/FRAME.png, flow.mp4, features.mp4, infer.json

Colours mean the same in every frame of a clip: the length of flow, and the features' main directions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.flow.files import FloatArray, encode_flo, write_kitti_png
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write, explained_disk_errors
from mcjepa.evals.infer.clip import Clip
from mcjepa.evals.infer.settings import InferConfig
from mcjepa.evals.pictures import flow_picture, flow_scale, write_png

SUFFIXES = {"flo": "flo", "kitti": "png", "colour": "png", "features": "png"}
MOVIES = {"video": "flow.mp4", "features": "features.mp4"}
RECORD_NAME = "infer.json"
RECORD_VERSION = 2


class ClipFolder:
    """The results of one clip.

    Args:
        clip: what they are of.
        out: folder above.
        config: what is written.
    """

    def __init__(self, clip: Clip, out: Path, config: InferConfig) -> None:
        self.folder = out / clip.name
        self._clip = clip
        self._config = config

    def frame_files(self, index: int) -> dict[str, Path]:
        """Product to the file of frame `index`; the last frame has no flow."""
        kinds = [kind for kind in SUFFIXES if kind in self._config.write]
        if index == len(self._clip.frames) - 1:
            kinds = [kind for kind in kinds if kind == "features"]
        return {kind: self.folder / kind / f"{self._clip.frames[index]}.{SUFFIXES[kind]}" for kind in kinds}

    def movies(self) -> dict[str, Path]:
        """Product to its mp4."""
        pairs = len(self._clip.frames) - 1
        return {kind: self.folder / name for kind, name in MOVIES.items() if kind in self._config.write and pairs}

    def prepare(self, identity: str, overwrite: bool) -> None:
        """Makes the folder for these results, or checks that what lies there belongs to them.

        Raises:
            DataError: it holds results of another input, of other weights or by other settings.
        """
        record = self._record(identity)
        path = self.folder / RECORD_NAME
        for partial in self.folder.rglob(".*.partial*"):  # what a killed run left behind
            partial.unlink(missing_ok=True)
        if overwrite:
            self._remove_products()  # also those that are not written now: they may be of other weights
        elif path.is_file():
            self._require_same(_read_record(path), record)
            return
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise DataError(
                f"{self.folder} holds files but no {RECORD_NAME}; expected a new folder, or results of this "
                "command; choose another --out, or pass --overwrite"
            )
        atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())

    def _remove_products(self) -> None:
        """Removes what this command may have written here, and nothing else."""
        for kind, suffix in SUFFIXES.items():
            for path in (self.folder / kind).glob(f"*.{suffix}"):
                path.unlink()
        for name in MOVIES.values():
            (self.folder / name).unlink(missing_ok=True)

    def _record(self, identity: str) -> dict[str, Any]:
        config = self._config
        return {
            "version": RECORD_VERSION,
            "source": list(self._clip.source),
            "bytes": self._clip.bytes,
            "changed_ns": self._clip.changed_ns,
            "frames": len(self._clip.frames),
            "weights": identity,
            "tile_px": config.tile_px,
            "overlap_px": config.overlap_px if config.tile_px else 0,
            "stride": config.stride,
            "max_flow_px": config.max_flow_px,
        }

    def _require_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new.items():
            if old.get(key) != value:
                found, expected = (str(each)[:120] for each in (old.get(key), value))
                raise DataError(
                    f"{self.folder} holds results with {key} {found}, this command has {expected}; expected the same "
                    "to continue; choose another --out, or pass --overwrite"
                )

    def write_frame(self, kind: str, path: Path, flow_HW2: FloatArray | None, picture: Any, palette: Palette) -> None:
        """Writes one product of one frame; `picture` is that of its features.

        Raises:
            DataError: the disk is full, or the flow does not fit the format.
        """
        if kind == "features":
            write_png(path, picture)
            return
        assert flow_HW2 is not None
        if kind == "flo":
            atomic_write(path, encode_flo(flow_HW2))
        elif kind == "kitti":
            known = np.ones(flow_HW2.shape[:2], bool)
            _by_neighbour(path, lambda partial: write_kitti_png(partial, flow_HW2, known))
        else:
            write_png(path, palette.flow(flow_HW2))


def _by_neighbour(path: Path, write: Callable[[Path], None]) -> None:
    """Writes beside `path` and renames."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with explained_disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError(f"{path} is damaged; expected the record of an earlier run; pass --overwrite")
    return record


Picture = NDArray[np.uint8]
BAND_ROWS = 256


@dataclass(frozen=True)
class FeatureBasis:
    """Three directions of feature space and the range of the clip along them."""

    mean_C: NDArray[np.float64]
    axes_C3: NDArray[np.float64]
    low_3: NDArray[np.float64]
    high_3: NDArray[np.float64]

    def picture(self, map_Chw: NDArray, size: tuple[int, int]) -> Picture:
        """The features as colours, enlarged to (H, W) with smooth transitions: (H, W, 3) uint8 RGB."""
        cells = np.moveaxis(np.asarray(map_Chw, np.float64), 0, -1) - self.mean_C
        span = np.maximum(self.high_3 - self.low_3, 1e-12)
        scaled = np.clip((cells @ self.axes_C3 - self.low_3) / span, 0.0, 1.0).astype(np.float32)
        large = cv2.resize(scaled, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return np.rint(np.asarray(large) * 255.0).astype(np.uint8)


def feature_basis(maps_Chw: Sequence[NDArray]) -> FeatureBasis:
    """The main directions of some frames' features, (C, h, w) each; the 1st and 99th percentile are dark and bright.

    Signs are fixed by each direction's largest coefficient, so that runs agree. Fewer than three channels leave
    colours out.
    """
    cells = np.concatenate([np.asarray(each, np.float64).reshape(len(each), -1).T for each in maps_Chw])
    mean = cells.mean(0)
    cells = cells - mean
    _, vectors = np.linalg.eigh(cells.T @ cells)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))
    low, high = np.percentile(cells @ axes, (1, 99), axis=0)
    return FeatureBasis(mean, axes, low, high)


@dataclass(frozen=True)
class Palette:
    """Colours of one clip; what is not drawn is None."""

    flow_px: float
    """Length of flow with full colour, px."""

    features: FeatureBasis | None

    def flow(self, flow_HW2: NDArray) -> Picture:
        """Flow as Middlebury colours, (H, W, 3) uint8 RGB; drawn in bands, as drawing takes 100 bytes a pixel."""
        bands = [flow_HW2[top : top + BAND_ROWS] for top in range(0, len(flow_HW2), BAND_ROWS)]
        return np.concatenate([flow_picture(band, self.flow_px) for band in bands])


def longest_flow(flows_HW2: Sequence[NDArray]) -> float:
    """The 99th percentile of the lengths of the pair that has most, px, at least 1."""
    return max((flow_scale(flow) for flow in flows_HW2), default=1.0)

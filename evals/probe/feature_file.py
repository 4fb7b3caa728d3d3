"""One set of cached features on disk: labels and maps of images, one after the other.

    KEY/key.json       what the key was made of
    KEY/maps.bin       for each image: labels (uint8), then every window's maps, all beginning at multiples of 64 bytes
    KEY/index.jsonl    for each image: name, size, windows, shapes, offset, length, crc32; or name and reason
    KEY/complete.json  written last, once: without it nothing is read

An image's line is written after its bytes. What a killed process leaves is a prefix of both files, which is checked
against the sums and continued, from a multiple of the batch so that groups are as they would have been.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write, explained_disk_errors
from mcjepa.evals.probe.features import EncodedImage, EncodedTile, FailedImage

ALIGN = 64
MAPS, INDEX, COMPLETE = "maps.bin", "index.jsonl", "complete.json"


class FeatureFile(Sequence[EncodedImage]):
    """Finished features, mapped into memory: reading one image touches its bytes only.

    Attributes:
        folder: where they are.
        bytes: length of the maps.
        failed: "name: reason" of images that could not be read.
        failed_places: their places among all images.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        """Opens a finished folder.

        Raises:
            DataError: it is not finished, or damaged.
        """
        self.folder = folder
        self._dtype = np.dtype(dtype)
        sealed = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / INDEX).read_text(encoding="utf-8").splitlines()]
        self.bytes = (folder / MAPS).stat().st_size
        if (len(lines), self.bytes) != (sealed["images"], sealed["bytes"]):
            raise DataError(
                f"cached features {folder} hold {len(lines)} images and {self.bytes} bytes; expected "
                f"{sealed['images']} and {sealed['bytes']}; remove that folder: it is made again"
            )
        self.failed = [f"{line['name']}: {line['reason']}" for line in lines if "reason" in line]
        self.failed_places = [place for place, line in enumerate(lines) if "reason" in line]
        self._lines = [line for line in lines if "reason" not in line]
        self._memory = np.memmap(folder / MAPS, np.uint8, mode="c") if self.bytes else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> EncodedImage:  # type: ignore[override]  # no slices: they would be read whole
        """The image at that place, its tensors still on disk until they are used."""
        line = self._lines[index]
        place = line["offset"]
        labels, place = self._take(place, line["labels"], np.dtype(np.uint8))
        tiles = []
        for tile in line["tiles"]:
            maps = []
            for shape in tile["maps"]:
                some_map, place = self._take(place, shape, self._dtype)
                maps.append(some_map)
            tiles.append(EncodedTile(tuple(tile["box"]), tuple(maps)))
        return EncodedImage(line["name"], tuple(line["size"]), tuple(tiles), labels)

    def _take(self, place: int, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[Tensor, int]:
        length = int(np.prod(shape)) * dtype.itemsize
        view = np.asarray(self._memory[place : place + length]).view(dtype).reshape(shape)
        return torch.from_numpy(view), place + _aligned(length)

    def arrays(self, name: str) -> dict[str, np.ndarray] | None:
        """Arrays that `keep_arrays` left under that name, or None."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path) as stored:
            return {key: stored[key] for key in stored}

    def keep_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Leaves arrays beside the features, at once or not at all."""
        import io

        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        atomic_write(self.folder / f"{name}.npz", buffer.getvalue())


class FeatureWriter:
    """Appends images to features that are not finished, from where an earlier process stopped."""

    def __init__(self, folder: Path, dtype: str, batch: int) -> None:
        """Opens the folder and keeps what is whole in it; the caller holds its lock."""
        self.folder, self._dtype = folder, np.dtype(dtype)
        with explained_disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            self._maps: BufferedRandom = (folder / MAPS).open("a+b")
            self._index: BufferedRandom = (folder / INDEX).open("a+b")
        self.images, self.bytes = self._keep_whole(batch)

    def _keep_whole(self, batch: int) -> tuple[int, int]:
        """Cuts both files behind the last whole batch; images and bytes that stay."""
        self._index.seek(0)
        kept: list[tuple[int, int]] = [(0, 0)]  # ends in the index and in the maps after 0, 1, … images
        for line in self._index:
            end = kept[-1][1] + self._whole_bytes(line, kept[-1][1])
            if end < kept[-1][1]:
                break
            kept.append((kept[-1][0] + len(line), end))
        images = (len(kept) - 1) // batch * batch
        index_end, maps_end = kept[images]
        self._index.truncate(index_end)
        self._maps.truncate(maps_end)
        return images, maps_end

    def _whole_bytes(self, line: bytes, offset: int) -> int:
        """Bytes of the image of an index line in the maps, which begin at `offset`; -1 if they are not as written."""
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if entry is None or entry.get("offset", offset) != offset:
            return -1
        length = int(entry.get("length", 0))
        self._maps.seek(offset)
        content = self._maps.read(length)
        whole = len(content) == length and zlib.crc32(content) == entry.get("crc32", 0)
        return length if whole else -1

    def append(self, image: EncodedImage | FailedImage) -> None:
        """Writes one image.

        Raises:
            DataError: the disk is full, or a feature does not fit into the number format.
        """
        if isinstance(image, FailedImage):
            self._write(b"", {"name": image.name, "reason": image.reason})
            return
        parts = [image.labels.numpy()]
        for tile in image.tiles:
            parts += [self._converted(some_map, image.name) for some_map in tile.maps]
        content = b"".join(part.tobytes().ljust(_aligned(part.nbytes), b"\0") for part in parts)
        entry = {
            "name": image.name,
            "size": image.size,
            "labels": tuple(image.labels.shape),
            "tiles": [{"box": t.box, "maps": [tuple(m.shape) for m in t.maps]} for t in image.tiles],
            "offset": self.bytes,
            "length": len(content),
            "crc32": zlib.crc32(content),
        }
        self._write(content, entry)

    def _converted(self, some_map: Tensor, name: str) -> np.ndarray:
        values = some_map.float().numpy()
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, self._dtype)
        if not np.isfinite(stored).all():
            if np.isfinite(values).all():
                raise DataError(
                    f"a feature of {name} is {np.abs(values).max():.3g}; expected what {self._dtype} can hold; "
                    "pass probe.cache_dtype=float32"
                )
            raise DataError(f"features of {name} are not finite; expected numbers; check the weights")
        return stored

    def _write(self, content: bytes, entry: dict[str, Any]) -> None:
        with explained_disk_errors(str(self.folder)):
            self._maps.write(content)
            self._maps.flush()
            self._index.write(json.dumps(entry).encode() + b"\n")
            self._index.flush()
        self.images += 1
        self.bytes += len(content)

    def seal(self) -> None:
        """Makes the folder one that is read: both files are on disk before it says so."""
        with explained_disk_errors(str(self.folder)):
            for file in (self._maps, self._index):
                os.fsync(file.fileno())
        sealed = {"images": self.images, "bytes": self.bytes}
        atomic_write(self.folder / COMPLETE, (json.dumps(sealed) + "\n").encode())

    def close(self) -> None:
        """Closes the files; what was appended stays."""
        self._maps.close()
        self._index.close()


def _aligned(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(size for size in _sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.glob("*"):
        try:
            yield path.stat().st_size
        except FileNotFoundError:
            continue

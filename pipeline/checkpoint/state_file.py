"""One rank's file of a checkpoint: pieces of parameters in the safetensors format, read and written by stretches.

    state-00003-of-00008.safetensors     tensors `KIND/PARAMETER@OFFSET`, 1-D

The format is that of the safetensors library (8 bytes length, JSON header, data), which reads these files. It is
written here because the file's digest is taken on the way, a device's tensors pass one by one, and a full disk must
come out as the system's own error; it is read by ranges because a rank of another world needs stretches of many files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store
from mcjepa.pipeline.engine.state import Piece

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER_BYTES = 100 << 20
"""The safetensors library's own limit."""
USUAL_HEADER_BYTES, READERS = 64 << 10, 32
"""What is read of a file for its header, mostly all of it, and how many headers are read side by side."""
GAP_BYTES, CHUNK_BYTES = 1 << 20, 64 << 20
"""Stretches of a file that lie closer than the first are read together, up to the second at a time."""


@dataclass(frozen=True)
class StoredPiece:
    """Where a piece lies in a checkpoint."""

    file: str
    kind: str
    name: str
    offset: int
    """Elements of the flattened parameter before it."""
    length: int
    """Elements."""
    dtype: str
    start: int
    """First byte in the file."""


def state_name(rank: int, world_size: int) -> str:
    """Name of a rank's file."""
    return f"state-{rank:05d}-of-{world_size:05d}.safetensors"


def write_state(path: Path, pieces: Sequence[Piece]) -> tuple[str, int]:
    """Writes pieces, flushed to disk.

    Returns:
        The file's sha256 and its bytes.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    header: dict[str, Any] = {}
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.values.numel() * piece.values.element_size()
        entry = {"dtype": NAMES[piece.values.dtype], "shape": [piece.values.numel()], "data_offsets": [begin, end]}
        header[f"{piece.kind}/{piece.name}@{piece.offset}"] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks(text, pieces):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), 8 + len(text) + end


def _blocks(header: bytes, pieces: Iterable[Piece]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for piece in pieces:
        values = piece.values.detach().cpu().contiguous()
        if values.numel():
            yield values.view(torch.uint8).numpy().data


def read_index(store: Store, folder: str, files: Iterable[str]) -> list[StoredPiece]:
    """The pieces of some files, in their order, by reading the headers only: several at a time, one read for most.

    Raises:
        DataError: one is no such file.
    """
    with ThreadPoolExecutor(READERS, "state-headers") as pool:
        return [piece for pieces in pool.map(partial(_read_header, store, folder), files) for piece in pieces]


def _read_header(store: Store, folder: str, file: str) -> list[StoredPiece]:
    key = f"{folder}/{file}"
    start = store.read_range(key, 0, USUAL_HEADER_BYTES)
    length = int.from_bytes(start[:8], "little")
    try:
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        whole = len(start) >= 8 + length
        header = json.loads(start[8 : 8 + length] if whole else store.read_range(key, 8, length))
        header.pop("__metadata__", None)
        return [_stored(file, title, entry, 8 + length) for title, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{store.location}/{key} is no state of a checkpoint ({error}); expected a safetensors file of pieces; "
            "remove its checkpoint to continue from the one before"
        ) from error


def _stored(file: str, title: str, entry: Mapping[str, Any], data_start: int) -> StoredPiece:
    kind, _, rest = title.partition("/")
    name, _, offset = rest.rpartition("@")
    start = data_start + int(entry["data_offsets"][0])
    return StoredPiece(file, kind, name, int(offset), int(entry["shape"][0]), str(entry["dtype"]), start)


def fill_pieces(store: Store, folder: str, stored: Iterable[StoredPiece], wanted: Sequence[Piece]) -> None:
    """Fills pieces of any cut from stored ones of any other cut.

    Raises:
        DataError: some element of a wanted piece is stored nowhere.
    """
    by_name: dict[tuple[str, str], list[StoredPiece]] = {}
    for source in stored:
        by_name.setdefault((source.kind, source.name), []).append(source)
    reads: dict[str, list[tuple[int, Tensor, torch.dtype]]] = {}
    for piece in wanted:
        found = 0
        for source in by_name.get((piece.kind, piece.name), ()):
            begin = max(piece.offset, source.offset)
            end = min(piece.offset + piece.values.numel(), source.offset + source.length)
            if begin >= end:
                continue
            found += end - begin
            dtype = DTYPES[source.dtype]
            target = piece.values[begin - piece.offset : end - piece.offset]
            reads.setdefault(source.file, []).append(
                (source.start + (begin - source.offset) * dtype.itemsize, target, dtype)
            )
        if found != piece.values.numel():
            raise DataError(
                f"checkpoint {store.location}/{folder} holds {found} elements of {piece.kind} {piece.name} from "
                f"{piece.offset} on, expected {piece.values.numel()}; it is of another model or damaged"
            )
    for file, targets in reads.items():
        _read_into(store, f"{folder}/{file}", sorted(targets, key=lambda read: read[0]))


def _read_into(store: Store, key: str, reads: list[tuple[int, Tensor, torch.dtype]]) -> None:
    """Reads neighbouring stretches together."""
    while reads:
        start, end, count = reads[0][0], reads[0][0], 0
        for begin, target, dtype in reads:
            stop = begin + target.numel() * dtype.itemsize
            if count and (begin > end + GAP_BYTES or stop - start > CHUNK_BYTES):
                break
            end, count = max(end, stop), count + 1
        content = bytearray(store.read_range(key, start, end - start))
        if len(content) != end - start:
            raise DataError(f"{store.location}/{key} ends early; expected {end} bytes; its checkpoint is damaged")
        for begin, target, dtype in reads[:count]:
            values = torch.frombuffer(content, dtype=dtype, count=target.numel(), offset=begin - start)
            target.copy_(values)
        reads = reads[count:]

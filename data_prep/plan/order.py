"""The order of a dataset's inputs: a seeded permutation, so that neighbours in a shard are not of one folder.

An input's place is that of sha256 over seed and name among all: it depends on nothing else, so an input more moves no
other one. Sorting spills to files by the digest's first byte, and again by the next where that is not enough: memory
holds a bounded number of inputs, whatever their number.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from mcjepa.data_prep.plan.plan import PlannedInput, input_from_line, input_to_line
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import explained_disk_errors
from mcjepa.data_prep.storage.json_files import encode_line

MOST_IN_MEMORY = 1 << 16
KEY_BYTES = 8
SPREAD = 256


def ordered_inputs(inputs: Iterable[PlannedInput], config: DatasetConfig, scratch: Path) -> Iterator[PlannedInput]:
    """The inputs in the dataset's order; files below `scratch` are removed at the end."""
    if config.order == "listed":
        yield from inputs
        return
    for line in ordered_lines(inputs, config, scratch):
        yield input_from_line(json.loads(line))


def ordered_lines(inputs: Iterable[PlannedInput], config: DatasetConfig, scratch: Path) -> Iterator[bytes]:
    """Their lines of plan.jsonl.gz, in that order."""
    if config.order == "listed":
        yield from map(encode_input, inputs)
        return
    for _, line in placed_lines(inputs, config, scratch):
        yield line


def placed_lines(inputs: Iterable[PlannedInput], config: DatasetConfig, scratch: Path) -> Iterator[tuple[bytes, bytes]]:
    """The place of each, and its line, sorted by both."""
    lines = ((place(planned.name, config.order_seed), encode_input(planned)) for planned in inputs)
    yield from _sorted(lines, 0, scratch)


def place(name: str, seed: int) -> bytes:
    """What inputs are sorted by.

    >>> sorted("abcd", key=lambda name: place(name, 0))
    ['d', 'a', 'b', 'c']
    """
    return hashlib.sha256(f"{seed}\n{name}".encode(errors="surrogateescape")).digest()[:KEY_BYTES]


def encode_input(planned: PlannedInput) -> bytes:
    """Its line of plan.jsonl.gz."""
    return encode_line(input_to_line(planned))


def _sorted(lines: Iterable[tuple[bytes, bytes]], depth: int, scratch: Path) -> Iterator[tuple[bytes, bytes]]:
    held: list[tuple[bytes, bytes]] = []
    stream = iter(lines)
    for pair in stream:
        held.append(pair)
        if len(held) > MOST_IN_MEMORY and depth < KEY_BYTES:
            break
    else:
        held.sort()
        yield from held
        return
    with ExitStack() as stack:
        with explained_disk_errors(str(scratch)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="order-", dir=scratch)))
            _spread(held, depth, folder)
            held.clear()
            _spread(stream, depth, folder)
        for number in range(SPREAD):
            path = folder / f"{number:02x}"
            if path.exists():
                yield from _sorted(_read(path), depth + 1, scratch)
                path.unlink()


def _spread(lines: Iterable[tuple[bytes, bytes]], depth: int, folder: Path) -> None:
    """Append lines to one file for each value of their keys' next byte."""
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{number:02x}").open("ab")) for number in range(SPREAD)]
        for key, line in lines:
            files[key[depth]].write(key.hex().encode() + line + b"\n")


def _read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb") as file:
        for line in file:
            yield bytes.fromhex(line[: 2 * KEY_BYTES].decode()), line[2 * KEY_BYTES :].rstrip(b"\n")

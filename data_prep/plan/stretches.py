"""A dataset's inputs listed in stretches that know nothing of each other, and put in order by ranges of places.

    listing   a stretch of a corpus's keys  ->  NAME.digest   its inputs' digest lines, in the order of the listing
                                                NAME.lines    place and line of each, sorted; or in the listed order
                                                              NAME.jsonl.gz, a member of plan.jsonl.gz
    ordering  a range of places, of the lines of all stretches  ->  NAME.jsonl.gz, a member of plan.jsonl.gz

The digest lines one after the other are what one process would take in, and the members what it would write. Memory
holds a range of places, or what sorting a stretch holds (`plan.order`).
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mcjepa.data_prep.corpora import DIVISIBLE
from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.corpora.places import is_local
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.plan.listing import read_corpus
from mcjepa.data_prep.plan.order import KEY_BYTES, encode_input, placed_lines
from mcjepa.data_prep.plan.plan import PlannedInput, corpus_prefix, digest_line
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import EVERYTHING, KeySpan, Store, absolute_location, explained_disk_errors, open_store
from mcjepa.data_prep.storage.json_files import pack_lines

STRETCHES_A_WORKER = 8
"""So that workers end at about the same time; one of a flat folder, whose names every stretch reads all."""
CELLS = 1024
"""Cells of equal size that places are sorted into."""
RANGE_BYTES = 64 << 20
"""Of lines, that one task puts in order, at least a cell."""
MOST_LEVELS = 1000
"""Folders that are looked into for where to cut a corpus."""


@dataclass(frozen=True)
class PlanWork:
    """What is the same for all tasks of a plan."""

    config: DatasetConfig
    exchange: str
    """Location of what tasks hand on to each other."""
    lines: bool
    """Whether the lines of plan.jsonl.gz are wanted too, not the digest alone."""


@dataclass(frozen=True)
class Stretch:
    """A part of a corpus's listing, or all of it."""

    name: str
    corpus: int
    repetition: int
    span: KeySpan


@dataclass(frozen=True)
class ListedStretch:
    """What lies in a stretch."""

    name: str
    corpus: int
    inputs: int
    bytes: int
    files: int
    census: Census
    cells: array[int]
    """Where in NAME.lines each cell begins, and where the last one ends; empty where there are no such lines."""


@dataclass(frozen=True)
class PlaceRange:
    """Some cells, and where their lines are."""

    name: str
    pieces: tuple[tuple[str, int, int], ...]
    """Stretch, offset and length."""


def cut_corpora(config: DatasetConfig, wanted: int) -> list[Stretch]:
    """Stretches of all corpora, in the order of the listing: about `wanted` of each that can be cut (`cut_corpus`)."""
    stretches: list[Stretch] = []
    for number, corpus in enumerate(config.corpora):
        spans = cut_corpus(corpus, wanted)
        for repetition in range(corpus.repeat):
            for span in spans:
                stretches.append(Stretch(f"{len(stretches):06d}", number, repetition, span))
    return stretches


def cut_corpus(corpus: CorpusConfig, wanted: int) -> list[KeySpan]:
    """Spans that follow each other and cover all keys: one where the reader needs the whole corpus.

    A flat folder is cut into fewer, except one of tars, whose headers take longer to read than its names.
    """
    if corpus.reader not in DIVISIBLE:
        return [EVERYTHING]
    root = DIVISIBLE[corpus.reader](absolute_location(corpus.path) if corpus.path else "", corpus.split)
    keys = _boundaries(open_store(root), wanted)
    if corpus.reader not in ("tars", "webdataset") and is_local(root) and not any(key.endswith("/") for key in keys):
        wanted = max(1, wanted // STRETCHES_A_WORKER)
    step = max(1.0, len(keys) / wanted)
    cuts = [keys[int(place * step)] for place in range(1, min(wanted, len(keys)))]
    return [KeySpan(first, end) for first, end in zip(("", *cuts), (*cuts, ""), strict=True)]


def _boundaries(store: Store, wanted: int) -> list[str]:
    """Keys at which a listing may be cut, sorted: folders, of as few levels as give enough, else names of files too."""
    keys = _inside(store, "")
    for _ in range(MOST_LEVELS):
        folders = [key for key in keys if key.endswith("/")]
        if len(folders) >= min(wanted, MOST_LEVELS):  # the folders of more cannot all be looked into
            return folders
        if not folders:
            break
        inside = [key for folder in folders[:MOST_LEVELS] for key in _inside(store, folder)]
        if not any(key.endswith("/") for key in inside):
            return folders if len(folders) * 2 > wanted else sorted({*folders, *inside, *keys}, key=os.fsencode)
        keys = inside
    return keys


def _inside(store: Store, folder: str) -> list[str]:
    """Keys directly in a folder; none where it is absent or cannot be read: whoever lists it says so."""
    try:
        return store.level(folder)
    except (OSError, DataError):
        return []


def list_stretch(work: PlanWork, stretch: Stretch) -> ListedStretch:
    """List a stretch, and hand on its digest lines and its sorted lines.

    Raises:
        DataError: it cannot be listed, or what is handed on cannot be written.
    """
    exchange = open_store(work.exchange)
    corpus, census, tally = work.config.corpora[stretch.corpus], Census(), _Tally()
    prefix = corpus_prefix(stretch.corpus, corpus.reader, stretch.repetition)
    cells: array[int] = array("Q")
    with _handed_on(exchange, f"{stretch.name}.digest") as digests:
        found = (
            PlannedInput(f"{prefix}/{item.name}", item, item.bytes)
            for item in read_corpus(corpus, census, stretch.span)
        )
        inputs = tally.watch(found, digests.write)
        if not work.lines:
            for _ in inputs:
                pass
        elif work.config.order == "listed":
            with _handed_on(exchange, f"{stretch.name}.jsonl.gz") as file:
                pack_lines(file, map(encode_input, inputs))
        else:
            with _handed_on(exchange, f"{stretch.name}.lines") as file:
                cells = _write_cells(file, placed_lines(inputs, work.config, exchange.scratch()))
    return ListedStretch(stretch.name, stretch.corpus, tally.inputs, tally.bytes, tally.files, census, cells)


def order_range(work: PlanWork, part: PlaceRange) -> str:
    """Put the lines of a range of places in order, and hand them on; returns the range's name."""
    exchange = open_store(work.exchange)
    held: list[bytes] = []
    for name, offset, length in part.pieces:
        held += exchange.read_range(f"{name}.lines", offset, length).splitlines()
    held.sort()
    with _handed_on(exchange, f"{part.name}.jsonl.gz") as file:
        pack_lines(file, (line[2 * KEY_BYTES :] for line in held))
    return part.name


def ranges_of_places(stretches: Iterable[ListedStretch]) -> Iterator[PlaceRange]:
    """Ranges that follow each other, of as many cells as make `RANGE_BYTES`."""
    held = [stretch for stretch in stretches if stretch.cells and stretch.cells[-1]]
    first = size = 0
    for cell in range(CELLS):
        size += sum(stretch.cells[cell + 1] - stretch.cells[cell] for stretch in held)
        if size >= RANGE_BYTES or (cell == CELLS - 1 and size):
            pieces = ((s.name, s.cells[first], s.cells[cell + 1] - s.cells[first]) for s in held)
            yield PlaceRange(f"r{first:04d}", tuple(piece for piece in pieces if piece[2]))
            first, size = cell + 1, 0


def _write_cells(file: BinaryIO, lines: Iterable[tuple[bytes, bytes]]) -> array[int]:
    """Write sorted places and lines; returns where each cell begins, and the end."""
    begins: array[int] = array("Q")
    offset = 0
    for key, line in lines:
        cell = int.from_bytes(key[:2], "big") * CELLS >> 16
        while len(begins) <= cell:
            begins.append(offset)
        offset += file.write(key.hex().encode() + line + b"\n")
    begins.extend([offset] * (CELLS + 1 - len(begins)))
    return begins


class _Tally:
    """Counts inputs on their way."""

    def __init__(self) -> None:
        self.inputs = self.bytes = self.files = 0

    def watch(self, inputs: Iterable[PlannedInput], write: Callable[[bytes], object]) -> Iterator[PlannedInput]:
        """The same inputs, whose digest lines are written."""
        for planned in inputs:
            self.inputs += 1
            self.bytes += max(0, planned.bytes)
            self.files += len(planned.item.files)
            write(digest_line(planned))
            yield planned


@contextlib.contextmanager
def _handed_on(store: Store, key: str) -> Iterator[BinaryIO]:
    """A file that the store takes over at the end; nothing of it stays after an error."""
    path = store.scratch() / f"{key}.{os.getpid()}.partial"
    try:
        with explained_disk_errors(str(path)), path.open("wb") as file:
            yield file
        store.write_file(key, path)
    finally:
        path.unlink(missing_ok=True)

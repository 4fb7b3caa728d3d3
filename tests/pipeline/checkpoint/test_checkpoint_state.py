"""A rank's file of pieces: any cut can be read from any other cut, and by the safetensors library."""

from __future__ import annotations

import hashlib
import itertools
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import FolderStore, open_store
from mcjepa.pipeline.checkpoint import state_file
from mcjepa.pipeline.checkpoint.state_file import fill_pieces, read_index, state_name, write_state
from mcjepa.pipeline.engine.state import BUFFER, MOMENT_1, WEIGHT, Piece, share_pieces

LENGTHS = {"encoder.a": 7, "encoder.b": 64, "expander.c": 1}


def whole() -> dict[tuple[str, str], torch.Tensor]:
    return {
        (kind, name): torch.randn(length, generator=torch.Generator().manual_seed(length + len(kind)))
        for name, length in LENGTHS.items()
        for kind in (WEIGHT, MOMENT_1)
    }


def cut(bounds: list[int]) -> list[list[Piece]]:
    """The flat concatenation of all parameters cut at `bounds`, one list a rank, as ZeRO does."""
    edges = [0, *sorted(bounds), sum(LENGTHS.values())]
    ranks = []
    for low, high in itertools.pairwise(edges):
        pieces, start = [], 0
        for name, length in LENGTHS.items():
            begin, end = max(low, start), min(high, start + length)
            if begin < end:
                pieces += [
                    Piece(name, kind, begin - start, whole()[kind, name][begin - start : end - start].clone())
                    for kind in (WEIGHT, MOMENT_1)
                ]
            start += length
        ranks.append(pieces)
    return ranks


def save(folder: Path, ranks: list[list[Piece]]) -> list[str]:
    (folder / "c").mkdir(exist_ok=True)
    names = [state_name(rank, len(ranks)) for rank in range(len(ranks))]
    for name, pieces in zip(names, ranks, strict=True):
        write_state(folder / "c" / name, pieces)
    return names


@settings(deadline=None)
@given(
    written=st.lists(st.integers(0, 72), max_size=4),
    read=st.lists(st.integers(0, 72), max_size=4),
    gap=st.sampled_from([0, 8, 1 << 20]),
)
def test_any_cut_is_read_from_any_other(
    tmp_path_factory: pytest.TempPathFactory, written: list[int], read: list[int], gap: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    store = open_store(str(folder))
    stored = read_index(store, "c", save(folder, cut(written)))
    before, state_file.GAP_BYTES = state_file.GAP_BYTES, gap
    try:
        for expected in cut(read):
            wanted = [Piece(p.name, p.kind, p.offset, torch.full_like(p.values, 9.0)) for p in expected]
            fill_pieces(store, "c", stored, wanted)
            assert all(torch.equal(a.values, b.values) for a, b in zip(wanted, expected, strict=True))
    finally:
        state_file.GAP_BYTES = before


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64, 500])
def test_what_every_rank_holds_is_saved_in_equal_parts(tmp_path: Path, world_size: int) -> None:
    """One parameter may be larger than all others together, as the expander's are."""
    held = [Piece(name, kind, 0, values) for (kind, name), values in whole().items()]
    shares = [share_pieces(held, rank, world_size) for rank in range(world_size)]
    sizes = [sum(piece.values.numel() for piece in share) for share in shares]
    assert sum(sizes) == 2 * sum(LENGTHS.values()) and max(sizes) - min(sizes) <= 1
    stored = read_index(open_store(str(tmp_path)), "c", save(tmp_path, shares))
    wanted = [Piece(piece.name, piece.kind, 0, torch.full_like(piece.values, 9.0)) for piece in held]
    fill_pieces(open_store(str(tmp_path)), "c", stored, wanted)
    assert all(torch.equal(a.values, b.values) for a, b in zip(wanted, held, strict=True))


def test_the_safetensors_library_reads_a_file_and_the_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    pieces = [Piece("a", WEIGHT, 3, torch.arange(5.0)), Piece("n", BUFFER, 0, torch.tensor([4], dtype=torch.int64))]
    digest, size = write_state(tmp_path / "x.safetensors", pieces)
    content = (tmp_path / "x.safetensors").read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (digest, size)
    tensors = load_file(str(tmp_path / "x.safetensors"))
    assert torch.equal(tensors["weight/a@3"], torch.arange(5.0)) and tensors["buffer/n@0"].item() == 4


class WatchedStore(FolderStore):
    """Counts reads, and answers the first few only when as many are asked for at once."""

    def __init__(self, folder: Path, together: int) -> None:
        super().__init__(str(folder), folder)
        self.reads, self._meeting, self._together = 0, threading.Barrier(together), together

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """As the folder has it."""
        self.reads += 1
        if self.reads <= self._together:
            self._meeting.wait(timeout=20)
        return super().read_range(key, offset, length)


def test_the_headers_of_many_files_are_read_side_by_side_and_once(tmp_path: Path) -> None:
    names = save(tmp_path, cut(list(range(1, 65))))
    store = WatchedStore(tmp_path, together=8)
    stored = read_index(store, "c", names)
    assert store.reads == len(names) == 65
    assert [piece.file for piece in stored] == sorted(piece.file for piece in stored)


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    pieces = [Piece(f"parameter-with-a-long-name-{number:06d}", WEIGHT, 0, torch.ones(1)) for number in range(1500)]
    (tmp_path / "c").mkdir()
    write_state(tmp_path / "c" / "f", pieces)
    stored = read_index(open_store(str(tmp_path)), "c", ["f"])
    assert [piece.name for piece in stored] == [piece.name for piece in pieces]


def test_a_piece_that_is_stored_nowhere_is_an_error(tmp_path: Path) -> None:
    [name] = save(tmp_path, cut([]))
    store = open_store(str(tmp_path))
    wanted = [Piece("encoder.b", WEIGHT, 60, torch.zeros(5))]
    with pytest.raises(DataError, match=r"holds 4 elements of weight encoder\.b from 60 on, expected 5"):
        fill_pieces(store, "c", read_index(store, "c", [name]), wanted)


def test_a_file_that_is_no_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "f").write_bytes(b"\xff" * 64)
    with pytest.raises(DataError, match="no state of a checkpoint"):
        read_index(open_store(str(tmp_path)), "c", ["f"])

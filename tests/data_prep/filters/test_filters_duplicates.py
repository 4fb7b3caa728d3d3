"""The resolver of duplicates: its rules one by one, against a brute-force version, and its growth."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcjepa.data_prep.filters import duplicates, hash_index
from mcjepa.data_prep.filters.duplicates import Duplicate, resolve_duplicates
from mcjepa.data_prep.filters.hash_index import HashIndex, compare_all, join_hits
from mcjepa.data_prep.filters.phash import bit_distances

Stream = list[tuple[str, str, list[int | None]]]


def brute_force(stream: Stream, max_bits: int) -> dict[str, Duplicate]:
    """The rules as they are written, every pair compared."""
    found: dict[str, Duplicate] = {}
    originals: dict[str, str] = {}
    contents: dict[str, str] = {}
    kept: list[tuple[str, list[int]]] = []
    for name, content, samples in stream:
        plain = name.replace("@1/", "/")
        first = originals.setdefault(plain, name)
        if first != name:
            found |= {name: found[first]} if first in found else {}
            continue
        hashes = [h for h in samples if h is not None]
        if content and contents.setdefault(content, name) != name:
            found[name] = Duplicate(contents[content], "exact", 0)
            continue
        for other, theirs in kept:
            nearest = [min(((h ^ t).bit_count() for t in theirs), default=65) for h in hashes]
            alike = [bits for bits in nearest if bits <= max_bits]
            if alike and 2 * len(alike) >= len(hashes):
                found[name] = Duplicate(other, "near", max(alike))
                break
        if name not in found:
            kept.append((name, hashes))
    return found


def hashes_near_few_looks() -> st.SearchStrategy[int | None]:
    looks = st.sampled_from([0, 0x123456789ABCDEF0, 0xFFFF0000FFFF0000])
    flips = st.lists(st.integers(0, 63), max_size=5)
    noisy = st.builds(lambda look, bits: look ^ sum(1 << b for b in set(bits)), looks, flips)
    return st.one_of(noisy, st.just(None))


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    names = draw(st.lists(st.from_regex(r"\A[01]-videos(@1)?/[a-e]\Z"), unique=True, max_size=16))
    contents = st.sampled_from(["", "01", "02", *(f"{n:04x}" for n in range(30))])
    return [(name, draw(contents), draw(st.lists(hashes_near_few_looks(), max_size=4))) for name in names]


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(-1, 8), st.sampled_from([2, 5, 1024]), st.sampled_from([4, 8192]))
def test_the_same_as_comparing_every_pair(stream: Stream, max_bits: int, block: int, waiting: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK_HASHES", block)
        patch.setattr(hash_index, "WAITING", waiting)
        patch.setattr(hash_index, "PAIRS_AT_ONCE", 7)
        found = resolve_duplicates(stream, max_bits)
    assert found == brute_force(stream, max_bits)
    assert list(found) == [name for name, _, _ in stream if name in found]


def test_of_equal_bytes_the_first_stays() -> None:
    found = resolve_duplicates([("a", "01", []), ("b", "02", []), ("c", "01", []), ("d", "01", [])], 4)
    assert found == {"c": Duplicate("a", "exact", 0), "d": Duplicate("a", "exact", 0)}


def test_unreadable_content_equals_nothing() -> None:
    assert resolve_duplicates([("a", "", []), ("b", "", [])], 4) == {}


def test_repetitions_are_no_duplicates_and_share_the_first_ones_fate() -> None:
    stream: Stream = [("0-a/x", "01", [7]), ("1-b/y", "01", [7]), ("1-b@1/y", "01", [7]), ("0-a@1/x", "01", [7])]
    found = resolve_duplicates(stream, 4)
    assert found == dict.fromkeys(["1-b/y", "1-b@1/y"], Duplicate("0-a/x", "exact", 0))


def test_half_of_the_samples_must_be_alike_with_one_earlier_input() -> None:
    looks = [1 << 8 * k for k in range(8)]
    far = [~h & (2**64 - 1) for h in looks]
    stream: Stream = [
        ("a", "", [looks[0], looks[1], None]),
        ("b", "", [far[0] ^ 0xF0F0, far[1] ^ 0x0F0F]),
        ("half of a", "", [looks[0], looks[1], 0xABCDEF << 20, 0x5A5A5A5A5A]),
        ("a third of a", "", [looks[0], 0xABCDEF << 20, 0x5A5A5A5A5A]),
    ]
    assert resolve_duplicates(stream, 0) == {"half of a": Duplicate("a", "near", 0)}


def test_a_duplicate_does_not_make_others_duplicates() -> None:
    stream: Stream = [("a", "", [0b0]), ("b", "", [0b1111]), ("c", "", [0b11111111])]
    assert resolve_duplicates(stream, 4) == {"b": Duplicate("a", "near", 4)}


def test_minus_one_compares_bytes_only() -> None:
    assert resolve_duplicates([("a", "01", [7]), ("b", "02", [7])], -1) == {}


@pytest.mark.parametrize("max_bits", [0, 1, 4, 15])
def test_the_index_finds_all_that_comparing_one_by_one_finds(max_bits: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    index = HashIndex(max_bits)
    for start in range(0, len(hashes), 5_000):
        index.add(hashes[start:][:5_000], np.arange(start, start + 5_000, dtype=np.int32))
    flips = [sum(1 << int(b) for b in rng.choice(64, max_bits, replace=False)) for _ in range(50)]
    queries = hashes[::400] ^ np.array(flips, np.uint64)
    found = index.search(queries).distinct()
    expected = join_hits(compare_all(queries, hashes, np.arange(20_000, dtype=np.int32), max_bits)).distinct()
    assert len(found.owner) >= 50
    for name in ("query", "owner", "distance"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_one_look_shared_by_all_does_not_make_the_work_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
        nonlocal compared
        distances = bit_distances(hashes, others)
        compared += distances.size
        return distances

    def work(inputs: int) -> int:
        nonlocal compared
        compared = 0
        own = np.random.default_rng(0).integers(0, 2**64, (inputs, 6), dtype=np.uint64)
        own[:, :2] = 12345  # the same title in every video
        assert resolve_duplicates(((f"{n}", "", row) for n, row in enumerate(own.tolist())), 4) == {}
        return compared

    monkeypatch.setattr(duplicates, "BLOCK_HASHES", 64)
    monkeypatch.setattr(hash_index, "WAITING", 256)
    monkeypatch.setattr(hash_index, "bit_distances", counted)
    assert work(4_000) < 5 * work(1_000)


@pytest.mark.slow
def test_a_hundred_thousand_looks_alike_are_resolved_in_seconds() -> None:
    rng = np.random.default_rng(0)
    looks = np.uint64(99) ^ (np.uint64(1) << rng.integers(0, 64, 100_000, dtype=np.uint64))
    started = time.process_time()
    found = resolve_duplicates(((f"{n}", f"{n:08x}", [h]) for n, h in enumerate(looks.tolist())), 4)
    assert time.process_time() - started < 30
    assert len(found) == 99_999

"""A JSON object read in a stream is the object that `json` reads, wherever a block ends."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import json_files
from mcjepa.data_prep.storage.json_files import ObjectReader

CONTENT: dict[str, Any] = {
    "name": 'a "quoted" ü\\ \U0001f600 },{',
    "numbers": [0, -12, 3.25, 1e9, 123456789],
    "nested": {"list": [[], {}, [{"a": [None, True]}]], "": ""},
    "empty": [],
    "last": 1234567,
}


def read(data: bytes) -> dict[str, Any]:
    """By streams of lists."""
    reader = ObjectReader(io.BytesIO(data), "FILE")
    return {name: list(reader.items()) if reader.at_list() else reader.value() for name in reader.fields()}


@pytest.mark.parametrize("block", [*range(1, 14), 1 << 20])
@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2, "ensure_ascii": False}])
def test_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, block: int, style: dict[str, Any]) -> None:
    monkeypatch.setattr(json_files, "BLOCK_BYTES", block)
    assert read(json.dumps(CONTENT, **style).encode() + b"\n") == CONTENT
    assert read(b" {} ") == {}


def test_what_is_no_object_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "BLOCK_BYTES", 16)
    whole = json.dumps(CONTENT).encode()
    for data, found in (
        (b"", "no JSON object"),
        (b"[1]", "no JSON object"),
        (whole[:-1], "no JSON"),
        (whole + b"{}", "more behind its end"),
        (b'{"a" 1}', "not followed by a value"),
        (b"{1: 2}", "not followed by a value"),
        (b'{"a": [1 2]}', "where , or ] was expected"),
        (b'{"a": 1 "b": 2}', "where , or } was expected"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": "\xc3', "utf-8|no JSON"),
    ):
        with pytest.raises(DataError, match=found):
            read(data)


def test_cut_anywhere_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "BLOCK_BYTES", 16)
    whole = json.dumps(CONTENT, ensure_ascii=False).encode()
    for end in random.Random(0).sample(range(len(whole)), 60):
        with pytest.raises(DataError, match="FILE has no JSON"):
            read(whole[:end])


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_the_place_of_damage_is_that_in_the_file(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(json_files, "BLOCK_BYTES", block)
    numbers = json.dumps({"ü": list(range(1000))}, ensure_ascii=False)
    cut = numbers.index("500")
    with pytest.raises(DataError, match=rf"Expecting value \(char {cut}\)"):
        read((numbers[:cut] + "?" + numbers[cut:]).encode())
    before = numbers[:cut].encode() + b'"'
    with pytest.raises(DataError, match=f"no utf-8 from byte {len(before)} on"):
        read(before + b"\xc3" + b'", 1]}')

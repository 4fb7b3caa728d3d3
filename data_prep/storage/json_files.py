"""Records as JSON, one a file or one per line: the same record gives the same bytes, and readers are strict."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from mcjepa.data_prep.errors import DataError

if TYPE_CHECKING:
    from mcjepa.data_prep.storage import Store

BLOCK_BYTES = 1 << 20
"""Of a JSON file that is read in a stream."""
_SPACE = " \t\n\r"


def encode_json(record: Any) -> bytes:
    """A dataclass as sorted, compact JSON: the same record gives the same bytes."""
    text = json.dumps(record, default=vars, sort_keys=True, separators=(",", ":"))
    return text.encode() + b"\n"


def parse_record(data: bytes, where: str, *versions: int) -> dict[str, Any]:
    """A JSON object of one of these versions; `where` names it in errors.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise malformed_record(where, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise malformed_record(where, "no JSON object")
    check_version(content, where, *versions)
    return content


def check_version(content: dict[str, Any], where: str, *versions: int) -> None:
    """Refuse a record of another version than these.

    Raises:
        DataError: it is of none of them.
    """
    if content.get("version") not in versions:
        raise DataError(
            f"{where} has version {content.get('version')!r}; expected {' or '.join(map(str, versions))}; "
            "prepare the dataset again with this mcjepa, or use the one that wrote it"
        )


class ObjectReader:
    """A JSON object, field by field: memory holds its longest value, of a list only one item.

    >>> import io
    >>> reader = ObjectReader(io.BytesIO(b'{"name": "a", "long": [1, 2]}'), "FILE")
    >>> [(name, list(reader.items()) if reader.at_list() else reader.value()) for name in reader.fields()]
    [('name', 'a'), ('long', [1, 2])]
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        """Read `file` from where it stands; `where` names it in errors."""
        self._file, self._where = file, where
        self._decoder, self._to_text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0
        self._passed = self._bytes = 0
        """Characters before `_text`, and bytes of all blocks so far."""

    def fields(self) -> Iterator[str]:
        """Names of the fields in the file's order; after each, its `value` or its `items` have to be taken.

        Raises:
            DataError: here and below, the file is no JSON object.
        """
        if self._next() != "{":
            raise malformed_record(self._where, "no JSON object")
        if self._peek() == "}":
            self._at += 1
        else:
            yield from self._named_fields()
        if self._peek():
            raise self._no_json("more behind its end")

    def value(self) -> Any:
        """The value that comes next."""
        self._peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError as error:
                reason = self._described(error)
                if not self._read_more():
                    raise self._no_json(reason) from error
                continue
            left = len(self._text) - end
            if left < len("e+1") and self._read_more():
                continue  # a number may go on behind `1` or `1e+`
            self._at = len(self._text) - left
            return found

    def at_list(self) -> bool:
        """Whether a list comes next."""
        return self._peek() == "["

    def items(self) -> Iterator[Any]:
        """The items of the list that comes next, one at a time."""
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if not self._another("]"):
                return

    def _named_fields(self) -> Iterator[str]:
        while True:
            name = self.value()
            if not isinstance(name, str) or self._next() != ":":
                raise self._no_json(f"{name!r} is not followed by a value")
            yield name
            if not self._another("}"):
                return

    def _another(self, end: str) -> bool:
        """Steps over a comma, or over the end."""
        mark = self._next()
        if mark not in (",", end):
            raise self._no_json(f"{mark!r} where , or {end} was expected")
        return mark == ","

    def _next(self) -> str:
        mark = self._peek()
        self._at += 1
        return mark

    def _peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._read_more():
                return ""

    def _read_more(self) -> bool:
        """Another block, the longer the more is held already; False at the end of the file."""
        left = self._text[self._at :]
        data = self._file.read(max(BLOCK_BYTES, len(left)))
        before = self._bytes - len(self._to_text.getstate()[0])
        try:
            text = self._to_text.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self._no_json(f"no utf-8 from byte {before + error.start} on: {error.reason}") from error
        self._passed += self._at
        self._bytes += len(data)
        self._text, self._at = left + text, 0
        return bool(data)

    def _described(self, error: ValueError) -> str:
        """What the decoder says, with its place in the file."""
        if not isinstance(error, json.JSONDecodeError):
            return str(error)
        return f"{error.msg} (char {self._passed + error.pos})"

    def _no_json(self, reason: object) -> DataError:
        return malformed_record(self._where, f"no JSON ({reason})")


def list_field(content: dict[str, Any], name: str, where: str) -> list[Any]:
    """A field that must be a list."""
    value = content.get(name)
    if not isinstance(value, list):
        raise malformed_record(where, f"no list `{name}`")
    return value


def build_record(kind: type[Any], content: Any, where: str) -> Any:
    """A record from a JSON object that has exactly its fields."""
    if not isinstance(content, dict):
        raise malformed_record(where, f"no object for {kind.__name__}")
    fields = {f.name for f in dataclasses.fields(kind)}
    if missing := sorted(fields - content.keys()):
        raise malformed_record(where, f"no field {', '.join(missing)} ({kind.__name__})")
    if unknown := sorted(content.keys() - fields):
        raise malformed_record(where, f"the unknown field {', '.join(unknown)} ({kind.__name__})")
    return kind(**content)


def malformed_record(where: str, found: str) -> DataError:
    """The error for a file that is not what it should be."""
    return DataError(f"{where} has {found}; expected the fields of docs/formats.md; prepare the dataset again")


def encode_line(record: object) -> bytes:
    """An object as a JSON line, without its end: the same object gives the same bytes."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def write_lines(file: BinaryIO, lines: Iterable[object]) -> None:
    """Write objects as gzipped JSON lines: the same objects give the same bytes."""
    pack_lines(file, map(encode_line, lines))


def pack_lines(file: BinaryIO, lines: Iterable[bytes]) -> None:
    """Write encoded lines as one member of a gzipped file, which may have several."""
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        for line in lines:
            packed.write(line + b"\n")


def read_lines(store: Store, key: str) -> Iterator[Any]:
    """Objects of gzipped JSON lines, one at a time; memory holds a line, never the file.

    Raises:
        DataError: the file is absent or damaged.
    """
    where = f"{store.location}/{key}"
    try:
        with store.open(key) as file, gzip.GzipFile(fileobj=file) as packed:
            for line in packed:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{where} is damaged ({error}); expected gzipped JSON lines; prepare again") from error

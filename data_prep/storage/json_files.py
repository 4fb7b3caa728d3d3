"""Records as JSON, one a file or one per line: the same record gives the same bytes, and readers are strict."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from mcjepa.data_prep.errors import DataError

if TYPE_CHECKING:
    from mcjepa.data_prep.storage import Store


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
    if content.get("version") not in versions:
        raise DataError(
            f"{where} has version {content.get('version')!r}; expected {' or '.join(map(str, versions))}; "
            "prepare the dataset again with this mcjepa, or use the one that wrote it"
        )
    return content


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

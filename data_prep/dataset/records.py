"""Records as JSON files: the same record gives the same bytes, and readers are strict."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mcjepa.data_prep.errors import DataError


def encode_json(record: Any) -> bytes:
    """A dataclass as sorted, compact JSON: the same record gives the same bytes."""
    text = json.dumps(record, default=vars, sort_keys=True, separators=(",", ":"))
    return text.encode() + b"\n"


def parse_record(data: bytes, where: str, version: int) -> dict[str, Any]:
    """A JSON object of a given version; `where` names it in errors.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise malformed_record(where, f"no JSON ({error})") from error
    if not isinstance(content, dict):
        raise malformed_record(where, "no JSON object")
    if content.get("version") != version:
        raise DataError(
            f"{where} has version {content.get('version')!r}; expected {version}; "
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

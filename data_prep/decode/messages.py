"""What decoding says: why an input gives no samples, and messages between the decode child and its parent.

A message is a JSON header and raw parts, each length-prefixed.

    4 bytes big-endian: length of the header | header (JSON, with "parts": lengths of the parts) | the parts

Nothing that a child writes is ever executed or unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import select
import time
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.settings import DatasetConfig


class DecodeFailure(RuntimeError):
    """The input cannot be decoded: it is quarantined with this reason."""


class Unwanted(RuntimeError):
    """The input is readable but gives no sample by the dataset's rules: it is filtered, with this reason."""


def require_megapixels(width: int, height: int, max_megapixels: float) -> None:
    """Refuse a picture by the size that its header claims, before anything is decoded.

    Raises:
        DecodeFailure: it has more pixels than allowed.
    """
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise DecodeFailure(f"{width}x{height} px are {megapixels:.1f} megapixels; at most {max_megapixels:g} allowed")


def one_line(text: str) -> str:
    """A text as one line, without what differs from run to run."""
    return " ".join(ADDRESS.sub("", CLOCK_AND_SOURCE.sub("", text)).split())


def encode_config(config: DatasetConfig) -> str:
    """A dataset's settings as JSON, for the child's command line."""
    return json.dumps(dataclasses.asdict(config))


def decode_config(config_json: str) -> DatasetConfig:
    """The settings that `encode_config` wrote; to load a library that checks them takes longer than all else here."""
    config: DatasetConfig = _built(DatasetConfig, json.loads(config_json))
    return config


def input_from_message(fields: dict[str, Any]) -> Input:
    """An input that was sent as its fields."""
    item: Input = _built(Input, fields)
    return item


def _built(kind: Any, value: Any) -> Any:
    """A value of JSON as what it was: dataclasses have become objects, tuples lists."""
    if dataclasses.is_dataclass(kind):
        made: Any = kind
        kinds = _kinds(made)
        return made(**{name: _built(kinds[name], part) for name, part in value.items()})
    if isinstance(value, list):
        return tuple(_built(next(iter(get_args(kind)), None), part) for part in value)
    return value


_kinds = functools.cache(get_type_hints)


CLOCK_AND_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
ADDRESS = re.compile(r" (at|@) 0x[0-9a-f]+")
MAX_HEADER_BYTES = 64 << 20
READ_BYTES = 1 << 20
PIECES_AT_ONCE = 1024  # of a call; IOV_MAX of Linux


class ChildTimeout(RuntimeError):
    """Nothing came for too long."""


class PipeClosed(RuntimeError):
    """The other side has closed its end."""


def message_pieces(header: dict[str, Any], parts: Sequence[bytes] = ()) -> list[bytes]:
    """One message as what is to be written one after the other."""
    text = json.dumps({**header, "parts": [len(p) for p in parts]}).encode()
    return [len(text).to_bytes(4, "big") + text, *parts]


def write_pieces(descriptor: int, pieces: Sequence[bytes]) -> None:
    """Write messages by as few calls as go, waiting while the pipe is full: each may wake the reader."""
    views = [memoryview(piece) for piece in pieces if piece]
    while views:
        written = os.writev(descriptor, views[:PIECES_AT_ONCE])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def write_message(descriptor: int, header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Write one message."""
    write_pieces(descriptor, message_pieces(header, parts))


class MessageReader:
    """Reads messages from a pipe."""

    def __init__(self, descriptor: int) -> None:
        """Read from an open file descriptor."""
        self._descriptor = descriptor
        self._buffer = bytearray(READ_BYTES)  # one for all messages: a new one each would be fetched from the system
        self._start = self._end = 0

    def read(self, silence_s: float | None = None) -> tuple[dict[str, Any], list[bytes]]:
        """The next message.

        Args:
            silence_s: Longest time without a single byte; None: wait for ever.

        Raises:
            ChildTimeout: the time has passed.
            PipeClosed: the pipe has ended.
        """
        size = int.from_bytes(self._take(4, silence_s), "big")
        if size > MAX_HEADER_BYTES:
            raise PipeClosed(f"a header of {size} bytes")
        header = json.loads(self._take(size, silence_s))
        return header, [self._take(length, silence_s) for length in header.pop("parts")]

    def _take(self, count: int, silence_s: float | None) -> bytes:
        if self._start + count > len(self._buffer):
            self._buffer[: self._end - self._start] = self._buffer[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
            self._buffer.extend(bytes(max(0, count - len(self._buffer))))
        while self._end - self._start < count:
            self._wait(silence_s)
            with memoryview(self._buffer) as whole, whole[self._end :] as free:
                received = os.readv(self._descriptor, [free])
            if not received:
                raise PipeClosed("end of the pipe")
            self._end += received
        with memoryview(self._buffer) as whole:
            taken = bytes(whole[self._start : self._start + count])
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0
        return taken

    def _wait(self, silence_s: float | None) -> None:
        if silence_s is None:
            return
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN | select.POLLHUP)
        deadline = time.monotonic() + silence_s
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(min(left, 1.0) * 1000):
                return
        raise ChildTimeout(f"{silence_s:g} s without a byte")

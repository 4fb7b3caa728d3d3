"""Reads an object of S3 as a stream: taken up again where a connection was lost, and checked at its end."""

from __future__ import annotations

import base64
import contextlib
import io
import time
import zlib
from collections.abc import Callable
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.s3_errors import broken_body_errors, wrong_checksum_error

EMPTY_ANSWERS = 8
"""So many answers without a byte, one after the other, before the reading is given up."""

Get = Callable[..., dict[str, Any]]


class ObjectStream(io.RawIOBase):
    """The bytes of an object, or of a span of it, in order.

    The first get fixes the length and the version; after a body that breaks off, the rest is asked for by its range and
    only of the same version. A whole object is compared with the CRC32 that the server keeps of it, if it sends one.
    """

    def __init__(self, get: Get, name: str, span: tuple[int, int] | None = None) -> None:
        """Ask for the object.

        Args:
            get: Sends a get request with the given parameters (`Range`, `IfMatch`, `ChecksumMode`).
            name: What messages call the object.
            span: (offset, length) with a positive length; fewer bytes only where the object ends.
        """
        super().__init__()
        self._get, self._name = get, name
        self._body: Any = None
        self._position, end = (span[0], sum(span)) if span else (0, None)
        reply = get(**_range(self._position, end)) if span else get(ChecksumMode="ENABLED")
        self._body = reply["Body"]
        self._end = self._position + int(reply["ContentLength"])
        self._version = reply["ETag"]
        self._expected_crc = "" if span else reply.get("ChecksumCRC32", "")
        if "-" in self._expected_crc or reply.get("ChecksumType") == "COMPOSITE":
            self._expected_crc = ""  # of the parts' checksums, not of the content
        self._crc = 0
        self._broken = broken_body_errors()
        self._require_span(reply)

    @property
    def remaining(self) -> int:
        """Bytes that are still to be read."""
        return self._end - self._position

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes; 0 only at the end."""
        view = memoryview(buffer)[: self.remaining]
        for attempt in range(EMPTY_ANSWERS):
            if not view:
                self._check()
                return 0
            if count := self._next(view):
                if self._expected_crc:
                    self._crc = zlib.crc32(view[:count], self._crc)
                self._position += count
                return count
            time.sleep(0.1 * 2**attempt if attempt else 0)
            self._take_up()
        raise DataError(
            f"the content of {self._name} breaks off at byte {self._position} of {self._end} again and again; "
            "expected all of it; check the server and the network, then run again"
        )

    def readall(self) -> bytes:
        """All that is left."""
        content = bytearray(self.remaining)
        view = memoryview(content)
        while view:
            view = view[self.readinto(view) :]
        self.readinto(bytearray(1))
        return bytes(content)

    def close(self) -> None:
        """Give the connection up, or back when all was read."""
        if not self.closed and self._body:
            self._body.close()
        super().close()

    def _next(self, view: memoryview) -> int:
        """Bytes of the present body; 0 when it has broken off."""
        try:
            return int(self._body.readinto(view))
        except self._broken:
            return 0

    def _take_up(self) -> None:
        """Ask for the rest."""
        self._body.close()
        reply = self._get(IfMatch=self._version, **_range(self._position, self._end))
        self._body = reply["Body"]
        self._require_span(reply)

    def _require_span(self, reply: dict[str, Any]) -> None:
        start = str(reply.get("ContentRange", "bytes 0-")).removeprefix("bytes ").partition("-")[0]
        if start != str(self._position):
            raise DataError(
                f"the server sent {self._name} from byte {start}; expected the range from {self._position}; "
                "use a server that knows ranges"
            )

    def _check(self) -> None:
        """Compare with the checksum that the server sent; botocore does it at the end of an unbroken body."""
        found = base64.b64encode(self._crc.to_bytes(4, "big")).decode()
        wrong = self._expected_crc not in ("", found)
        with contextlib.suppress(*self._broken):
            try:
                self._body.read(1)
            except wrong_checksum_error():
                wrong = True
        if wrong:
            raise DataError(
                f"the content of {self._name} does not have the checksum that the server keeps of it; "
                "expected the bytes that were stored; check the server's disks and run again"
            )


def _range(start: int, end: int | None) -> dict[str, str]:
    return {"Range": f"bytes={start}-{end - 1 if end is not None else ''}"}

"""Puts a local file into S3 while it is still being written: parts go up in the background as they are settled."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.s3_client import S3Client
from mcjepa.data_prep.storage.s3_errors import UploadLost

PART_BYTES = 8 << 20
"""Of the first parts; S3 allows 10,000, at least 5 MiB each but the last."""
EQUAL_PARTS = 500
"""So many parts are equally long; then they grow, for files beyond 80 GB."""
PART_THREADS = 2
UPLOADS = 3
"""Beginnings of the same upload, when the server has lost the one before (or its answer to the end of it)."""


class S3Upload:
    """One file on its way into a bucket; nothing is visible there before it is finished.

    A file below two parts is one plain put. Every part is repeated by itself while the server is away.
    """

    def __init__(self, client: S3Client, name: str, path: Path) -> None:
        """Nothing is sent yet."""
        self._client, self._name, self._path = client, name, path
        self._threads: ThreadPoolExecutor | None = None
        self._forget()

    def __enter__(self) -> S3Upload:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what is not finished."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        if self._upload:
            try:
                self._client.call("abort_multipart_upload", self._name, UploadId=self._upload)
            except DataError:  # remains until the end of the job, or the bucket's own rule for such
                return

    def settle(self, length: int) -> None:
        """The first `length` bytes are written (flushed) and will not change: whole parts of them may go up."""
        if length >= 2 * PART_BYTES:
            self._send(length)

    def finish(self) -> None:
        """The file is complete: make it the object's content and remove it."""
        size = self._path.stat().st_size
        for left in reversed(range(UPLOADS)):
            try:
                self._put(size)
                break
            except UploadLost:
                if not left:
                    raise
                self._forget()
        self._upload = ""
        self._path.unlink()

    def _forget(self) -> None:
        self._upload, self._sent = "", 0
        self._parts: list[Future[dict[str, Any]]] = []

    def _put(self, size: int) -> None:
        if size < 2 * PART_BYTES:
            self._client.call("put_object", self._name, Body=self._path.read_bytes())
            return
        self._send(size)
        if self._sent < size:
            self._send_part(size - self._sent)
        parts = [part.result() for part in self._parts]
        self._client.call(
            "complete_multipart_upload", self._name, UploadId=self._upload, MultipartUpload={"Parts": parts}
        )

    def _send(self, length: int) -> None:
        """Begin to send whole parts up to `length`."""
        while length - self._sent >= (part := PART_BYTES * (1 + len(self._parts) // EQUAL_PARTS)):
            self._send_part(part)

    def _send_part(self, length: int) -> None:
        if not self._upload:
            self._upload = self._client.call("create_multipart_upload", self._name)["UploadId"]
        self._threads = self._threads or ThreadPoolExecutor(PART_THREADS, "s3-upload")
        number = len(self._parts) + 1
        self._parts.append(self._threads.submit(self._upload_part, self._upload, number, self._sent, length))
        self._sent += length

    def _upload_part(self, upload: str, number: int, offset: int, length: int) -> dict[str, Any]:
        """Send one part; returns what the end of the upload must tell of it."""
        with self._path.open("rb") as file:
            content = os.pread(file.fileno(), length, offset)
        reply = self._client.call("upload_part", self._name, UploadId=upload, PartNumber=number, Body=content)
        return {"PartNumber": number, **{k: v for k, v in reply.items() if k == "ETag" or k.startswith("ChecksumCRC")}}


def abort_uploads(client: S3Client, prefix: str) -> None:
    """Remove the parts of uploads below `prefix` that were never finished."""
    while uploads := client.call("list_multipart_uploads", Prefix=prefix).get("Uploads", ()):
        for upload in uploads:
            client.call("abort_multipart_upload", upload["Key"], UploadId=upload["UploadId"])

"""Checkpoints on their way to s3, in the background: the training loop goes on meanwhile.

Every rank uploads its own files; rank 0 waits for all of them and writes the manifest last, by one conditional put, so
what is incomplete never counts. Ranks tell of their uploads by empty objects beside the files:

    checkpoints/step-000001200/uploaded/00003-5f0c…     rank 3's files of this very save are there
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store
from mcjepa.pipeline.checkpoint.manifest import MANIFEST
from mcjepa.pipeline.errors import RunError

log = logging.getLogger(__name__)
MARKS = "uploaded"
POLL_S = 0.5
OTHERS_WITHIN_S = 1800.0
"""How long rank 0 waits for the other ranks' files before it gives the upload up."""


@dataclass(frozen=True)
class Upload:
    """One rank's part in a save."""

    step: int
    key: str
    """The checkpoint's folder below the run."""
    save: str
    """Random name of this save, which no earlier attempt at the same step shares."""
    folder: Path
    """The local folder."""
    files: tuple[str, ...]
    """Of this rank."""
    manifest: bytes = b""
    """On rank 0."""


class Uploader:
    """A thread that uploads one save after the other.

    Args:
        store: the run's prefix.
        rank: this process.
        world_size: all of them.
        before_commit: called on the thread before each commit (or mark): copies the run's other files.
        after_commit: called on rank 0's thread after each commit, with its step: removes old checkpoints.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        before_commit: Callable[[], None],
        after_commit: Callable[[int], None],
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._before, self._after = before_commit, after_commit
        self._queue: queue.Queue[Upload | None] = queue.Queue()
        self._waiting = 0
        self._closing = threading.Event()
        self.failed_in_a_row = 0
        self.last_failure = ""
        self._thread = threading.Thread(target=self._run, name="checkpoint-upload", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Saves that are not uploaded yet."""
        return self._waiting

    def submit(self, upload: Upload) -> None:
        """Uploads in the background."""
        self._waiting += 1
        self._queue.put(upload)

    def close(self, within_s: float | None) -> None:
        """Waits for what is under way, so many seconds or until it is done.

        Raises:
            RunError: the last save was not uploaded, or not in time.
        """
        self._queue.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._closing.set()
            raise RunError(
                f"the last checkpoint was not uploaded to {self._store.location} within {within_s or 0:.0f} s "
                "(of train.checkpoint.grace_s), so the one before counts; give it more time, or resume from that one"
            )
        if self.last_failure:
            raise RunError(self.last_failure)

    def _run(self) -> None:
        while (upload := self._queue.get()) is not None:
            started = time.monotonic()
            try:
                self._upload(upload)
                self.failed_in_a_row, self.last_failure = 0, ""
                log.info("checkpoint of step %d uploaded in %.1f s", upload.step, time.monotonic() - started)
            except Exception as error:  # whatever it is, the loop must hear of it and not die of it
                self.failed_in_a_row += 1
                self.last_failure = (
                    f"the checkpoint of step {upload.step} was not uploaded to {self._store.location} "
                    f"({type(error).__name__}: {error}); expected a store that takes it; the newest complete "
                    "checkpoint there counts, look at the store"
                )
                log.error("%s", self.last_failure)
            self._waiting -= 1

    def _upload(self, upload: Upload) -> None:
        if self._rank == 0:
            self._store.remove(f"{upload.key}/{MANIFEST}")  # an earlier attempt at this step that did not count
        for name in upload.files:
            self._store.write_file(f"{upload.key}/{name}", upload.folder / name)
        with contextlib.suppress(OSError):  # another rank's files may still be in it
            upload.folder.rmdir()
        self._before()
        if self._rank:
            self._store.write(f"{upload.key}/{MARKS}/{self._rank:05d}-{upload.save}", b"")
            return
        marks = self._wait_for_others(upload)
        if not self._store.write_if_absent(f"{upload.key}/{MANIFEST}", upload.manifest):
            raise DataError("its manifest was written by another process: two runs share one prefix")
        for mark in marks:
            self._store.remove(mark)
        self._after(upload.step)

    def _wait_for_others(self, upload: Upload) -> list[str]:
        deadline = time.monotonic() + OTHERS_WITHIN_S
        while True:
            marks = [k for k in self._store.list(f"{upload.key}/{MARKS}/") if k.endswith(f"-{upload.save}")]
            if len(marks) == self._world_size - 1:
                return marks
            if time.monotonic() > deadline or self._closing.is_set():
                raise DataError(f"{self._world_size - 1 - len(marks)} ranks have not uploaded their files")
            time.sleep(POLL_S)

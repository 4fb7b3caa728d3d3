"""Saves on their way to disk or s3, in the background: the training loop goes on meanwhile.

Every rank writes its own files; rank 0 waits for all of them and writes the manifest last, so what is incomplete never
counts. Ranks tell of their part by a small object beside the files:

    checkpoints/step-000001200/parts/00003-5f0c…     rank 3's file of this very save: sha256, bytes; or the problem

A rank whose disk is full may be unable to tell; then the loops do, at the next save (`give_up`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store
from mcjepa.pipeline.checkpoint.manifest import MANIFEST, Checkpoint, step_name
from mcjepa.pipeline.checkpoint.part import Part
from mcjepa.pipeline.checkpoint.rotation import remove_folder, remove_step
from mcjepa.pipeline.errors import RunError

log = logging.getLogger(__name__)
MARKS = "parts"
POLL_S = 0.5
OTHERS_WITHIN_S = 1800.0
"""How long rank 0 waits for the other ranks' files before it gives the save up."""


class BackgroundSaver:
    """A thread that completes one save after the other, and removes old checkpoints behind them.

    Args:
        store: the run's folder or prefix.
        remote: whether files lie in a scratch folder and are moved to the store.
        rank: this process.
        world_size: all of them.
        before_commit: called on the thread before each commit (or mark): copies the run's other files.
        on_commit: called on rank 0's thread with a checkpoint whose files are there, before its manifest.
        after_commit: called on rank 0's thread after each commit, with its step: removes old checkpoints.
    """

    def __init__(
        self,
        store: Store,
        remote: bool,
        rank: int,
        world_size: int,
        *,
        before_commit: Callable[[], None],
        on_commit: Callable[[Checkpoint], None],
        after_commit: Callable[[int], None],
    ) -> None:
        self._store, self._remote, self._rank, self._world_size = store, remote, rank, world_size
        self._before, self._on, self._after = before_commit, on_commit, after_commit
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._closing, self._given_up = threading.Event(), set[str]()
        self.waiting = 0
        """Saves that are not complete yet."""
        self.committed: deque[Checkpoint] = deque()
        """On rank 0: what has become complete and was not taken from here yet."""
        self.last_step = 0
        """On rank 0: of the newest save that has become complete."""
        self.failed_in_a_row, self.last_failure, self.failed_save = 0, "", ""
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, part: Part) -> None:
        """Completes a save in the background; a part that is not written yet is written first."""
        self.waiting += 1
        self._queue.put(partial(self._complete, part))

    def remove_old(self, step: int) -> None:
        """Does in the background what follows the commit of a save that needed none of it."""
        self._queue.put(partial(self._remove_old, step))

    def give_up(self, saves: Collection[str]) -> None:
        """Waits no longer for the parts of saves that have failed on another rank."""
        self._given_up |= set(saves)

    def wait(self) -> None:
        """Until nothing is under way."""
        self._queue.join()

    def forget_failures(self) -> None:
        """A later save has made up for them."""
        self.failed_in_a_row, self.last_failure = 0, ""

    def close(self, time_left_s: Callable[[], float | None]) -> None:
        """Waits for what is under way until it is done or the time is up.

        Args:
            time_left_s: asked again and again, as a stop request may come meanwhile; None: as long as it takes.

        Raises:
            RunError: the last save was not completed, or not in time.
        """
        self._queue.put(None)
        started = time.monotonic()
        while self._thread.is_alive() and (left_s := time_left_s()) != 0:
            self._thread.join(POLL_S if left_s is None else min(left_s, POLL_S))
        if self._thread.is_alive() and self.waiting:
            self._closing.set()
            raise RunError(
                f"the last checkpoint was not {self._done} {self._store.location} in time (waited "
                f"{time.monotonic() - started:.0f} s of train.checkpoint.grace_s), so the one before counts; give it "
                "more time, or resume from that one"
            )
        if self.last_failure:
            raise RunError(self.last_failure)

    @property
    def _done(self) -> str:
        return "uploaded to" if self._remote else "saved in"

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            self._queue.task_done()

    def _complete(self, part: Part) -> None:
        started = time.monotonic()
        try:
            self._save(part)
            self.forget_failures()
            seconds = time.monotonic() - started
            log.info("checkpoint of step %d %s in %.1f s", part.step, self._done.split()[0], seconds)
        except Exception as error:  # whatever it is, the loop must hear of it and not die of it
            self.failed_in_a_row, self.failed_save = self.failed_in_a_row + 1, part.save
            self.last_failure = (
                f"the checkpoint of step {part.step} was not {self._done} {self._store.location} "
                f"({type(error).__name__}: {error}); expected a store that takes it; the newest complete "
                "checkpoint there counts, look at the store"
            )
            log.error("%s", self.last_failure)
        self.waiting -= 1

    def _save(self, part: Part) -> None:
        if self._rank == 0:
            self._store.remove(f"{part.key}/{MANIFEST}")  # an earlier attempt at this step that did not count
        problem: Exception | None = None
        try:
            self._write(part)
        except Exception as error:
            part.remove()
            problem = error
        if self._rank:
            told = {"name": part.name, **part.entry, "problem": str(problem or "")}
            with contextlib.suppress(OSError, DataError) if problem else contextlib.nullcontext():
                self._store.write(f"{part.key}/{MARKS}/{self._rank:05d}-{part.save}", json.dumps(told).encode())
        else:
            try:
                files = self._parts_of_others(part)
                if not problem:
                    self._commit(part, {**files, part.name: part.entry})
            except Exception as error:
                problem = problem or error
            if problem and not self._remote and not self._store.exists(f"{part.key}/{MANIFEST}"):
                remove_step(self._store, step_name(part.step))  # else it is another process's, which has taken over
        if problem:
            raise problem

    def _write(self, part: Part) -> None:
        """This rank's files, in the store."""
        if not part.entry:
            part.write()
        if self._remote:
            self._store.write_file(f"{part.key}/{part.name}", part.path)
            with contextlib.suppress(OSError):  # another rank's files may still be in it
                part.path.parent.rmdir()
        self._before()

    def _commit(self, part: Part, files: dict[str, Any]) -> None:
        checkpoint = Checkpoint(self._store.location, part.step, {**part.manifest, "files": files})
        self._on(checkpoint)
        if not self._store.write_if_absent(f"{part.key}/{MANIFEST}", checkpoint.content):
            raise DataError("its manifest was written by another process: two runs share one prefix")
        self.committed.append(checkpoint)
        self.last_step = part.step
        self._remove_old(part.step, f"{part.key}/{MARKS}")

    def _remove_old(self, step: int, *folders: str) -> None:
        """What follows a commit. Whatever goes wrong in it, the save counts and the thread goes on."""
        try:
            for folder in folders:
                remove_folder(self._store, folder)
            self._after(step)
        except Exception as error:
            log.warning("old checkpoints were not removed (%s); the next save tries it again", error)

    def _parts_of_others(self, part: Part) -> dict[str, Any]:
        """Every other rank's file with its sha256 and bytes, once all have told of it."""
        deadline, others = time.monotonic() + OTHERS_WITHIN_S, self._world_size - 1
        while True:
            keys = self._store.list(f"{part.key}/{MARKS}/") if others else ()
            marks = [key for key in keys if key.endswith(f"-{part.save}")]
            if len(marks) == others:
                break
            if part.save in self._given_up or time.monotonic() > deadline or self._closing.is_set():
                raise DataError(f"{others - len(marks)} ranks have not {self._done.split()[0]} their files")
            time.sleep(POLL_S)
        told = [json.loads(self._store.read(mark)) for mark in marks]
        if problem := next((f"{each['name']}: {each['problem']}" for each in told if each["problem"]), ""):
            raise DataError(problem)
        return {each["name"]: {"sha256": each["sha256"], "bytes": each["bytes"]} for each in told}

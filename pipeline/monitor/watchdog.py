"""The watchdog: notices a rank that is stuck, says which one and what it waits for, and ends the run after a while.

Every rank has one: a thread that looks at the step's clock. When a part takes longer than `watchdog_s`, it writes

    RUN/logs/hung/rank-00003.json    step, part, what it waits for, seconds, host, process
    RUN/logs/hung/rank-00003.txt     the stacks of all its threads

and, a moment later, reads what the other stuck ranks wrote. Ranks that wait for a collective wait for somebody: the
one to blame is a rank that waits for something else, or is at an earlier step, or wrote nothing because it is gone.
What a rank waits for is seen on the stack of its training thread: a function of torch.distributed is a collective.
After `watchdog_exit_s` the process ends with exit code 3, so that a launcher can start the run again. Should the
training thread hold Python's lock all that time, faulthandler's own thread prints the stacks and ends the process
(exit code 1).
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.exits import REJECTED
from mcjepa.pipeline.run.folder import HUNG
from mcjepa.pipeline.settings.monitor import GuardConfig
from mcjepa.pipeline.step.clock import CLOSING, Activity, StepClock

log = logging.getLogger(__name__)
DISTRIBUTED, ENGINE = "torch/distributed/", "/deepspeed/"
SETTLE_SHARE = 0.25
"""Share of `watchdog_s` (10 s at most) in which the other ranks may write what they wait for."""


class Watchdog:
    """Watches the thread that makes it; a context manager.

    Args:
        config: the recipe's guards.
        clock: where the training thread is.
        run: the run folder, the same for all ranks where they share a disk.
        rank: this rank.
        world_size: ranks of the run.
    """

    def __init__(self, config: GuardConfig, clock: StepClock, run: Path, rank: int, world_size: int) -> None:
        self._config, self._clock, self._rank, self._world_size = config, clock, rank, world_size
        self._folder = run / HUNG
        self._tick_s = min(config.watchdog_s / 8, 5.0)
        self._watched = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._config.watchdog_s:
            for suffix in ("json", "txt"):  # of an earlier start
                self._path(suffix).unlink(missing_ok=True)
            if self._rank == 0:
                self._forget_larger_world()
            self._arm()
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._config.watchdog_s and self._config.watchdog_exit_s:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        limit_s, exit_s = self._config.watchdog_s, self._config.watchdog_exit_s
        reported: Activity | None = None
        while not self._end.wait(self._tick_s):
            self._arm()
            now = self._clock.now
            spent_s = 0.0 if now.part == CLOSING else time.monotonic() - now.since_s
            if spent_s > limit_s and reported is not now:
                reported = now
                self._report(now, spent_s)
            reported = self._forget_if_over(reported)
            if exit_s and reported is self._clock.now and spent_s > exit_s:
                self._leave(now, spent_s)
        self._forget_if_over(reported)

    def _arm(self) -> None:
        """Sets faulthandler's alarm anew, at every tick: it rings only when this thread gets no turn."""
        if self._config.watchdog_exit_s:
            faulthandler.dump_traceback_later(self._config.watchdog_exit_s + 4 * self._tick_s, exit=True)

    def _forget_if_over(self, reported: Activity | None) -> Activity | None:
        if reported is None or reported is self._clock.now:
            return reported
        log.warning("rank %d goes on: %s of step %d is over", self._rank, reported.part, reported.step)
        self._path("json").unlink(missing_ok=True)
        return None

    def _report(self, now: Activity, spent_s: float) -> None:
        waits_for = waiting_for(sys._current_frames().get(self._watched), now.part)
        record = {
            "rank": self._rank, "step": now.step, "part": now.part, "waits_for": waits_for,
            "seconds": round(spent_s, 1), "host": socket.gethostname(), "pid": os.getpid(),
        }  # fmt: skip
        try:
            atomic_write(self._path("json"), json.dumps(record).encode())
            with self._path("txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except (DataError, OSError) as error:  # the watch goes on
            log.error("the report of rank %d cannot be written: %s", self._rank, error)
        log.error(
            "rank %d of %d has been in %s of step %d for %.0f s and waits for %s; stacks of all its threads: %s",
            self._rank, self._world_size, now.part, now.step, spent_s, waits_for, self._path("txt"),
        )  # fmt: skip
        if self._world_size > 1 and not self._end.wait(min(SETTLE_SHARE * self._config.watchdog_s, 10.0)):
            log.error("%s", who_is_waited_for(self._others(), self._world_size))

    def _forget_larger_world(self) -> None:
        for path in self._folder.glob("rank-*.*"):
            if int(path.stem.removeprefix("rank-")) >= self._world_size:
                path.unlink(missing_ok=True)

    def _others(self) -> list[dict[str, Any]]:
        records = []
        for path in sorted(self._folder.glob("rank-*.json")):
            try:
                records.append(json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:  # that rank went on meanwhile
                continue
        return [record for record in records if record["rank"] < self._world_size]  # else of an earlier, larger world

    def _leave(self, now: Activity, spent_s: float) -> None:
        log.critical(
            "rank %d ends: %s of step %d has taken %.0f s, more than train.guards.watchdog_exit_s=%g; start the run "
            "again: it continues from the last checkpoint",
            self._rank, now.part, now.step, spent_s, self._config.watchdog_exit_s,
        )  # fmt: skip
        logging.shutdown()
        os._exit(REJECTED)

    def _path(self, suffix: str) -> Path:
        return self._folder / f"rank-{self._rank:05d}.{suffix}"


def waiting_for(frame: FrameType | None, part: str) -> str:
    """What a thread waits for, by its stack: `a collective (all_reduce)`, else the part of the step it is in.

    The part `agreement` is one too, and so is `update` within the engine: on accelerators collectives are queued, and
    the host waits there for what they give.
    """
    name = "agreement" if part == "agreement" else ""
    while frame is not None:
        path = frame.f_code.co_filename.replace(os.sep, "/")
        if DISTRIBUTED in path and frame.f_code.co_name != "wrapper":
            name = frame.f_code.co_name
        elif part == "update" and ENGINE in path:
            name = name or part
        frame = frame.f_back
    return f"a collective ({name})" if name else part


def who_is_waited_for(records: list[dict[str, Any]], world_size: int) -> str:
    """One line on which of the stuck ranks the others wait for."""
    silent = sorted(set(range(world_size)) - {r["rank"] for r in records})
    first = min((r["step"] for r in records), default=0)
    blamed = [r for r in records if not r["waits_for"].startswith("a collective")]
    blamed = blamed or [r for r in records if r["step"] == first and any(r["step"] > first for r in records)]
    lines = [
        f"rank {r['rank']} (waits for {r['waits_for']} in step {r['step']}, process {r['pid']} on {r['host']})"
        for r in blamed[:8]
    ]
    if silent:
        names = ", ".join(map(str, silent[:8])) + (" ..." if len(silent) > 8 else "")
        lines.append(f"rank(s) {names}: not stuck by their own account, or gone, or without a share of this disk")
    waiting = len(records) - len(blamed)
    return f"{waiting} rank(s) wait in a collective; they wait for " + ("; ".join(lines) or "one another")

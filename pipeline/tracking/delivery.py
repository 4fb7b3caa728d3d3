"""When a spool is delivered: in the background of its run, and once by `mcjepa tracking sync`."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import RUN_RECORD, SPOOL
from mcjepa.pipeline.tracking import mlflow as mlflow_run
from mcjepa.pipeline.tracking.courier import Courier
from mcjepa.pipeline.tracking.spool import Spool, SpoolBusy

log = logging.getLogger(__name__)
BUSY_WAIT_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class CourierThread:
    """Delivers in the background, and tries again while the tracking location is away.

    Args:
        courier: what delivers.
        spool: what is delivered.
    """

    def __init__(self, courier: Courier, spool: Spool) -> None:
        self._courier, self._spool = courier, spool
        self._news, self._end = threading.Event(), threading.Event()
        self.problem: Exception | None = None
        """What the last attempt has failed with; None after one that has not."""
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Says that there is a new record."""
        self._news.set()

    def close(self, within_s: float) -> int:
        """Ends the thread when all is delivered, or after `within_s`; the number of records that are left."""
        deadline = time.monotonic() + within_s
        self._news.set()
        while (left := len(self._spool.pending())) and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.05)
        self._end.set()
        self._news.set()
        self._thread.join(timeout=2.0)
        return left

    def _work(self) -> None:
        pause_s, away = FIRST_PAUSE_S, False
        while not self._end.is_set():
            self._news.wait()
            self._news.clear()
            if self._end.is_set():
                return
            try:
                waiting = self._spool.settle()
                self._courier.deliver()
                self.problem = None
                if waiting:  # the disk is full: look again, but not at once
                    self._end.wait(FIRST_PAUSE_S)
                    self._news.set()
            except Exception as error:  # whatever a client may raise: the records stay and are tried again
                self.problem = error
                if not away and not isinstance(error, SpoolBusy):
                    place = "the spool cannot be written" if isinstance(error, DataError) else "MLflow does not answer"
                    log.warning(
                        "%s, records wait in %s: %s", place, self._spool.folder, mlflow_run.describe_error(error)
                    )
                    away = True
                self._end.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                self._news.set()
                continue
            if away:
                log.info("all records are delivered to MLflow again")
            pause_s, away = FIRST_PAUSE_S, False


@dataclass(frozen=True)
class Delivery:
    """What became of a spool."""

    folder: Path
    uri: str
    run_id: str
    delivered: int
    left: int
    reason: str
    """Why some are left."""


def deliver_spool(run: Path) -> Delivery:
    """Delivers what a run has left in its spool; waits a while where another process delivers it.

    Raises:
        UsageError: the run has no spool.
    """
    if not (run / SPOOL / RUN_RECORD).is_file():
        raise UsageError(
            f"{run} has no {SPOOL}/{RUN_RECORD}, expected a run folder that was trained; name RUN or its recipe"
        )
    spool = Spool(run)
    courier, done, reason = Courier(spool, run), 0, ""
    waiting = len(spool.pending())
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            done = courier.deliver()
        except SpoolBusy as error:
            if time.monotonic() < deadline and spool.pending():
                time.sleep(0.5)  # the run delivers, or another sync
                continue
            reason = str(error)
        except Exception as error:  # whatever a client raises for a server that is away
            reason = mlflow_run.describe_error(error)
        break
    left = len(spool.pending())
    uri = str(spool.address()["uri"])
    return Delivery(spool.folder, uri, courier.run_id, max(done, waiting - left), left, reason)

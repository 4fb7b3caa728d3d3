"""The spool: records of a run on their way to MLflow, as plain files that survive the server and the process.

    RUN/spool/run.json              where they go: uri, experiment, run name, key of the run, its id when it is known
    RUN/spool/records-000000001.jsonl   records from number 1 on, one per line: number, kind, time_ms and what it holds
    RUN/spool/state.json            delivered: the last delivered number; in_doubt: the last number of a batch that was
                                    sent without an answer, 0 for none; metrics_step: the last step that has metrics
    RUN/spool/facts.jsonl           delivered records of the present MLflow run but its metrics, for one in its place
    RUN/spool/rejected.jsonl        records that MLflow refuses for good, with its reason
    RUN/spool/writers/000001.json   the lease of the one process that delivers, as of datasets and runs: no flock

Only the run's rank 0 appends. A line that was cut off by a crash is dropped when the spool is opened again: the step
it was for is trained again. A file is removed when all of it is delivered. On a full disk records wait in memory.

A record of the kind `run` begins another MLflow run: what follows it belongs to that one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mcjepa.data_prep.storage import FolderStore, atomic_write
from mcjepa.data_prep.storage.lease import Occupied, sole_writer
from mcjepa.pipeline.run.folder import RUN_RECORD, SPOOL
from mcjepa.pipeline.run.lines import PatientLines

RECORDS_A_FILE = 1000
FACTS = "facts.jsonl"


class SpoolBusy(Exception):
    """Another process delivers this spool."""


class Spool:
    """The spool of a run folder; made if absent. Appending and delivering may be in different threads.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / SPOOL
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file: PatientLines | None = None
        self._in_file = 0
        pending = self._read_files()
        state = self.state()
        self.last = max([state["delivered"], *(record["number"] for record in pending)])
        self.metrics_step: int = state["metrics_step"]
        """The last step of the present MLflow run that has metrics here or there."""
        self.begins_run = False
        """Whether a record waits that begins another MLflow run."""
        for record in pending:
            if record["number"] > state["delivered"]:
                self._count(record)

    def append(self, kind: str, **content: Any) -> int:
        """Writes a record to disk before it returns, or keeps it in memory while the disk is full; its number."""
        with self._lock:
            self.last += 1
            record = {"number": self.last, "kind": kind, "time_ms": round(time.time() * 1000), **content}
            if self._file is None or (self._in_file >= RECORDS_A_FILE and not self._file.waiting):
                self._begin_file()
            assert self._file is not None
            self._file.append(json.dumps(record))
            self._in_file += 1
            self._count(record)
            return self.last

    def _count(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "run":
            self.metrics_step, self.begins_run = -1, True
        elif record["kind"] == "metrics":
            self.metrics_step = max(self.metrics_step, int(record["step"]))

    def _begin_file(self) -> None:
        path = self.folder / f"records-{self.last:09d}.jsonl"
        path.unlink(missing_ok=True)  # of a start that died while it wrote its first record
        self._file, self._in_file = PatientLines(path, sync=True), 0

    def settle(self) -> int:
        """Tries to write records that wait in memory; how many still do."""
        if self._file is None or self._file.settle():
            return 0
        return self._file.waiting

    def pending(self) -> list[dict[str, Any]]:
        """Records that are not delivered, in order."""
        delivered = self.state()["delivered"]
        return [record for record in self._read_files() if record["number"] > delivered]

    def _read_files(self) -> list[dict[str, Any]]:
        records = []
        for path in sorted(self.folder.glob("records-*.jsonl")):
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:  # delivered, and removed by the courier meanwhile
                continue
            for line in lines:
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:  # cut off, or being written: the next look sees it whole
                    break
        return records

    def state(self) -> dict[str, int]:
        """What is delivered."""
        path = self.folder / "state.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {"delivered": 0, "in_doubt": 0, "metrics_step": -1, **found}

    def note(self, *, delivered: int, in_doubt: int = 0, metrics_step: int = -1, new_run: bool = False) -> None:
        """Writes down how far delivery is, and removes files that are delivered.

        Args:
            delivered: the last delivered number.
            in_doubt: the last number of a batch on its way; 0: none is.
            metrics_step: the last step delivered.
            new_run: whether another MLflow run has begun, which has no steps yet.
        """
        step = -1 if new_run else max(metrics_step, self.state()["metrics_step"])
        content = {"delivered": delivered, "in_doubt": in_doubt, "metrics_step": step}
        atomic_write(self.folder / "state.json", json.dumps(content).encode())
        files = sorted(self.folder.glob("records-*.jsonl"))
        for path, following in itertools.pairwise(files):
            if int(following.stem.split("-")[1]) - 1 <= delivered:
                path.unlink()

    def keep(self, record: Mapping[str, Any]) -> None:
        """Keeps a delivered record for a run that may have to take the present one's place; another run forgets all."""
        with (self.folder / FACTS).open("w" if record["kind"] == "run" else "a", encoding="utf-8") as file:
            if record["kind"] != "run":
                file.write(f"\n{json.dumps(record)}\n")  # a line of its own, whatever a crash left before it

    def kept(self) -> list[dict[str, Any]]:
        """What `keep` was given of the present run, each fact once, at its last place; of states the last."""
        path = self.folder / FACTS
        found: dict[str, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # empty, or cut off: that one was delivered again, and is kept behind
                continue
            content = {name: value for name, value in record.items() if name not in ("number", "time_ms")}
            fact = "status" if record["kind"] == "status" else json.dumps(content, sort_keys=True)
            found.pop(fact, None)
            found[fact] = record
        return list(found.values())

    def reject(self, record: Mapping[str, Any], reason: str) -> None:
        """Keeps a record that is refused for good beside the others."""
        with (self.folder / "rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "reason": reason}) + "\n")

    def address(self) -> dict[str, Any]:
        """What `set_address` wrote; empty where nothing was."""
        path = self.folder / RUN_RECORD
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content

    def set_address(self, content: Mapping[str, Any]) -> None:
        """Where the records go."""
        atomic_write(self.folder / RUN_RECORD, json.dumps(content, indent=1, sort_keys=True).encode())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The right to deliver, for this process alone.

        Raises:
            SpoolBusy: another process has it.
        """
        try:
            with sole_writer(FolderStore(str(self.folder), self.folder)):
                yield
        except Occupied as error:
            raise SpoolBusy(f"{self.folder} is being delivered by another process ({error})") from error

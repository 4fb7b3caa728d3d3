"""How often a job was started, what each start brought, and whether there is a next one.

    FOLDER/states/JOB.json      {"starts": [{"at", "progress", "hosts", "end": {"at", "code", "verdict"}}], "idle": 0}

`progress` is an integer that grows with the newest checkpoint; `idle` counts starts in a row that found no newer one
than the start before them did.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mcjepa.cluster.job import write_json
from mcjepa.cluster.site import Stage

Verdict = Literal["done", "requeue", "failed"]
USAGE, REJECTED, PARTIAL = 2, 3, 4
"""Exit codes of `mcjepa`: settings that cannot be run, data rejected or run failed, done but something quarantined."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    rank: int
    code: int
    stopped: bool = False
    """It was asked to stop, by a signal of the scheduler, and did."""
    reason: str = ""
    """What the job's own output is to say of it, in one line; empty: what the task wrote itself is enough."""


def judge(stage: Stage, code: int, outcomes: Iterable[Outcome]) -> Verdict:
    """What becomes of a job whose tasks have ended.

    Args:
        stage: what it ran.
        code: exit code of `srun`.
        outcomes: what tasks told that did not plainly succeed; a killed one tells nothing.

    >>> judge("train", 0, [])
    'done'
    >>> judge("train", 0, [Outcome(0, 130, stopped=True)]), judge("train", 137, []), judge("train", 1, [Outcome(1, 2)])
    ('requeue', 'requeue', 'failed')
    >>> judge("prep", 0, [Outcome(0, 4)]), judge("prep", 3, [Outcome(0, 3)]), judge("train", 3, [Outcome(0, 3)])
    ('done', 'failed', 'requeue')
    >>> judge("eval", 4, [Outcome(0, 4)])
    'done'
    """
    told = list(outcomes)
    if any(o.code == USAGE for o in told):
        return "failed"
    if any(o.code == REJECTED for o in told) and stage != "train":
        return "failed"  # in training it is also what a watchdog and a rank without its peers end with
    if any(o.stopped for o in told):
        return "requeue"
    if stage != "train" and told and all(o.code == PARTIAL for o in told):
        return "done"  # something is quarantined or was not scored: another start would find the same
    return "done" if code == 0 else "requeue"


class JobState:
    """The file of one job."""

    def __init__(self, folder: Path, job: str) -> None:
        self.folder, self.job = folder / "states", job
        self._path = self.folder / f"{job}.json"
        self.content: dict[str, Any] = {"starts": [], "idle": 0}
        if self._path.is_file():
            self.content = json.loads(self._path.read_text(encoding="utf-8"))

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Every start, the first one first."""
        starts: list[dict[str, Any]] = self.content["starts"]
        return starts

    def begin(self, progress: int | None, hosts: str, now: float, most_idle: int) -> bool:
        """Notes a start.

        Args:
            progress: how far the work is; None where it cannot be told.
            hosts: where it runs.
            now: seconds since 1970.
            most_idle: starts in a row that may bring nothing.

        Returns:
            Whether it may go on: False when too many starts in a row have brought nothing.
        """
        if self.starts:
            newer = progress is not None and progress > self.starts[-1]["progress"]
            self.content["idle"] = 0 if newer else self.content["idle"] + 1
        allowed = self.content["idle"] <= most_idle
        if allowed:
            self.starts.append({"at": now, "progress": -1 if progress is None else progress, "hosts": hosts})
        self._write()
        return allowed

    def end(self, code: int, verdict: Verdict, now: float) -> None:
        """Notes how the last start ended."""
        if self.starts:
            self.starts[-1]["end"] = {"at": now, "code": code, "verdict": verdict}
        self._write()

    def tell(self, outcome: Outcome) -> None:
        """A task notes its end, in a file of its own."""
        told = {"code": outcome.code, "stopped": outcome.stopped, "reason": outcome.reason}
        write_json(self._outcome_path(outcome.rank), told)

    def outcomes(self) -> list[Outcome]:
        """What the tasks of the last start have told."""
        found = []
        for path in sorted(self.folder.glob(f"{self.job}.start-{len(self.starts)}.rank-*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            rank = int(path.stem.rsplit("-", 1)[1])
            found.append(Outcome(rank, content["code"], content["stopped"], content.get("reason", "")))
        return found

    def forget(self) -> None:
        """Begins anew: a person has given the command again."""
        self.content = {"starts": [], "idle": 0}

    def _outcome_path(self, rank: int) -> Path:
        return self.folder / f"{self.job}.start-{len(self.starts)}.rank-{rank}.json"

    def _write(self) -> None:
        write_json(self._path, self.content)

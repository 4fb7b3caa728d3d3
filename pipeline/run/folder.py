"""A run's files: their names, and where they are: its own folder, or a local scratch folder whose files go to s3.

    train.run=DIR              everything is written there
    train.run=s3://B/PREFIX    written to a scratch folder of this machine and copied to the prefix in the background

Copied are all files but checkpoints (`pipeline.checkpoint.background` does these), leases and hidden ones: recipe.yaml,
run.json, logs, weights, records of bad steps, the tracker's spool. A file that disappears here disappears there.

Each start of a run writes a random name to `.start` of the prefix and of its scratch folders. By it a scratch folder is
known that some start has left behind on this machine while others went on elsewhere: what is in it does not count.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.storage import Store, atomic_write, explained_disk_errors, local_path, open_store
from mcjepa.data_prep.storage.lease import LEASES

log = logging.getLogger(__name__)
CHECKPOINTS, WEIGHTS = "checkpoints", "weights"
"""Folders, one per saved step in each: `step-000001200`."""
MANIFEST = "manifest.json"
"""Of a checkpoint, written last."""
RECIPE = "recipe.yaml"
"""The whole resolved recipe."""
RUN_RECORD = "run.json"
"""Ids of the run and of its datasets, commit, seed."""
TRAIN_REPORT = "train_report.json"
"""The training's last word: `finished`, `steps`."""
METRICS = "logs/metrics.jsonl"
THROWN_AWAY = "logs/metrics-thrown-away.jsonl"
"""Records of steps that were trained and then done otherwise after a resume."""
CHECKPOINT_LOG = "logs/checkpoints.jsonl"
HUNG = "logs/hung"
"""Reports of ranks that are stuck."""
JOBS = "logs/jobs"
"""Files of the jobs that were launched for the run."""
BAD_STEPS, PICTURES, PROFILE, SPOOL = "bad_steps", "pictures", "profile", "spool"
RESOLVED_RECIPE = "resolved-recipe.yaml"
"""In the folder of a recipe's results: the whole resolved recipe of the last quickstart or evaluation there."""
PREP_REPORT = "prep_report.json"
"""Beside the datasets that a prep stage has built."""
PART_OF = "part_of"
"""In the lineage of weights that are the encoder alone: the sha256 of the weights that the run wrote."""
START = ".start"
"""The newest start of a run on s3: its random name; in a scratch folder also the rank that looks after that folder."""


class RunFolder:
    """A run's location and the local folder that its files are written to.

    Args:
        run: `train.run`.
        scratch: local folder for a run on s3; empty takes one among the system's temporary files.
    """

    def __init__(self, run: str, scratch: str = "") -> None:
        self.store: Store = open_store(run)
        self.remote = run.startswith("s3://")
        if not self.remote:
            self.path = local_path(run)
        else:
            self.path = Path(scratch).expanduser() if scratch else self.store.scratch()
        with explained_disk_errors(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
        self._copied: dict[str, tuple[int, int]] = {}
        self._left_here: dict[str, tuple[int, int]] = {}
        self._start = ""

    @property
    def name(self) -> str:
        """Last part of the location."""
        return self.store.location.rsplit("/", 1)[-1]

    def fetch(self) -> str:
        """Brings a run's small files from s3 before it is continued; returns the start that wrote there last.

        What that start left in this very folder is newer than its copies and stays; of others' it removes everything.
        """
        if not self.remote:
            return ""
        newest, (here, _) = self._newest_start(), self._start_here()
        if here != newest:
            self._put_away(here)
        there = {entry.key: entry.bytes for entry in self.store.files() if self._is_small(entry.key)}
        for key, size in there.items():
            path = self.path / key
            if here != newest or not path.is_file() or (size and not path.stat().st_size):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.store.download(key, path)
                self._left_here.pop(key, None)
            self._copied[key] = (0, 0)  # known to be there; its content is compared at the next copy
        return newest

    def begin(self, start: str) -> None:
        """On rank 0, after `fetch`: what is copied from now on is of this start.

        Args:
            start: its random name.
        """
        self.store.write(START, start.encode())
        self._note_start(start, 0)

    def join(self, before: str, start: str, rank: int) -> None:
        """On another node: leaves nothing in its scratch folder but what this node wrote itself in the last start.

        Args:
            before: the last start, which rank 0 goes on from.
            start: the one that rank 0 has begun.
            rank: the one that looks after this scratch folder.
        """
        here, of_rank = self._start_here()
        if here == start:  # rank 0 has the same folder, and copies what is in it
            self._left_here, self._start = self._marks(), start
            return
        if here != before or of_rank == "0" or not here:
            self._put_away(here)
        self._note_start(start, rank)

    def _put_away(self, start: str) -> None:
        """Removes what another start has left here; files of nobody knows whom stay, and are not copied."""
        if not start:
            self._left_here = self._marks()
            return
        for path in self.path.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                shutil.rmtree(path)
            elif not path.name.startswith("."):
                path.unlink()

    def _newest_start(self) -> str:
        try:
            return self.store.read(START).decode()
        except AbsentKey:
            return ""

    def _start_here(self) -> tuple[str, str]:
        path = self.path / START
        words = path.read_text(encoding="utf-8").split() if path.is_file() else []
        return (words[0], words[1]) if len(words) == 2 else ("", "")

    def _note_start(self, start: str, rank: int) -> None:
        atomic_write(self.path / START, f"{start} {rank}".encode())
        self._start = start

    def _marks(self) -> dict[str, tuple[int, int]]:
        return {key: _mark(path) for key, path in self._files()}

    def copy(self) -> None:
        """Copies what has changed since the last call to s3.

        Raises:
            DataError: the store cannot be written, or a later start of the run writes to it.
        """
        if not self.remote:
            return
        if self._start and self._newest_start() != self._start:
            raise DataError(
                f"{self.store.location} belongs to a later start of the run, expected one writer; nothing is copied "
                f"there from {self.path} any more; leave the run to that one"
            )
        present = set()
        for key, path in self._files():
            try:
                mark = _mark(path)
                if self._left_here.get(key) == mark:
                    continue
                present.add(key)
                if self._copied.get(key) != mark:
                    self._copy_file(key, path)
                    self._copied[key] = mark
            except FileNotFoundError:  # it was removed meanwhile
                continue
        for key in [key for key in self._copied if key not in present]:
            if not key.startswith(f"{WEIGHTS}/"):  # removed with their checkpoint
                self.store.remove(key)
            del self._copied[key]

    def forget_weights(self, keep: int) -> None:
        """Removes all but the newest weights folders from the scratch folder, which s3 has too."""
        for folder in sorted((self.path / WEIGHTS).glob("step-*"))[:-keep]:
            shutil.rmtree(folder, ignore_errors=True)

    def forget_weights_after(self, step: int) -> None:
        """Removes the weights of later steps from the scratch folder: the run is continued from `step` without them."""
        for folder in (self.path / WEIGHTS).glob("step-*") if self.remote else ():
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder, ignore_errors=True)

    def _copy_file(self, key: str, path: Path) -> None:
        if path.stat().st_size < 1 << 20:
            self.store.write(key, path.read_bytes())
            return
        link = path.with_name(f".{path.name}.upload")
        link.unlink(missing_ok=True)
        link.hardlink_to(path)  # a store takes over the file that it is given
        self.store.write_file(key, link)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.path.rglob("*")):
            key = path.relative_to(self.path).as_posix()
            hidden = any(part.startswith(".") or part == LEASES for part in key.split("/"))
            if path.is_file() and not hidden and not key.startswith(f"{CHECKPOINTS}/"):
                yield key, path

    @staticmethod
    def _is_small(key: str) -> bool:
        return not key.startswith((f"{CHECKPOINTS}/", f"{WEIGHTS}/")) and LEASES not in key.split("/")


def _mark(path: Path) -> tuple[int, int]:
    """Length and time of a file, by which its changes are seen."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def read_run_record(run: Path) -> dict[str, Any]:
    """What run.json of a run folder holds; nothing where there is none."""
    path = run / RUN_RECORD
    if not path.is_file():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def newest_checkpoint_step(run: str) -> int:
    """Step of a run's newest checkpoint that has a manifest, -1 without one; imports no torch.

    Args:
        run: the run's folder or prefix.
    """
    keys = open_store(run).list(f"{CHECKPOINTS}/step-")
    complete = [key for key in keys if key.endswith(f"/{MANIFEST}")]
    return max((int(key.split("/")[1].removeprefix("step-")) for key in complete), default=-1)


def metrics_line(step: int, values: Mapping[str, float]) -> str:
    """{"step": …, name: value …}, a line of a run's metrics."""
    return json.dumps({"step": step, **values})


def cut_metrics(run: Path, step: int) -> int:
    """Moves the records of steps behind `step` out of a run's metrics, to the log of thrown-away ones; their number."""
    kept: list[str] = []
    thrown: list[str] = []
    for record in read_metrics(run / METRICS):
        line = metrics_line(int(record["step"]), {name: each for name, each in record.items() if name != "step"})
        (kept if record["step"] <= step else thrown).append(line)
    if thrown:
        lost = run / THROWN_AWAY
        before = lost.read_bytes() if lost.is_file() else b""
        atomic_write(lost, before + "".join(f"{line}\n" for line in thrown).encode())
        atomic_write(run / METRICS, "".join(f"{line}\n" for line in kept).encode())
    return len(thrown)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Records of a run's metrics; none where there is no such file."""
    return parse_metrics(path.read_text(encoding="utf-8")) if path.is_file() else []


def parse_metrics(text: str) -> list[dict[str, float]]:
    """Records of a run's metrics, the last one of every step, in order of the steps; a torn line is left out."""
    records: dict[int, dict[str, float]] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[int(record["step"])] = record
    return [records[step] for step in sorted(records)]

"""What is launched: a stage's command lines with all that running them on a site takes, and its record on disk.

FOLDER/launch.json             the record: stage, site, command lines, ids of jobs
FOLDER/site.json, recipe.yaml  what it was launched with (the recipe is written by who launches)
FOLDER/states/JOB.json         starts of a job and how they ended (`cluster.restarts`)
FOLDER/JOB_RANK_log.out        output of a rank
FOLDER/JOB_submission.sh       its script; JOB_submitted.pkl what submitit runs
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.site import Need, Site, Stage

VERSION = 1
RECORD, SITE_RECORD = "launch.json", "site.json"
IN_TERMINAL = "debug"
"""Id of a job that runs in the terminal."""


@dataclass(frozen=True)
class Element:
    """One command line of a job; a sweep has several."""

    name: str
    """What people call it."""
    argv: tuple[str, ...]
    """Arguments of Python, e.g. -m MODULE WORD …; which Python is the site's matter."""
    progress: tuple[str, ...] = ()
    """Arguments of Python for a command that prints how far it is, as one integer; none: every start counts."""
    environment: dict[str, str] = field(default_factory=dict)
    """Its own variables."""
    keep: tuple[str, ...] = ()
    """Arguments of Python for a command that keeps the logs of its ranks elsewhere, and gets the job's id; none: they
    stay where they are."""


@dataclass(frozen=True)
class After:
    """Another job that a job waits for."""

    condition: Literal["ok", "any"]
    """`ok`: only where it succeeded; `any`: however it ended."""
    folder: Path
    job: str
    """Its id."""

    def __str__(self) -> str:
        return f"after{self.condition}:{self.job}"


@dataclass(frozen=True)
class Job:
    """A stage on a site."""

    stage: Stage
    name: str
    """Its name in the queue."""
    comment: str
    """Ties it to its run."""
    folder: Path
    """Where its files are; all nodes reach it."""
    elements: tuple[Element, ...]
    site: Site
    need: Need
    after: After | None = None
    """The job that must have ended before."""

    @property
    def on_ray(self) -> bool:
        """Whether a Ray cluster is made of its nodes."""
        return self.stage == "prep" and self.need.nodes > 1


@dataclass
class Record:
    """What a folder of jobs says of itself."""

    stage: Stage
    name: str
    comment: str
    nodes: int
    elements: list[Element]
    jobs: list[dict[str, Any]]
    """Every submission: ids (one an element), kind, submitted (seconds since 1970), after; the last counts."""
    followers: list[str] = field(default_factory=list)
    """Folders of jobs that depend on this one."""
    cancelled: bool = False

    @property
    def last(self) -> dict[str, Any]:
        """The last submission."""
        return self.jobs[-1]

    @property
    def ids(self) -> list[str]:
        """Ids of the last submission, one an element; empty before the first."""
        return list(self.jobs[-1]["ids"]) if self.jobs else []


def read_record(folder: Path) -> Record:
    """The record of a folder.

    Raises:
        LaunchError: there is none, or of another version.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LaunchError(f"no {path}: nothing was launched there; `mcjepa launch train|prep|eval` does") from error
    version = content.pop("version", None)
    if version != VERSION:
        raise LaunchError(f"{path} has version {version}, expected {VERSION}; use the mcjepa that wrote it")
    elements = [
        Element(e["name"], tuple(e["argv"]), tuple(e["progress"]), dict(e["environment"]), tuple(e.get("keep", ())))
        for e in content["elements"]
    ]
    return Record(**{**content, "elements": elements})


def write_record(folder: Path, record: Record) -> None:
    """Writes it, at once or not at all."""
    write_json(folder / RECORD, {"version": VERSION, **dataclasses.asdict(record)})


def write_json(path: Path, content: Any) -> None:
    """Writes readable JSON, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with temporary.open("x", encoding="utf-8") as file:  # with the rights that the user's umask leaves
        json.dump(content, file, indent=1)
    temporary.replace(path)

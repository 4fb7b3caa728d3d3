"""What became of every input: inputs.jsonl.gz of a dataset, and the inputs that failed, with reasons.

One JSON object a line, in the plan's order:

    {"bytes":1055736,"name":"0-videos/bikes.mp4","outcome":"ok","reason":"","samples":120,
     "sha256":"…","shard":"clip-000000","uri":"/data/videos/bikes.mp4","dropped":0}

Outcome `ok`: it gave samples; `filtered`: readable, but nothing in it is wanted; `quarantined`: it failed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import inputs_key
from mcjepa.data_prep.storage import Store
from mcjepa.data_prep.storage.json_files import read_lines

Outcome = Literal["ok", "filtered", "quarantined"]
LATER_FIELDS = ("decoder",)
"""What lists of inputs of earlier versions lack."""
OUTCOMES: tuple[Outcome, ...] = ("ok", "filtered", "quarantined")


@dataclass(frozen=True)
class InputRecord:
    """One line of inputs.jsonl.gz."""

    name: str
    """Name in the dataset: number and reader of its corpus, its name below the corpus's root."""
    uri: str
    bytes: int
    sha256: str
    """Of the content; of a sequence of frames: of its files' digests, in order. Empty when unreadable."""
    outcome: Outcome
    reason: str
    shard: str
    samples: int
    dropped: int = 0
    """Samples that filters refused."""
    decoder: str = ""
    """Which decoder gave a video's frames: the one asked for, or `pyav` for what that cannot read."""

    @property
    def where(self) -> str:
        """Its location in words: the uri, and of a member of a tar its name in it."""
        tar = self.uri.rpartition("/")[2]
        member = self.name.partition(f"/{tar}/")[2]
        return f"{self.uri} ({member})" if member and tar.lower().endswith(".tar") else self.uri


def record_from(content: dict[str, Any], where: str) -> InputRecord:
    """Build a record from its JSON object.

    Raises:
        DataError: a field is missing, unknown, or the outcome is none of the three.
    """
    fields = {f.name for f in dataclasses.fields(InputRecord)}
    if not fields - set(LATER_FIELDS) <= set(content) <= fields or content["outcome"] not in OUTCOMES:
        raise DataError(f"{where} has a malformed input line {content}; expected {sorted(fields)}; prepare again")
    return InputRecord(**content)


def read_inputs(store: Store, revision: int = 1) -> Iterator[InputRecord]:
    """Records of a published revision's list of inputs."""
    key = inputs_key(revision)
    for content in read_lines(store, key):
        yield record_from(content, f"{store.location}/{key}")


def holder_of(name: str, holders: Collection[str]) -> str:
    """Which of some inputs, that are tars or folders by their names, a name lies in; empty: in none.

    >>> holder_of("0-tars/a.tar/x/1.png", {"0-tars/a.tar", "0-tars/b.tar"}), holder_of("0-tars/b.tar", {"0-tars/b.tar"})
    ('0-tars/a.tar', '')
    """
    parts = name.split("/")
    above = ("/".join(parts[:length]) for length in range(2, len(parts)))
    return next((holder for holder in above if holder in holders), "")


class InputsDigest:
    """sha256 over the names and content digests of inputs, in order: what the dataset was made from."""

    def __init__(self) -> None:
        """Start with no input."""
        self._digest = hashlib.sha256()

    def add(self, record: InputRecord) -> None:
        """Take in the next input."""
        self._digest.update(f"{record.name}\n{record.sha256}\n".encode(errors="surrogateescape"))

    def hexdigest(self) -> str:
        """The digest of all inputs so far."""
        return self._digest.hexdigest()

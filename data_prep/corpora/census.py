"""Counts everything that lies in a corpus: what is an input's file, and what is left, by the ends of its names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mcjepa.data_prep.storage.keys import EVERYTHING, KeySpan

MOST_KINDS = 200
PLAIN_ENDING = re.compile(r"(\.(?=\d*[a-z])[a-z0-9][a-z0-9_-]{0,15}){1,3}")


@dataclass
class Census:
    """Entries of a corpus: files, and members of tars; a tar that can be read is none, its members are."""

    entries: int = 0
    """All that was met."""
    others: Counter[str] = field(default_factory=Counter)
    """What no input holds: the end of a name, and where it is not its kind that is left out, the reason."""
    unlabelled: int = 0
    """Inputs without a class, in a corpus whose classes are wanted."""

    def leave(self, ending: str, why: str = "") -> None:
        """Count an entry that no input holds.

        Args:
            ending: The end of its name, from a dot on.
            why: Why it is left though its kind is known.
        """
        known = ending if PLAIN_ENDING.fullmatch(ending) else "no plain ending"
        words = f"{known} ({why})" if why else known
        self.others[words if words in self.others or len(self.others) < MOST_KINDS else "further endings"] += 1

    def merge(self, other: Census) -> None:
        """Add the counts of another stretch. Beyond `MOST_KINDS` endings, which one is counted apart may differ."""
        self.entries += other.entries
        self.unlabelled += other.unlabelled
        for words, count in other.others.items():
            known = words in self.others or len(self.others) < MOST_KINDS
            self.others[words if known else "further endings"] += count

    def record(self) -> dict[str, Any]:
        """The counts as plain JSON values; `others` sorted by name."""
        return {"entries": self.entries, "others": dict(sorted(self.others.items())), "unlabelled": self.unlabelled}


@dataclass(frozen=True)
class Reading:
    """How a corpus of any files is read."""

    members: tuple[str, ...] = ()
    """Ends of the names that are wanted, with or without a dot in front; empty: the reader's own choice."""
    census: Census = field(default_factory=Census)
    span: KeySpan = EVERYTHING
    """The stretch of the corpus's listing that is read; of a part nobody asks whether there is any input in it."""

    def wants(self, name: str) -> bool:
        """Whether a file's name has one of the wanted ends.

        >>> Reading(("png", "_rgb.jpg")).wants("a/0_rgb.JPG"), Reading(("png",)).wants("a/apng")
        (True, False)
        """
        ends = tuple(m if m[:1] in "._-" else f".{m}" for m in map(str.lower, self.members))
        return not ends or name.lower().endswith(ends)


def describe_others(census: dict[str, Any]) -> str:
    """What no input holds, in words, the most frequent first; empty where nothing is left.

    >>> describe_others({"others": {".txt": 3, ".xml": 12}, "unlabelled": 1})
    '12 .xml, 3 .txt; 1 input without a label'
    """
    counts = sorted(census.get("others", {}).items(), key=lambda pair: (-pair[1], pair[0]))
    text = ", ".join(f"{count} {ending}" for ending, count in counts)
    lacking = census.get("unlabelled", 0)
    labels = f"{lacking} input{'s' if lacking > 1 else ''} without a label" if lacking else ""
    return "; ".join(filter(None, (text, labels)))

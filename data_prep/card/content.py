"""Writes a dataset's card: one HTML file in its store that shows what is in it, and what was left out and why.

ROOT/card.html      holds its pictures and charts, loads nothing from anywhere and runs no script

Counts of inputs, reasons and dropped samples are exact, from streamed lists; pictures and histograms are of some
samples, and the card says of how many. The same dataset gives the same card.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from mcjepa.data_prep.card.page import CardContent, DroppedBy, Reason, render_card
from mcjepa.data_prep.card.samples import foreign_thumbnail, read_samples
from mcjepa.data_prep.dataset.inputs import InputRecord, read_inputs
from mcjepa.data_prep.dataset.manifest import DatasetManifest, read_manifest
from mcjepa.data_prep.layout import dropped_key
from mcjepa.data_prep.storage import Store, join_location, open_store
from mcjepa.data_prep.storage.json_files import read_lines

CARD_NAME = "card.html"
MOST_REASONS = 200
OTHER_REASONS = "other reasons"
EXAMPLES = 3
MOST_THUMBNAILS = 24
REMEMBERED_INPUTS = 4096
VIOLENT = re.compile(r"killed|died|memory cap")
"""In reasons of inputs that hang or crash a decoder: their pictures are not opened again."""


def write_card(location: str) -> str:
    """Write the card of a published dataset; returns where it lies.

    Raises:
        DataError: there is no published dataset, or its files are damaged.
    """
    store = open_store(location)
    manifest = read_manifest(store)
    content = _gather(store, manifest)
    store.write(CARD_NAME, render_card(content).encode(errors="backslashreplace"))
    return join_location(store.location, CARD_NAME)


def group_reason(reason: str) -> str:
    """A reason without what differs from input to input: numbers and names of files.

    >>> group_reason("near duplicate of 0-images/a.jpg"), group_reason("1280x20 px; at least 32 px")
    ('near duplicate of …', '#x# px; at least # px')
    """
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"\S*/\S*", "…", reason))[:200]


def _gather(store: Store, manifest: DatasetManifest) -> CardContent:
    tally = _InputTally(manifest.dataset_id)
    for record in read_inputs(store, manifest.revision):
        tally.add(record)
    return CardContent(
        location=store.location,
        manifest=manifest,
        read=read_samples(store, manifest),
        outcomes=dict(tally.outcomes),
        listed_samples=tally.samples,
        samples_an_input=tuple(tally.samples_an_input),
        reasons=tuple(sorted(tally.reasons.values(), key=lambda r: (r.outcome, -r.count, r.text))),
        dropped=_read_dropped(store, dropped_key(manifest.revision)) if manifest.totals.dropped else (),
    )


class _InputTally:
    """What the list of inputs adds up to; a bounded number of examples is kept."""

    def __init__(self, seed: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.samples = 0
        self.samples_an_input: list[int] = []
        self.reasons: dict[tuple[str, str], Reason] = {}
        self._rng = random.Random(seed)
        self._thumbnails = 0

    def add(self, record: InputRecord) -> None:
        """Take in one input."""
        self.outcomes[record.outcome] += 1
        self.samples += record.samples
        if record.outcome == "ok":
            self._remember(record.samples)
        else:
            self._add_reason(record)

    def _remember(self, samples: int) -> None:
        """Keep a fair choice of REMEMBERED_INPUTS numbers (Vitter's algorithm R)."""
        if len(self.samples_an_input) < REMEMBERED_INPUTS:
            self.samples_an_input.append(samples)
            return
        place = self._rng.randrange(self.outcomes["ok"])
        if place < REMEMBERED_INPUTS:
            self.samples_an_input[place] = samples

    def _add_reason(self, record: InputRecord) -> None:
        text = group_reason(record.reason)
        if (record.outcome, text) not in self.reasons and len(self.reasons) >= MOST_REASONS:
            text = OTHER_REASONS
        reason = self.reasons.setdefault((record.outcome, text), Reason(record.outcome, text))
        reason.count += 1
        if len(reason.examples) < EXAMPLES:
            reason.examples.append((record.name, record.reason))
            if record.outcome == "quarantined" and self._thumbnails < MOST_THUMBNAILS:
                thumbnail = None if VIOLENT.search(record.reason) else foreign_thumbnail(record.uri)
                self._thumbnails += thumbnail is not None
                reason.thumbnails += [(record.name, thumbnail)] if thumbnail else []


def _read_dropped(store: Store, key: str) -> tuple[DroppedBy, ...]:
    found: dict[str, DroppedBy] = {}
    if store.exists(key):
        for line in read_lines(store, key):
            by = found.setdefault(line["filter"], DroppedBy(line["filter"]))
            by.count += 1
            if len(by.examples) < EXAMPLES:
                by.examples.append((f"{line['input']}, frames {line['frame_index']}", line["reason"]))
    return tuple(sorted(found.values(), key=lambda by: (-by.count, by.filter)))

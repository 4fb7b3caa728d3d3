"""The page of a dataset's card: what `page.html.j2` shows of plain data, charts as inline SVG, no script."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mcjepa.data_prep.card.charts import histogram, shares
from mcjepa.data_prep.card.frame import InlinePicture, Section, render_page
from mcjepa.data_prep.card.samples import SHOWN_FRAMES, ReadSample, ReadSamples
from mcjepa.data_prep.dataset.manifest import DatasetManifest

MOST_CATEGORIES = 12
MOST_REASONS_SHOWN = 40
MOST_ENDINGS_SHOWN = 40

SCORES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "motion_px": ("Motion: mean flow, px", (("motion", "min_px"), ("motion", "max_px"))),
    "cut": ("Scene cuts: content score", (("cut", "max_score"),)),
    "border": ("Bars: part of the frame", (("border", "max_fraction"),)),
    "luma": ("Darkest frame: mean luma", (("dark", "min_luma"),)),
}
"""Score to its title and to the settings that limit it."""


@dataclass
class Reason:
    """Inputs that gave no sample for the same reason."""

    outcome: str
    text: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    """Name and full reason."""
    thumbnails: list[tuple[str, bytes]] = field(default_factory=list)
    """Name and JPEG."""


@dataclass
class DroppedBy:
    """Samples that one filter dropped."""

    filter: str
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class CardContent:
    """All that the card shows."""

    location: str
    manifest: DatasetManifest
    read: ReadSamples
    outcomes: Mapping[str, int]
    """Inputs by outcome, counted in the list of inputs."""
    listed_samples: int
    """Samples that the list of inputs adds up to."""
    samples_an_input: tuple[int, ...]
    """Of the inputs that gave some, or of a choice of them."""
    reasons: tuple[Reason, ...]
    dropped: tuple[DroppedBy, ...]


def render_card(content: CardContent) -> str:
    """The whole document."""
    manifest = content.manifest
    sections = [
        Section("totals", "Totals", "totals", _totals(content)),
        Section("samples", "Samples", "samples", _samples(content)),
        Section("distributions", "Distributions", "distributions", _distributions(content)),
        Section("dropped", "Samples dropped by filters", "dropped", content.dropped),
        Section("reasons", "Inputs without samples", "reasons", _reasons(content.reasons)),
        Section("others", "No inputs: what else lies in the corpora", "others", _others(manifest.census)),
        Section("lineage", "Lineage", "lineage", _lineage(manifest)),
    ]
    title = f"{manifest.kind} dataset {manifest.dataset_id[:12]}"
    return render_page(Path(__file__).parent, title, content.location, sections)


def _totals(content: CardContent) -> dict[str, Any]:
    totals = content.manifest.totals
    numbers = {
        "samples": f"{totals.samples:,}",
        "shards": f"{totals.shards:,}",
        "size": f"{totals.bytes / 1e6:,.1f} MB",
        "inputs": f"{totals.inputs:,}",
        "ok": f"{totals.ok:,}",
        "filtered": f"{totals.filtered:,}",
        "quarantined": f"{totals.quarantined:,}",
        "samples dropped": f"{totals.dropped:,}",
    }
    parts = [content.outcomes.get(name, 0) for name in ("ok", "filtered", "quarantined")]
    kept = sum(parts) == totals.inputs and parts == [totals.ok, totals.filtered, totals.quarantined]
    kept = kept and content.listed_samples == totals.samples
    line = (
        f"Conservation {'holds' if kept else 'is BROKEN'}: the list of inputs has {parts[0]:,} ok + {parts[1]:,} "
        f"filtered + {parts[2]:,} quarantined = {sum(parts):,} inputs with {content.listed_samples:,} samples; "
        f"the manifest has {totals.inputs:,} inputs and {totals.samples:,} samples."
    )
    return {"numbers": numbers, "kept": kept, "conservation": line, **_entries(content.manifest)}


def _entries(manifest: DatasetManifest) -> dict[str, Any]:
    """Conservation over all that lies in the corpora; nothing of manifests that do not count it."""
    if not manifest.census:
        return {}
    entries, others = manifest.census["entries"], sum(manifest.census["others"].values())
    counted = entries == manifest.files + others
    line = (
        f"The corpora hold {entries:,} entries: {manifest.files:,} files of inputs "
        f"{'and' if counted else 'but'} {others:,} others"
    )
    lacking = manifest.census.get("unlabelled", 0)
    line += f"; {lacking:,} inputs have no label." if lacking else "."
    return {"entries": line, "counted": counted}


def _others(census: Mapping[str, Any]) -> dict[str, Any] | None:
    counts = sorted(census.get("others", {}).items(), key=lambda pair: (-pair[1], pair[0]))
    if not counts:
        return None
    shown, rest = counts[:MOST_ENDINGS_SHOWN], counts[MOST_ENDINGS_SHOWN:]
    return {"counts": shown, "more": len(rest), "more_entries": sum(count for _, count in rest)}


def _samples(content: CardContent) -> dict[str, Any]:
    shown = [sample for sample in content.read.samples if sample.thumbnails]
    note = f"{len(shown)} of {content.manifest.totals.samples:,} samples, chosen at random by the dataset's id."
    if any(sample.frames > SHOWN_FRAMES for sample in shown):
        note += f" Of longer clips, at most {SHOWN_FRAMES} frames are shown, evenly spaced."
    return {"note": note, "samples": [_figure(sample) for sample in shown]}


def _figure(sample: ReadSample) -> dict[str, Any]:
    facts = [sample.meta.get("input", ""), f"frames {sample.meta.get('frame_index', [])}", sample.meta.get("label", "")]
    scores = sample.meta.get("scores", {})
    facts += [f"{name} {scores[name]}" for name in SCORES if name in scores]
    caption = " · ".join(str(fact) for fact in facts if fact)
    return {"frames": [_inline(jpeg) for jpeg in sample.thumbnails], "caption": caption}


def _inline(jpeg: bytes, text: str = "") -> InlinePicture:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return InlinePicture("jpeg", jpeg, *picture.size, text)


def _distributions(content: CardContent) -> dict[str, Any]:
    samples = content.read.samples
    note = (
        f"Of {len(samples):,} samples read from {content.read.shards:,} of {content.manifest.totals.shards:,} shards"
        f"{'' if len(samples) < content.manifest.totals.samples else ': all there are'}."
    )
    charts = [
        shares("Stored size, px", _most_common(f"{s.size[0]} x {s.size[1]}" for s in samples)),
        shares("Label", _most_common(s.meta["label"] for s in samples if s.meta.get("label"))),
        histogram("Samples an input", content.samples_an_input),
        histogram("Duration of a sample, s", _values(samples, _duration_s)),
        histogram("Place in its video, s", _values(samples, _place_s)),
        histogram("Frame rate of the video, Hz", _values(samples, lambda meta: meta.get("fps_hz"))),
    ]
    filters = content.manifest.parameters.get("filters", {})
    for name, (title, settings) in SCORES.items():
        limits = [filters[group][setting] for group, setting in settings if setting in filters.get(group, {})]
        charts.append(histogram(title, _values(samples, _score(name)), limits))
    return {"note": note, "charts": [chart for chart in charts if chart]}


def _most_common(values: Iterable[str]) -> list[tuple[str, int]]:
    counts = Counter(values)
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in most[MOST_CATEGORIES:])
    return most[:MOST_CATEGORIES] + ([("others", rest)] if rest else [])


def _values(samples: Sequence[ReadSample], measure: Callable[[dict[str, Any]], float | None]) -> list[float]:
    found = (measure(sample.meta) for sample in samples)
    return [float(value) for value in found if isinstance(value, int | float)]


def _duration_s(meta: dict[str, Any]) -> float | None:
    times = meta.get("pts_s") or [None]
    return None if None in times or len(times) < 2 else times[-1] - times[0]


def _place_s(meta: dict[str, Any]) -> float | None:
    return next(iter(meta.get("pts_s") or ()), None)


def _score(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda meta: meta.get("scores", {}).get(name)


def _reasons(reasons: Sequence[Reason]) -> dict[str, Any] | None:
    if not reasons:
        return None
    listed = [
        {**vars(reason), "thumbnails": [_inline(jpeg, name) for name, jpeg in reason.thumbnails]}
        for reason in reasons[:MOST_REASONS_SHOWN]
    ]
    return {"reasons": listed, "more": max(0, len(reasons) - MOST_REASONS_SHOWN)}


def _lineage(manifest: DatasetManifest) -> dict[str, Any]:
    pairs = {
        "dataset id": manifest.dataset_id,
        "revision": manifest.revision,
        "parent": manifest.parent,
        "plan digest": manifest.plan_digest,
        "inputs digest": manifest.inputs_digest,
        "decoder": manifest.decoder,
        "encoder": manifest.encoder,
        "other libraries": ", ".join(f"{name} {found}" for name, found in manifest.libraries.items()),
        "manifest version": manifest.version,
    }
    given = [(name, value) for name, value in pairs.items() if value != ""]
    return {"pairs": given, "parameters": json.dumps(manifest.parameters, indent=1, sort_keys=True)}

"""The page of a dataset's card: HTML with its style inside, charts as inline SVG, no script.

Every text that comes from outside (names, reasons, settings) goes through `escape`.
"""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mcjepa.data_prep.card.charts import histogram, shares
from mcjepa.data_prep.card.samples import SHOWN_FRAMES, ReadSample, ReadSamples
from mcjepa.data_prep.dataset.manifest import DatasetManifest

MOST_CATEGORIES = 12
MOST_REASONS_SHOWN = 40

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--panel:#fff;--ink:#1c1f23;--dim:#666d76;--line:#e3e5e8;--accent:#2563c9;
--good:#1a7f4b;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--panel:#1c2026;--ink:#e7e9ec;--dim:#9aa2ad;--line:#2f353d;
--accent:#76a9fa;--good:#4cc38a;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:0 24px 50px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.8rem;margin:34px 0 .3rem}h2{font-size:1.25rem;margin:2.4rem 0 .4rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.2rem 0 .8rem;max-width:80ch}.dim,small{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles,.charts,.grid{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(170px,1fr))}
.charts{grid-template-columns:repeat(auto-fill,minmax(270px,1fr))}.grid{grid-template-columns:repeat(auto-fill,minmax(265px,1fr))}
.tile,.chart,.grid figure{background:var(--panel);
border:1px solid var(--line);border-radius:9px;padding:10px 14px;margin:0}
.tile b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}
.grid .frames{display:grid;gap:3px;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr)}
.grid img{width:100%;border-radius:3px;display:block}
figcaption{font-size:.78rem;color:var(--dim);overflow-wrap:anywhere;margin-top:5px}
.chart figcaption{font-size:.85rem;color:var(--ink);margin:0}.chart svg{width:100%;display:block}
.chart text{font-size:10px;fill:var(--dim)}.chart rect{fill:var(--accent)}.chart line{stroke:var(--line)}
.chart line.limit{stroke:var(--bad);stroke-dasharray:3 2}
table{border-collapse:collapse;font-size:.86rem;width:100%}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
th{color:var(--dim);font-weight:550}td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td img{height:60px;margin:2px 4px 0 0;border-radius:3px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;font-size:.86rem}dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
pre{font-size:12px;overflow-x:auto;background:var(--panel);border:1px solid var(--line);
padding:10px;border-radius:8px}
"""
# The policy lets the page load nothing and run nothing, whatever text ends up in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

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
    title = f"{manifest.kind} dataset {manifest.dataset_id[:12]}"
    sections = [
        ("Totals", _totals(content)),
        ("Samples", _samples(content)),
        ("Distributions", _distributions(content)),
        ("Samples dropped by filters", _dropped(content)),
        ("Inputs without samples", _reasons(content)),
        ("Lineage", _lineage(manifest)),
    ]
    body = "".join(f"<section><h2>{escape(heading)}</h2>{part}</section>\n" for heading, part in sections if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<h1>{escape(title)}</h1><p class='dim'>{escape(content.location)}</p>\n{body}"
        "<p class='dim'>Written by mcjepa. This file is complete in itself and loads nothing.</p></body></html>\n"
    )


def escape(value: object) -> str:
    """Any value as text that is safe between tags and in quoted attributes."""
    return html.escape(f"{value:.5g}" if isinstance(value, float) else str(value), quote=True)


def _totals(content: CardContent) -> str:
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
    tiles = "".join(f'<div class="tile"><small>{name}</small><b>{value}</b></div>' for name, value in numbers.items())
    parts = [content.outcomes.get(name, 0) for name in ("ok", "filtered", "quarantined")]
    kept = sum(parts) == totals.inputs and parts == [totals.ok, totals.filtered, totals.quarantined]
    kept = kept and content.listed_samples == totals.samples
    line = (
        f"Conservation {'holds' if kept else 'is BROKEN'}: the list of inputs has {parts[0]:,} ok + {parts[1]:,} "
        f"filtered + {parts[2]:,} quarantined = {sum(parts):,} inputs with {content.listed_samples:,} samples; "
        f"the manifest has {totals.inputs:,} inputs and {totals.samples:,} samples."
    )
    return f'<div class="tiles">{tiles}</div><p class="{"good" if kept else "bad"}">{escape(line)}</p>'


def _samples(content: CardContent) -> str:
    shown = [sample for sample in content.read.samples if sample.thumbnails]
    note = f"{len(shown)} of {content.manifest.totals.samples:,} samples, chosen at random by the dataset's id."
    if any(sample.frames > SHOWN_FRAMES for sample in shown):
        note += f" Of longer clips, at most {SHOWN_FRAMES} frames are shown, evenly spaced."
    return f'<p class="dim">{escape(note)}</p><div class="grid">{"".join(_figure(sample) for sample in shown)}</div>'


def _figure(sample: ReadSample) -> str:
    images = "".join(_image(jpeg, "") for jpeg in sample.thumbnails)
    facts = [sample.meta.get("input", ""), f"frames {sample.meta.get('frame_index', [])}", sample.meta.get("label", "")]
    scores = sample.meta.get("scores", {})
    facts += [f"{name} {scores[name]}" for name in SCORES if name in scores]
    caption = escape(" · ".join(str(fact) for fact in facts if fact))
    return f'<figure><div class="frames">{images}</div><figcaption>{caption}</figcaption></figure>'


def _image(jpeg: bytes, text: str) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{escape(text)}" title="{escape(text)}" src="data:image/jpeg;base64,{data}">'


def _distributions(content: CardContent) -> str:
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
    return f'<p class="dim">{escape(note)}</p><div class="charts">{"".join(charts)}</div>'


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


def _dropped(content: CardContent) -> str:
    rows = [[by.filter, f"{by.count:,}", _examples(by.examples)] for by in content.dropped]
    return _table(["filter", "samples", "examples"], rows)


def _reasons(content: CardContent) -> str:
    rows = [
        [
            reason.outcome,
            escape(reason.text),
            f"{reason.count:,}",
            _examples(reason.examples) + "".join(_image(jpeg, name) for name, jpeg in reason.thumbnails),
        ]
        for reason in content.reasons
    ]
    more = len(rows) - MOST_REASONS_SHOWN
    note = f'<p class="dim">{more} more reasons are in the list of inputs.</p>' if more > 0 else ""
    return _table(["outcome", "reason", "inputs", "examples"], rows[:MOST_REASONS_SHOWN]) + note


def _examples(examples: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<div>{escape(name)}<br><small>{escape(reason)}</small></div>" for name, reason in examples)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells that are HTML already; empty without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _lineage(manifest: DatasetManifest) -> str:
    pairs = {
        "dataset id": manifest.dataset_id,
        "revision": manifest.revision,
        "parent": manifest.parent,
        "plan digest": manifest.plan_digest,
        "inputs digest": manifest.inputs_digest,
        "decoder": manifest.decoder,
        "encoder": manifest.encoder,
        "manifest version": manifest.version,
    }
    entries = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items() if v != "")
    parameters = escape(json.dumps(manifest.parameters, indent=1, sort_keys=True))
    return f"<dl>{entries}</dl><h3>Parameters</h3><pre>{parameters}</pre>"

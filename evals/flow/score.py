"""Scores a model, or flow computed before, and the classical baselines on the pairs of one flow set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mcjepa.data_prep.corpora import FLOW_SCANS
from mcjepa.data_prep.corpora.flow.places import find_set_folder
from mcjepa.data_prep.corpora.flow.scans import FlowScan
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.evals.cards import BASELINES, ESTIMATES, Card, Score, package_versions
from mcjepa.evals.cards import MODEL as MODEL_SOURCE
from mcjepa.evals.flow.estimates import EstimateFolder
from mcjepa.evals.flow.gallery import draw_gallery
from mcjepa.evals.flow.methods import MODEL, FlowMethods, Method, describe_resizing, flow_methods
from mcjepa.evals.flow.metrics import FlowSums, add_sums, summarise
from mcjepa.evals.flow.overlap import Failure
from mcjepa.evals.flow.pairs import MeasuredPair, measure_pairs
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.progress import EvalEvent, OnEvent, evenly_spaced, nothing_scored, set_reader, silent

MOST_MISSING_NAMED = 20
_MASKS = (
    "valid pixels of the ground truth; matched = visible in both frames (KITTI: pixels and values of the noc file; "
    "else neither in the occlusion map nor leaving the frame by the true flow), unmatched = the others; "
    "matched_by_map, unmatched_by_map = by the occlusion map alone, which marks a part of what leaves the frame; d "
    "bins = matched pixels by their distance in px to the nearest pixel of the occlusion map; s bins = by the true "
    "flow's length; bg, fg = outside and inside of KITTI 2015's moving objects"
)


@dataclass(frozen=True, kw_only=True)
class FlowSet:
    """A set that is scored."""

    name: str
    """Its name, for the score's name and card."""

    root: Path
    """Where it was read from."""

    scan: FlowScan
    """Its pairs, and those that it lacks; pairs without ground truth are left out and counted on the card."""

    alone: bool = True
    """Whether a folder of estimates holds those of this set only."""


@dataclass(frozen=True, kw_only=True)
class _MeasuredSet:
    """What became of a set's pairs."""

    measured: list[MeasuredPair] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def score_flow(
    method: Method | None, flow_set: FlowSet, config: FlowEvalConfig, out: Path, on_event: OnEvent = silent
) -> Score:
    """Scores what is asked for on every pair of a set that has a ground truth.

    Args:
        method: a model or a folder of estimates; None: baselines only.
        flow_set: the set.
        config: baselines, protocol, cap and number of pictures.
        out: folder for the pictures.
        on_event: progress.

    Returns:
        The score `flow/SET`. Metrics of the method have plain names (`epe`, `fl_all`, …), those of a baseline its
        name as suffix (`epe_dis_medium`). Pairs that are missing or could not be scored are in the card's `failed`.

    Raises:
        DataError: the set has no pair with a ground truth, or none could be read.
    """
    with_truth = [pair for pair in flow_set.scan.pairs if pair.flow is not None]
    chosen = evenly_spaced(with_truth, config.max_pairs)
    estimates = None
    if method is not None and method.estimates is not None and chosen:
        place = (method.estimates, flow_set.name, flow_set.root)
        estimates = EstimateFolder(*place, with_truth, alone=flow_set.alone)
    methods = flow_methods(method, config.baselines, config.resize, estimates)
    found = _measure_set(flow_set, chosen, methods, config.workers, on_event)
    total = {name: _total(found.measured, name) for name in methods.names}
    return Score(
        name=f"flow/{flow_set.name}",
        metrics=_set_metrics(found.measured, total),
        card=_card(method, flow_set, found, config),
        rivals=tuple(_suffix(name)[1:] for name in methods.names if name != MODEL),
        table=tuple(_row(item, total) for item in found.measured),
        pictures=draw_gallery(found.measured, methods, config.pictures, out, config.workers),
    )


def _measure_set(
    flow_set: FlowSet, chosen: Sequence[FlowPair], methods: FlowMethods, workers: int, on_event: OnEvent
) -> _MeasuredSet:
    found = _MeasuredSet(failed=_missing_lines(flow_set.scan))
    results = measure_pairs(chosen, methods, workers)
    for done, (pair, result) in enumerate(zip(chosen, results, strict=True), 1):
        if isinstance(result, Failure):
            found.failed.append(f"{pair.name}: {result.reason}")
        else:
            found.measured.append(result)
        on_event(EvalEvent(score=f"flow/{flow_set.name}", phase="pairs", done=done, total=len(chosen)))
    if not found.measured:
        unread = found.failed[len(found.failed) - len(chosen) :]
        what = f"flow set {flow_set.name} at {flow_set.root}, of {len(flow_set.scan.pairs)} pairs"
        raise nothing_scored(what, unread, "pairs with a ground truth")
    return found


def _missing_lines(scan: FlowScan) -> list[str]:
    """One line a missing pair; beyond the first ones the rest is counted in one line."""
    lines = [f"{name}: {what}" for name, what in scan.missing.items()]
    rest = len(lines) - MOST_MISSING_NAMED
    return [*lines[:MOST_MISSING_NAMED], f"{rest} more pairs are missing"] if rest > 0 else lines


def _suffix(method: str) -> str:
    return "" if method == MODEL else "_" + method.replace("-", "_")


def _total(measured: Sequence[MeasuredPair], method: str) -> FlowSums:
    total: FlowSums = {}
    for item in measured:
        total = add_sums(total, item.sums[method])
    return total


def _set_metrics(measured: Sequence[MeasuredPair], total: dict[str, FlowSums]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for method, sums in total.items():
        metrics |= {key + _suffix(method): value for key, value in summarise(sums).items()}
        by_pair = [item.epe(method) for item in measured if item.sums[method]["all"].pixels]
        metrics["epe_mean_of_pairs" + _suffix(method)] = float(np.mean(by_pair)) if by_pair else math.nan
    return metrics


def _row(item: MeasuredPair, total: dict[str, FlowSums]) -> dict[str, object]:
    """One line of the table: the method by every region of the set, NaN where the pair has no such pixel."""
    row: dict[str, object] = {
        "pair": item.pair.name,
        "height_px": item.size[0],
        "width_px": item.size[1],
        "valid_pixels": next(iter(item.sums.values()))["all"].pixels,
    }
    for method, sums in total.items():
        scores = summarise(item.sums[method])
        main = ("epe", "fl_all", "over_3px")
        keys = [*main, *(key for key in summarise(sums) if key not in main)] if method == MODEL else main
        row |= {key + _suffix(method): scores.get(key, math.nan) for key in keys}
    return row


def _card(method: Method | None, flow_set: FlowSet, found: _MeasuredSet, config: FlowEvalConfig) -> Card:
    sizes = sorted({f"{width}x{height}" for height, width in (item.size for item in found.measured)})
    if method is None:
        handling = "not resized"
    else:
        handling = describe_resizing(config.resize) if method.model else "estimates as they are"
    return Card(
        data_set=flow_set.name,
        split=_split(flow_set.scan, config),
        root=str(flow_set.root),
        frames=len(found.measured),
        unit="frame pairs",
        failed=tuple(found.failed),
        resolution=f"{', '.join(sizes)} px, {handling}; baselines on grey images",
        masks=_MASKS,
        aggregation="mean over all valid pixels of the set; epe_mean_of_pairs weighs pairs equally",
        config=dataclasses.asdict(config),
        source=BASELINES if method is None else MODEL_SOURCE if method.model else ESTIMATES,
        weights_digest=method.digest if method else "",
        model=method.name if method else "none: baselines only",
        lineage=method.lineage if method else {},
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _split(scan: FlowScan, config: FlowEvalConfig) -> str:
    without = sum(pair.flow is None for pair in scan.pairs)
    parts = ["pairs with ground truth"]
    if scan.expected is not None:
        parts.append(f"{len(scan.pairs)} of the set's {scan.expected} are there")
    if without:
        parts.append(f"{without} pairs without ground truth left out")
    if config.max_pairs and config.max_pairs < len(scan.pairs) - without:
        parts.append(f"{config.max_pairs} evenly spaced ones of them")
    if config.subset:
        parts.append("a part of the set, on purpose")
    return "; ".join(parts)


def score_flow_sets(
    method: Method | None, config: FlowEvalConfig, out: Path, on_event: OnEvent = silent
) -> list[Score]:
    """Scores every flow set of the settings; all their folders are looked up before the first is scored.

    Raises:
        DataError: a set is unknown, is not where it should be, or has nothing that can be scored.
    """
    scans = {name: set_reader(FLOW_SCANS, name, "flow.sets") for name in config.sets}
    roots = {name: find_set_folder(place, name) for name, place in config.sets.items()}
    alone = len(roots) == 1
    sets = [
        FlowSet(name=name, root=root, scan=scans[name](root, subset=config.subset), alone=alone)
        for name, root in roots.items()
    ]
    return [score_flow(method, flow_set, config, out / "flow" / flow_set.name, on_event) for flow_set in sets]

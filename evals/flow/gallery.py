"""Pictures of a flow score: evenly spaced pairs and the worst of the others, as flow colours and error maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcjepa.data_prep.corpora.items import FlowTruth
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import Picture
from mcjepa.evals.flow.methods import MODEL, Flow, FlowMethods, Frames
from mcjepa.evals.flow.metrics import endpoint_error
from mcjepa.evals.flow.overlap import Failure, Stages, run_overlapped
from mcjepa.evals.flow.pairs import MeasuredPair
from mcjepa.evals.pictures import Image, error_picture, flow_picture, flow_scale, shrink_known, side_by_side, write_png
from mcjepa.evals.progress import evenly_spaced

FULL_ERROR_PX = 5.0


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A picture on its way: what was read and estimated for it."""

    path: Path
    note: str
    item: MeasuredPair
    frames: Frames
    truth: FlowTruth
    flow: Flow | None = None


def draw_gallery(
    measured: Sequence[MeasuredPair], methods: FlowMethods, count: int, out: Path, workers: int
) -> tuple[Picture, ...]:
    """Evenly spaced pairs and the worst of the others by the leading method, `count` of each: OUT/000.png, ….

    Raises:
        DataError: a pair that was measured cannot be read any more, or a picture cannot be written.
    """
    if count == 0:
        return ()
    stages: Stages[tuple[Path, str, MeasuredPair], _Drawing, _Drawing, Picture] = Stages(
        load=lambda entry: _read(entry, methods),
        compute=lambda drawing: replace(drawing, flow=methods.run_model(drawing.frames)),
        finish=lambda drawing: _draw(drawing, methods),
    )
    entries = [
        (out / f"{position:03d}.png", note, item)
        for position, (note, item) in enumerate(choose_pairs(measured, methods.lead, count))
    ]
    pictures = []
    drawn = run_overlapped(entries, stages, workers)
    for (path, _, item), picture in zip(entries, drawn, strict=True):
        if isinstance(picture, Failure):
            raise DataError(f"{item.pair.name} was scored but cannot be drawn as {path}: {picture.reason}")
        pictures.append(picture)
    return tuple(pictures)


def choose_pairs(measured: Sequence[MeasuredPair], lead: str, count: int) -> list[tuple[str, MeasuredPair]]:
    """`count` evenly spaced pairs, then the `count` worst of the others, each with a note before its name."""
    shown = evenly_spaced(range(len(measured)), count)
    others = [index for index in range(len(measured)) if index not in shown]
    # NaN sorts first: an estimate that is not finite is the worst there is.
    epe = {index: measured[index].epe(lead) for index in others}
    others.sort(key=lambda index: -math.inf if math.isnan(epe[index]) else -epe[index])
    return [("", measured[index]) for index in shown] + [("worst: ", measured[index]) for index in others[:count]]


def _read(entry: tuple[Path, str, MeasuredPair], methods: FlowMethods) -> _Drawing:
    path, note, item = entry
    frames, truth = methods.read_frames(item.pair), item.pair.read_truth()
    return _Drawing(path=path, note=note, item=item, frames=frames, truth=truth)


def _draw(drawing: _Drawing, methods: FlowMethods) -> Picture:
    lead = methods.lead
    rival = next((name for name in ("dis-medium", *methods.names) if _is_rival(name, lead, methods)), None)
    panels, columns = _panels(drawing, methods, rival)
    others = [name for name in (rival, "zero" if "zero" in methods.names and lead != "zero" else None) if name]
    epe = drawing.item.epe
    beside = "".join(f", {name} {epe(name):.2f}" for name in others)
    who = "" if lead == MODEL else f" of {lead}"
    return Picture(
        caption=f"{drawing.note}{drawing.item.pair.name}: EPE {epe(lead):.2f} px{who}{beside}",
        path=write_png(drawing.path, side_by_side(panels)),
        kind="flow",
        columns=columns,
    )


def _is_rival(name: str, lead: str, methods: FlowMethods) -> bool:
    return name in methods.names and name not in (lead, MODEL, "zero")


def _panels(drawing: _Drawing, methods: FlowMethods, rival: str | None) -> tuple[list[Image], tuple[str, ...]]:
    truth, lead = drawing.truth, methods.lead
    calls = methods.others(drawing.frames, truth.valid)
    estimate = drawing.flow if drawing.flow is not None else calls[lead]()
    scale = flow_scale(truth.flow_px, truth.valid)
    error = endpoint_error(estimate, truth.flow_px)
    small_truth, truth_known = shrink_known(truth.flow_px, truth.valid)
    small_error, error_known = shrink_known(error[..., None], truth.valid)
    panels = [drawing.frames.images[0], flow_picture(small_truth, scale, truth_known), flow_picture(estimate, scale)]
    columns = ["frame", "ground truth", lead]
    if rival:
        panels.append(flow_picture(calls[rival](), scale))
        columns.append(rival)
    panels.append(error_picture(small_error[..., 0], error_known, FULL_ERROR_PX))
    columns.append(f"{lead}'s error (0 to {FULL_ERROR_PX:.0f} px)")
    return panels, tuple(columns)

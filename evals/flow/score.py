"""Scores a model and the classical baselines on the pairs of one flow set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.corpora.items import FlowPair, FlowTruth
from data_prep.errors import DataError
from evals.cards import Card, Picture, Score, package_versions
from evals.flow.baselines import FlowMethod, baseline_method
from evals.flow.config import FlowEvalConfig
from evals.flow.metrics import FlowSums, add_sums, endpoint_error, measure_pair, summarise
from evals.model_under_test import ModelUnderTest, Subject, image_tensor
from evals.pictures import error_picture, flow_picture, flow_scale, shrink_known, side_by_side, write_png
from evals.progress import EvalEvent, OnEvent, evenly_spaced, silent

MODEL = "model"
FULL_ERROR_PX = 5.0


@dataclass(frozen=True)
class MeasuredPair:
    """One pair's sums by method."""

    pair: FlowPair
    size: tuple[int, int]
    sums: dict[str, FlowSums]

    def epe(self, method: str) -> float:
        """Mean end-point error of the method over the pair's valid pixels, px; NaN without any."""
        return summarise(self.sums[method])["epe"]


def score_flow_set(
    subject: Subject,
    set_name: str,
    root: Path,
    pairs: Sequence[FlowPair],
    config: FlowEvalConfig,
    out: Path,
    on_event: OnEvent = silent,
) -> Score:
    """Scores the model and the baselines on every pair of a set that has a ground truth.

    Args:
        subject: the model.
        set_name: name of the set, for the score's name and card.
        root: where the set was read from, for the card.
        pairs: the set's pairs; those without ground truth are left out and counted on the card.
        config: baselines, cap and number of pictures.
        out: folder for the pictures.
        on_event: progress.

    Returns:
        The score `flow/SET`. Metrics of the model have plain names (`epe`, `fl_all`, …), those of a baseline
        its name as suffix (`epe_dis_medium`).

    Raises:
        DataError: the set has no pair with a ground truth, or none could be read.
    """
    name = f"flow/{set_name}"
    with_truth = [pair for pair in pairs if pair.flow is not None]
    chosen = evenly_spaced(with_truth, config.max_pairs)
    methods = flow_methods(subject.model, config.baselines)
    measured: list[MeasuredPair] = []
    failed: list[str] = []
    for index, pair in enumerate(chosen):
        try:
            measured.append(_measure(pair, methods))
        except (DataError, OSError, ValueError, cv2.error) as error:
            failed.append(f"{pair.name}: {error}")
        on_event(EvalEvent(score=name, phase="pairs", done=index + 1, total=len(chosen)))
    if not measured:
        reason = failed[0] if failed else f"{len(pairs)} pairs, none with a ground truth"
        raise DataError(f"flow set {set_name} at {root}: {reason}; expected readable pairs; check the folder")
    return Score(
        name=name,
        metrics=_set_metrics(measured, methods),
        card=_card(subject, set_name, root, measured, failed, len(pairs) - len(with_truth), config),
        rivals=tuple(_suffix(method)[1:] for method in methods if method != MODEL),
        table=tuple(_row(item, methods) for item in measured),
        pictures=_draw_pictures(measured, methods, config.pictures, out),
    )


def flow_methods(model: ModelUnderTest, baselines: Sequence[str]) -> dict[str, FlowMethod]:
    """The model and the named baselines behind one signature, the model first."""

    def estimate(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> NDArray[np.float32]:
        flow_12HW = model.flow(image_tensor(frame0), image_tensor(frame1))
        return flow_12HW[0].permute(1, 2, 0).numpy()

    return {MODEL: estimate} | {name: baseline_method(name) for name in baselines}


def _measure(pair: FlowPair, methods: dict[str, FlowMethod]) -> MeasuredPair:
    frame0, frame1 = pair.read_frames()
    truth = pair.read_truth()
    # KITTI's two files differ in their values: the pixels visible in both frames have their own.
    visible = pair.read_truth(noc=True) if pair.flow_noc is not None else None
    sums: dict[str, FlowSums] = {}
    for name, method in methods.items():
        estimate = method(frame0, frame1)
        sums[name] = measure_pair(estimate, truth.flow_px, truth.valid, truth.occluded)
        if visible is not None:
            sums[name]["matched"] = measure_pair(estimate, visible.flow_px, visible.valid)["all"]
    return MeasuredPair(pair, frame0.shape[:2], sums)


def _suffix(method: str) -> str:
    return "" if method == MODEL else "_" + method.replace("-", "_")


def _set_metrics(measured: Sequence[MeasuredPair], methods: dict[str, FlowMethod]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for method in methods:
        total: FlowSums = {}
        for item in measured:
            total = add_sums(total, item.sums[method])
        metrics |= {key + _suffix(method): value for key, value in summarise(total).items()}
        by_pair = [item.epe(method) for item in measured if item.sums[method]["all"].pixels]
        metrics["epe_mean_of_pairs" + _suffix(method)] = float(np.mean(by_pair)) if by_pair else math.nan
    return metrics


def _row(item: MeasuredPair, methods: dict[str, FlowMethod]) -> dict[str, object]:
    row: dict[str, object] = {
        "pair": item.pair.name,
        "height_px": item.size[0],
        "width_px": item.size[1],
        "valid_pixels": item.sums[MODEL]["all"].pixels,
    }
    for method in methods:
        scores = summarise(item.sums[method])
        row |= {key + _suffix(method): scores[key] for key in ("epe", "fl_all", "over_3px")}
    return row


def _card(
    subject: Subject,
    set_name: str,
    root: Path,
    measured: Sequence[MeasuredPair],
    failed: Sequence[str],
    without_truth: int,
    config: FlowEvalConfig,
) -> Card:
    sizes = sorted({f"{width}x{height}" for height, width in (item.size for item in measured)})
    left_out = f"; {without_truth} pairs without ground truth left out" if without_truth else ""
    return Card(
        data_set=set_name,
        split="pairs with ground truth" + left_out,
        root=str(root),
        frames=len(measured),
        unit="frame pairs",
        failed=tuple(failed),
        resolution=f"{', '.join(sizes)} px, not resized; the model pads inside; baselines on grey images",
        masks="valid pixels of the ground truth; matched = visible in both frames (KITTI: "
        "pixels and values of "
        "the noc file), unmatched = occluded, where the set says so",
        aggregation="mean over all valid pixels of the set; epe_mean_of_pairs weighs pairs equally",
        config=dataclasses.asdict(config),
        weights_digest=subject.digest,
        model=subject.name,
        lineage=subject.lineage,
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _draw_pictures(
    measured: Sequence[MeasuredPair], methods: dict[str, FlowMethod], count: int, out: Path
) -> tuple[Picture, ...]:
    """Evenly spaced pairs and the worst of the others, `count` of each."""
    if count == 0:
        return ()
    shown = evenly_spaced(range(len(measured)), count)
    others = [index for index in range(len(measured)) if index not in shown]
    # NaN sorts first: an estimate that is not finite is the worst there is.
    others.sort(key=lambda index: -math.inf if math.isnan(measured[index].epe(MODEL)) else -measured[index].epe(MODEL))
    order = [("", index) for index in shown] + [("worst: ", index) for index in others[:count]]
    rival = next((name for name in ("dis-medium", *methods) if name in methods and name not in (MODEL, "zero")), None)
    return tuple(
        _draw_pair(measured[index], methods, rival, note, out / f"{position:03d}.png")
        for position, (note, index) in enumerate(order)
    )


def _draw_pair(item: MeasuredPair, methods: dict[str, FlowMethod], rival: str | None, note: str, path: Path) -> Picture:
    frame0, frame1 = item.pair.read_frames()
    truth = item.pair.read_truth()
    panels, columns = _flow_panels(frame0, frame1, truth, methods, rival)
    zero = f", zero {item.epe('zero'):.2f}" if "zero" in methods else ""
    other = f", {rival} {item.epe(rival):.2f}" if rival else ""
    return Picture(
        caption=f"{note}{item.pair.name}: EPE {item.epe(MODEL):.2f} px{other}{zero}",
        path=write_png(path, side_by_side(panels)),
        kind="flow",
        columns=columns,
    )


def _flow_panels(
    frame0: NDArray[np.uint8],
    frame1: NDArray[np.uint8],
    truth: FlowTruth,
    methods: dict[str, FlowMethod],
    rival: str | None,
) -> tuple[list[NDArray[np.uint8]], tuple[str, ...]]:
    scale = flow_scale(truth.flow_px, truth.valid)
    estimate = methods[MODEL](frame0, frame1)
    error = endpoint_error(estimate, truth.flow_px)
    small_truth, truth_known = shrink_known(truth.flow_px, truth.valid)
    small_error, error_known = shrink_known(error[..., None], truth.valid)
    panels = [
        frame0,
        flow_picture(small_truth, scale, truth_known),
        flow_picture(estimate, scale),
    ]
    columns = ["frame", "ground truth", "model"]
    if rival:
        panels.append(flow_picture(methods[rival](frame0, frame1), scale))
        columns.append(rival)
    panels.append(error_picture(small_error[..., 0], error_known, FULL_ERROR_PX))
    columns.append(f"model's error (0 to {FULL_ERROR_PX:.0f} px)")
    return panels, tuple(columns)

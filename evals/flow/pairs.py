"""Measures the pairs of a flow set with every method, reading and baselines in threads beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.image_files import read_ids
from mcjepa.data_prep.corpora.items import FlowPair, FlowTruth
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.flow.methods import MODEL, Flow, FlowMethods, Frames
from mcjepa.evals.flow.metrics import FlowSums, Regions, measure_regions, split_regions, summarise
from mcjepa.evals.flow.overlap import Failure, Stages, run_overlapped


@dataclass(frozen=True)
class MeasuredPair:
    """One pair's sums by method."""

    pair: FlowPair
    size: tuple[int, int]
    sums: dict[str, FlowSums]

    def epe(self, method: str) -> float:
        """Mean end-point error of the method over the pair's valid pixels, px; NaN without any."""
        return summarise(self.sums[method])["epe"]


@dataclass(frozen=True, kw_only=True)
class Truths:
    """The ground truth of a pair, cut into regions."""

    everywhere: FlowTruth
    regions: Regions
    visible: FlowTruth | None
    """KITTI's noc file: its values differ from the other's a little."""
    visible_regions: Regions


@dataclass(frozen=True, kw_only=True)
class Work:
    """A pair on its way."""

    frames: Frames
    truths: Truths
    flow: Flow | None = None


def measure_pairs(pairs: Sequence[FlowPair], methods: FlowMethods, workers: int) -> Iterator[MeasuredPair | Failure]:
    """Every pair's sums in the pairs' order, or why it has none; see `run_overlapped`."""
    stages: Stages[FlowPair, Work, Work, MeasuredPair] = Stages(
        load=lambda pair: load_pair(pair, methods),
        compute=lambda work: replace(work, flow=methods.run_model(work.frames)),
        finish=lambda work: measure_work(work, methods),
    )
    return run_overlapped(pairs, stages, workers)


def load_pair(pair: FlowPair, methods: FlowMethods) -> Work:
    """The first stage: frames and ground truth.

    Raises:
        DataError: they cannot be read, or differ in size.
    """
    frames, truths = methods.read_frames(pair), read_truths(pair)
    valid, size = truths.everywhere.valid, frames.images[0].shape[:2]
    if valid.shape != size:
        raise DataError(f"ground truth of {_text(valid.shape)}, frames of {_text(size)}; expected one size; replace it")
    return Work(frames=frames, truths=truths)


def read_truths(pair: FlowPair) -> Truths:
    """Ground truth and regions of a pair.

    Raises:
        DataError: a file is absent, unreadable or of another size, or there is no valid pixel at all.
    """
    truth = pair.read_truth()
    if not truth.valid.any():
        raise DataError("the ground truth has no valid pixel; expected some that can be scored; replace the file")
    objects = read_ids(pair.objects) if pair.objects is not None else None
    sparse = pair.flow_noc is not None
    regions = split_regions(truth.flow_px, truth.valid, truth.occluded, objects, sparse=sparse)
    visible = pair.read_truth(noc=True) if sparse else None
    chosen: Regions = {}
    if visible is not None:
        parts = split_regions(visible.flow_px, visible.valid, None, objects)
        chosen = {"matched": parts["all"]}
        chosen |= {f"matched_{name}": parts[name] for name in ("bg", "fg") if name in parts}
    return Truths(everywhere=truth, regions=regions, visible=visible, visible_regions=chosen)


def measure_work(work: Work, methods: FlowMethods) -> MeasuredPair:
    """The last stage: errors of the model's flow, and of the other methods, which it runs."""
    sums: dict[str, FlowSums] = {}
    if work.flow is not None:
        sums[MODEL] = _errors(work.flow, work.truths)
    for name, estimate in methods.others(work.frames, _scored(work.truths)).items():
        sums[name] = _errors(estimate(), work.truths)
    height, width = work.frames.images[0].shape[:2]
    return MeasuredPair(work.frames.pair, (height, width), sums)


def _errors(estimate: Flow, truths: Truths) -> FlowSums:
    sums = measure_regions(estimate, truths.everywhere.flow_px, truths.everywhere.valid, truths.regions)
    if truths.visible is not None:
        sums |= measure_regions(estimate, truths.visible.flow_px, truths.visible.valid, truths.visible_regions)
    return sums


def _scored(truths: Truths) -> NDArray[np.bool_]:
    valid = truths.everywhere.valid
    return valid if truths.visible is None else valid | truths.visible.valid


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} px"

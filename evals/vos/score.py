"""Scores masks of video objects, propagated by a model or read from files, beside copying the first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from mcjepa.data_prep.corpora import VOS_SETS
from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import ESTIMATES, MODEL, Card, Picture, Score, package_versions
from mcjepa.evals.models import EvalModel, LoadedModel
from mcjepa.evals.progress import EvalEvent, OnEvent, evenly_spaced, nothing_scored, set_folder, set_reader, silent
from mcjepa.evals.vos.drawing import MaskSink, SequenceViews, draw_sequence
from mcjepa.evals.vos.propagation import track_masks
from mcjepa.evals.vos.sequence import (
    COPY_FIRST,
    RANDOM,
    Ids,
    SequenceScorer,
    frame_place,
    object_ids,
    read_estimates,
    read_ids_of,
    require_estimates,
)
from mcjepa.evals.vos.settings import VosConfig

OFFICIAL_SEQUENCES = {"davis2017": 30, "davis2016": 20, "davis2017-test-dev": 30}
"""Sequences of the official lists."""


@dataclass
class SetFacts:
    """Counts over the sequences that went well."""

    sequences: int = 0
    """Sequences, those without ground truth too."""
    objects: int = 0
    """Objects of their first frames."""
    frames: int = 0
    """Scored frames."""
    unscored: int = 0
    """Sequences without ground truth."""
    sizes: set[str] = field(default_factory=set)
    """Sizes of masks, as WxH."""
    later: list[str] = field(default_factory=list)
    """Objects that appear after the first frame, as "SEQUENCE ID, ID"."""

    def add(self, name: str, scorer: SequenceScorer, size: tuple[int, ...], scored: bool) -> None:
        """Counts one sequence."""
        self.sequences += 1
        self.objects += len(scorer.objects)
        self.frames += scorer.frames
        self.unscored += not scored
        self.sizes.add(f"{size[1]}x{size[0]}")
        if scorer.later:
            self.later.append(f"{name} {', '.join(map(str, sorted(scorer.later)))}")


def vos_card(source: LoadedModel | Path, root: str, config: VosConfig, facts: SetFacts, failed: Sequence[str]) -> Card:
    """The card; `source` is the model, or the folder of the masks that were scored."""
    by_model = isinstance(source, LoadedModel)
    later = f"; not scored, as they appear after the first frame: {'; '.join(facts.later)}" if facts.later else ""
    return Card(
        data_set=config.set,
        split=_split(config.set, facts, len(failed)),
        root=root,
        frames=facts.frames,
        unit="frames, first and last of each sequence left out",
        failed=tuple(failed),
        resolution=f"{', '.join(sorted(facts.sizes))} px; {_encoded(config) if by_model else ''}"
        "scored at the masks' size",
        masks=f"every pixel; objects of the first frame{later}",
        head=_head(config) if by_model else "none: masks were read from files",
        aggregation="official J and F; mean over frames, then over all objects of all sequences",
        config=dataclasses.asdict(config) | {"protocol": config.protocol if by_model else "estimates"},
        source=MODEL if by_model else ESTIMATES,
        weights_digest=source.digest if isinstance(source, LoadedModel) else "",
        model=source.name if isinstance(source, LoadedModel) else f"estimates in {source}",
        lineage=source.lineage if isinstance(source, LoadedModel) else {},
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _split(name: str, facts: SetFacts, failed: int) -> str:
    official = OFFICIAL_SEQUENCES.get(name, 0)
    parts = [f"{facts.sequences} sequences, {facts.objects} objects"]
    if failed:
        parts.append(f"{failed} sequences failed and are in no mean")
    if facts.unscored:
        parts.append(f"{facts.unscored} sequences without ground truth: masks written, not scored")
    if facts.sequences < official:
        parts.append(f"the official list has {official} sequences: not comparable with published numbers")
    return "; ".join(parts)


def _encoded(config: VosConfig) -> str:
    if not config.short_side:
        return "encoded as is; "
    rounding = f", long side down to a multiple of {config.side_multiple_px}" if config.side_multiple_px > 1 else ""
    return f"encoded short side {config.short_side} px{rounding}; "


def _head(config: VosConfig) -> str:
    where = f"{config.neighbourhood} of radius {config.radius_cells} cells" if config.radius_cells else "no radius"
    first = "" if config.limit_first or not config.radius_cells else " (not on the first frame)"
    kind = "l2-normalised features" if config.normalize else "features as they are"
    return (
        f"none: label propagation ({config.protocol}), first + last {config.context_frames} frames, "
        f"top-{config.top_k}, {where}{first}, temperature {config.temperature:g}, {kind} at stride {config.stride}"
    )


PCA_FRAMES = 5
Masks = Iterator[tuple[int, Ids]]
Predict = Callable[[MaskedVideo, Ids, Callable[[int, Tensor], None] | None], Masks]
"""`fn(video, first mask, on_features)`: frame numbers and masks of the frames after the first, in order."""


@dataclass(frozen=True)
class _Methods:
    """What predicts the masks."""

    scored: Predict
    random: Predict | None = None
    """The random encoder, where it is wanted."""


@dataclass
class _ScoredSet:
    """What has been found so far."""

    rows: list[dict[str, object]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    facts: SetFacts = field(default_factory=SetFacts)


def score_vos_set(
    loaded: LoadedModel,
    root: Path,
    videos: Sequence[MaskedVideo],
    config: VosConfig,
    out: Path,
    on_event: OnEvent = silent,
) -> Score:
    """Propagates the first mask of every sequence and scores J and F of each object.

    Args:
        loaded: the model.
        root: where the set was read from, for the card.
        videos: sequences with a mask for every frame, or for the first one only: those are tracked, not scored.
        config: protocol.
        out: folder for the pictures, masks and overlays.
        on_event: progress.

    Returns:
        The score `vos/SET`: `jf`, `j_mean`, `j_recall`, `j_decay`, `f_mean`, … as parts of 1; those of copying the
        first mask end in `_copy_first`, those of the random encoder, where it is asked for, in `_random`. No metrics
        where no sequence has a ground truth.

    Raises:
        DataError: no sequence could be scored.
    """

    def tracker(model: EvalModel) -> Predict:
        return lambda video, first, on_features: track_masks(model, video, first, config, on_features)

    twin = loaded.random_model if config.random_baseline else None
    methods = _Methods(tracker(loaded.model), tracker(twin) if twin is not None else None)
    found = _run_set(methods, root, videos, config, out, on_event)
    return _score(found, vos_card(loaded, str(root), config, found.facts, found.failed), config)


def score_vos_estimates(
    estimates: Path,
    root: Path,
    videos: Sequence[MaskedVideo],
    config: VosConfig,
    out: Path,
    on_event: OnEvent = silent,
) -> Score:
    """Scores predicted masks that are files: ESTIMATES/SEQUENCE/FRAME.png.

    Args, Returns: as `score_vos_set`.

    Raises:
        DataError: there are no estimates, or no sequence could be scored.
    """
    require_estimates(estimates)

    def predict(video: MaskedVideo, first: Ids, on_features: Callable[[int, Tensor], None] | None) -> Masks:
        return read_estimates(estimates, video, object_ids(first))

    config = dataclasses.replace(config, masks=False)
    found = _run_set(_Methods(predict), root, videos, config, out, on_event)
    return _score(found, vos_card(estimates, str(root), config, found.facts, found.failed), config)


def _run_set(
    methods: _Methods, root: Path, videos: Sequence[MaskedVideo], config: VosConfig, out: Path, on_event: OnEvent
) -> _ScoredSet:
    found = _ScoredSet()
    chosen = evenly_spaced(videos, config.max_sequences)
    shown = {video.name for video in evenly_spaced(chosen, config.pictures)} if config.pictures else set()
    total = sum(len(video.frames) for video in chosen)
    done = 0
    for video in chosen:

        def show(index: int, before: int = done) -> None:
            event = EvalEvent(score=f"vos/{config.set}", phase="frames", done=before + index + 1, total=total)
            on_event(event)

        try:
            _run_sequence(methods, video, config, out, found, show, video.name in shown)
        except (DataError, OSError, ValueError, cv2.error) as error:
            found.failed.append(f"{video.name}: {error}")
        done += len(video.frames)
        on_event(EvalEvent(score=f"vos/{config.set}", phase="frames", done=done, total=total))
    if not found.facts.sequences:
        raise nothing_scored(f"video set {config.set} at {root}", found.failed, "sequences with masks")
    return found


def _run_sequence(
    methods: _Methods,
    video: MaskedVideo,
    config: VosConfig,
    out: Path,
    found: _ScoredSet,
    on_frame: Callable[[int], None],
    drawn: bool,
) -> None:
    """Adds one sequence to what has been found: all of it or, on an error, nothing."""
    count, has_truth = len(video.frames), len(video.masks) == len(video.frames)
    if count < 3 or not (has_truth or len(video.masks) == 1):
        raise DataError(
            f"{count} frames and {len(video.masks)} masks; expected 3 or more frames and a mask for each of them or "
            "for the first only; leave the sequence out"
        )
    first = read_ids_of(video, 0)
    scorer = SequenceScorer(video.name, first)
    views = SequenceViews(first, late=count - 2, kept=set(evenly_spaced(range(count), PCA_FRAMES)) if drawn else set())
    asked = config if has_truth else dataclasses.replace(config, masks=True)
    with MaskSink(video, out, asked) as sink:
        sink.add(0, first)
        twin = methods.random(video, first, None) if methods.random and has_truth else None
        for index, mask in methods.scored(video, first, views.keep_features if drawn else None):
            sink.add(index, mask)
            truth = read_ids_of(video, index) if has_truth and index < count - 1 else None
            if truth is not None:
                scorer.add(truth, mask, frame_place(video, index), next(twin)[1] if twin else None)
            views.see(index, mask, truth)
            on_frame(index)
    rows = scorer.rows() if has_truth else []
    pictures = list(draw_sequence(video, views, out / video.name)) if drawn else []
    found.rows.extend(rows)
    found.pictures.extend(pictures)
    found.facts.add(video.name, scorer, first.shape, scored=has_truth)


def _score(found: _ScoredSet, card: Card, config: VosConfig) -> Score:
    return Score(
        name=f"vos/{config.set}",
        metrics=_set_metrics(found.rows) if found.rows else {},
        card=card,
        rivals=_rivals(found.rows),
        table=tuple(found.rows),
        pictures=tuple(found.pictures),
    )


def _rivals(rows: Sequence[dict[str, object]]) -> tuple[str, ...]:
    """The baselines that the rows have."""
    return tuple(name for name in (COPY_FIRST, RANDOM) if rows and f"j_mean_{name}" in rows[0])


def _set_metrics(rows: Sequence[dict[str, object]]) -> dict[str, float]:
    """Means over all objects of all sequences (the official average), and J&F."""
    keys = [key for key in rows[0] if key[:2] in ("j_", "f_")]
    metrics = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    for suffix in ("", *(f"_{name}" for name in _rivals(rows))):
        metrics[f"jf{suffix}"] = (metrics[f"j_mean{suffix}"] + metrics[f"f_mean{suffix}"]) / 2
    return metrics


def run_vos(loaded: LoadedModel, config: VosConfig, out: Path, on_event: OnEvent) -> Score:
    """Scores a model.

    Raises:
        DataError: the set is unknown or missing, or no sequence could be scored.
    """
    root = set_folder(config.root, config.set)
    videos = set_reader(VOS_SETS, config.set, "vos.set")(root)
    return score_vos_set(loaded, root, videos, config, out / "vos" / config.set, on_event)


def score_estimates(estimates: Path, config: VosConfig, out: Path, on_event: OnEvent = silent) -> Score:
    """Scores masks that are files, ESTIMATES/SEQUENCE/FRAME.png, on the set that the settings name; no model is read.

    Raises:
        DataError: the set is unknown or missing, or no sequence could be scored.
    """
    read = set_reader(VOS_SETS, config.set, "vos.set")
    root = set_folder(config.root, config.set)
    return score_vos_estimates(estimates, root, read(root), config, out / "vos" / config.set, on_event)

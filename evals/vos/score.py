"""Scores features by propagating the first frame's mask over a video, beside copying that mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_prep.corpora.items import MaskedVideo
from data_prep.errors import DataError
from evals.cards import Card, Picture, Score, package_versions
from evals.model_under_test import ModelUnderTest, Subject, features_by_stride, image_tensor, map_of_stride
from evals.pictures import overlay_labels, pca_pictures, side_by_side, stacked, write_png
from evals.progress import EvalEvent, OnEvent, evenly_spaced, silent
from evals.vos.config import VosConfig
from evals.vos.metrics import score_object, summarise_sequence
from evals.vos.propagation import labels_to_mask, one_hot_labels, propagate_labels

LONG_SIDE_MULTIPLE_PX = 64
PCA_FRAMES = 5
BASELINE = "copy_first"


@dataclass(frozen=True, kw_only=True)
class TrackedVideo:
    """One sequence's masks and what was kept for its pictures."""

    truth: NDArray[np.uint8]
    """(T, H, W) object ids."""
    predicted: NDArray[np.uint8]
    """(T, H, W); the first is the given mask."""
    pca: list[NDArray[np.uint8]] = field(default_factory=list)
    """Feature colours of some frames."""
    pca_frames: list[int] = field(default_factory=list)
    """Which frames those are."""


def score_vos_set(
    subject: Subject,
    root: Path,
    videos: Sequence[MaskedVideo],
    config: VosConfig,
    out: Path,
    on_event: OnEvent = silent,
) -> Score:
    """Propagates the first mask of every sequence and scores J and F of each object.

    Args:
        subject: the model.
        root: where the set was read from, for the card.
        videos: sequences with a mask for every frame.
        config: protocol.
        out: folder for the pictures.
        on_event: progress.

    Returns:
        The score `vos/SET`: `jf`, `j_mean`, `j_recall`, `j_decay`, `f_mean`, … as parts of 1; those of
            copying the
        first mask end in `_copy_first`.

    Raises:
        DataError: no sequence could be scored.
    """
    name = f"vos/{config.set}"
    rows: list[dict[str, object]] = []
    pictures: list[Picture] = []
    failed: list[str] = []
    sizes: set[str] = set()
    frames = 0
    chosen = evenly_spaced(videos, config.max_sequences)
    shown = {video.name for video in evenly_spaced(chosen, config.pictures)} if config.pictures else set()
    for index, video in enumerate(chosen):
        try:
            tracked = track_video(subject.model, video, config, keep_pca=video.name in shown)
            rows.extend(_object_rows(video.name, tracked))
        except (DataError, OSError, ValueError, cv2.error) as error:
            failed.append(f"{video.name}: {error}")
        else:
            frames += len(tracked.truth) - 2
            sizes.add(f"{tracked.truth.shape[2]}x{tracked.truth.shape[1]}")
            if video.name in shown:
                pictures.extend(_draw_pictures(video, tracked, out / video.name))
        on_event(EvalEvent(score=name, phase="sequences", done=index + 1, total=len(chosen)))
    if not rows:
        reason = failed[0] if failed else "no sequence"
        raise DataError(f"video set {config.set} at {root}: {reason}; expected sequences with masks; check the folder")
    card = _card(subject, root, config, (frames, len(rows), len(chosen) - len(failed)), sorted(sizes), failed)
    return Score(
        name=name,
        metrics=_set_metrics(rows),
        card=card,
        rivals=(BASELINE,),
        table=tuple(rows),
        pictures=tuple(pictures),
    )


def track_video(model: ModelUnderTest, video: MaskedVideo, config: VosConfig, keep_pca: bool = False) -> TrackedVideo:
    """Masks of all frames from the first frame's mask.

    Raises:
        DataError: a frame cannot be read, the masks' sizes differ, or there are fewer than 3 frames.
    """
    truth = _read_masks(video)
    count = len(truth)
    kept: dict[int, NDArray] = {}
    wanted = set(evenly_spaced(range(count), PCA_FRAMES)) if keep_pca else set()
    size = encoded_size(truth.shape[1:], config.short_side)

    def features() -> Iterator[Tensor]:
        for index in range(count):
            map_Chw = encode_frame(model, video.read_frame(index), size, config.stride)
            if index in wanted:
                kept[index] = map_Chw.numpy()
            yield map_Chw

    grid = tuple(-(-side // config.stride) for side in size)
    first = one_hot_labels(truth[0], int(truth[0].max()), grid[0], grid[1])
    predicted = [truth[0]]
    for _, labels in propagate_labels(features(), first, config):
        predicted.append(labels_to_mask(labels, config.stride, size, truth.shape[1:]))
    pca = pca_pictures(np.stack([kept[index] for index in sorted(kept)])) if kept else []
    return TrackedVideo(truth=truth, predicted=np.stack(predicted), pca=pca, pca_frames=sorted(kept))


def _read_masks(video: MaskedVideo) -> NDArray[np.uint8]:
    """Masks of all frames, (T, H, W) object ids."""
    masks = [video.read_mask(index) for index in range(len(video.masks))]
    sizes = sorted({f"{mask.shape[1]}x{mask.shape[0]}" for mask in masks})
    if len(masks) < 3 or len(masks) != len(video.frames) or len(sizes) != 1:
        raise DataError(
            f"sequence {video.name} has {len(video.frames)} frames and {len(masks)} masks of sizes {sizes}; "
            "expected 3 or more frames, each with a mask of one size; leave the sequence out"
        )
    return np.stack(masks)


def encoded_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(H, W) to encode at: the short side as asked, the long one rounded down to 64 px (DINO's rule)."""
    if short_side == 0:
        return size
    long_side = int(max(size) * short_side / min(size)) // LONG_SIDE_MULTIPLE_PX * LONG_SIDE_MULTIPLE_PX
    long_side = max(long_side, short_side)
    return (long_side, short_side) if size[0] > size[1] else (short_side, long_side)


def encode_frame(model: ModelUnderTest, frame: NDArray[np.uint8], size: tuple[int, int], stride: int) -> Tensor:
    """Features (C, h, w) of one RGB frame at that size (H, W); cells beyond the frame are cut off."""
    if frame.shape[:2] != size:
        resized = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        frame = np.asarray(resized, np.uint8)
    map_Chw = map_of_stride(features_by_stride(model, image_tensor(frame)), stride)[0]
    return map_Chw[:, : -(-size[0] // stride), : -(-size[1] // stride)]


def _object_rows(sequence: str, tracked: TrackedVideo) -> list[dict[str, object]]:
    """One row an object of the first frame: J and F statistics of the prediction and of the copied first
    mask."""
    copied = np.broadcast_to(tracked.truth[:1], tracked.truth.shape)
    objects = [int(label) for label in np.unique(tracked.truth[0]) if label]
    if not objects:
        raise DataError(f"the first mask of {sequence} is empty; expected an object; leave the sequence out")
    rows = []
    for label in objects:
        row: dict[str, object] = {"sequence": sequence, "object": label, "frames": len(tracked.truth) - 2}
        for suffix, prediction in (("", tracked.predicted), (f"_{BASELINE}", copied)):
            for measure, values in zip("jf", score_object(tracked.truth, prediction, label), strict=True):
                statistics = dataclasses.asdict(summarise_sequence(values))
                row |= {f"{measure}_{key}{suffix}": value for key, value in statistics.items()}
        rows.append(row)
    return rows


def _set_metrics(rows: Sequence[dict[str, object]]) -> dict[str, float]:
    """Means over all objects of all sequences (the official average), and J&F."""
    keys = [key for key in rows[0] if key[:2] in ("j_", "f_")]
    metrics = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    for suffix in ("", f"_{BASELINE}"):
        metrics[f"jf{suffix}"] = (metrics[f"j_mean{suffix}"] + metrics[f"f_mean{suffix}"]) / 2
    return metrics


def _card(
    subject: Subject,
    root: Path,
    config: VosConfig,
    counts: tuple[int, int, int],
    sizes: Sequence[str],
    failed: Sequence[str],
) -> Card:
    frames, objects, sequences = counts
    resized = f"short side {config.short_side} px, long side down to a multiple of 64" if config.short_side else "as is"
    radius = f"radius {config.radius_cells} cells" if config.radius_cells else "no radius"
    return Card(
        data_set=config.set,
        split=f"{sequences} sequences, {objects} objects",
        root=str(root),
        frames=frames,
        unit="frames, first and last of each sequence left out",
        failed=tuple(failed),
        resolution=f"{', '.join(sizes)} px; encoded {resized}; scored at the masks' size",
        masks="every pixel; objects of the first frame",
        head=f"none: label propagation, first + last {config.context_frames} frames, top-{config.top_k}, "
        f"{radius}, temperature {config.temperature:g}, l2-normalised features at stride {config.stride}",
        aggregation="official J and F; mean over frames, then over all objects of all sequences",
        config=dataclasses.asdict(config),
        weights_digest=subject.digest,
        model=subject.name,
        lineage=subject.lineage,
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _draw_pictures(video: MaskedVideo, tracked: TrackedVideo, out: Path) -> Iterator[Picture]:
    """A late frame with the masks, and the features' main colours over the sequence."""
    late = max(1, len(video.frames) - 2)
    frame = video.read_frame(late)
    masks = (tracked.truth[late], tracked.predicted[late], tracked.truth[0])
    panels = [frame, *(overlay_labels(frame, mask, clear=0) for mask in masks)]
    yield Picture(
        caption=f"{video.name}, frame {late} of {len(video.frames)}",
        path=write_png(out / "masks.png", side_by_side(panels)),
        kind="vos",
        columns=("frame", "truth", "model", "first mask copied"),
    )
    if tracked.pca:
        frames = [video.read_frame(index) for index in tracked.pca_frames]
        size = frames[0].shape[1::-1]
        colours = [
            np.asarray(cv2.resize(colour, size, interpolation=cv2.INTER_NEAREST), np.uint8) for colour in tracked.pca
        ]
        strip = stacked([side_by_side(frames), side_by_side(colours)])
        yield Picture(
            caption=f"{video.name}: features' main directions as red, green, blue, the same over the video",
            path=write_png(out / "features.png", strip),
            kind="features",
            columns=tuple(f"frame {index}" for index in tracked.pca_frames),
        )

"""Scores frozen features by a segmentation probe, beside the same probe on a random encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import Card, Score, package_versions
from mcjepa.evals.models import EvalModel, LoadedModel, McJepaEvalModel, device_of, random_twin
from mcjepa.evals.probe.cache import FeatureCache
from mcjepa.evals.probe.feature_file import FeatureFile
from mcjepa.evals.probe.fitting import ProbeRun, features_of, make_fit
from mcjepa.evals.probe.head import PixelClassifier, predict_labels
from mcjepa.evals.probe.images import LabelledSet, images_digest, read_labelled_set
from mcjepa.evals.probe.metrics import confusion_matrix, mean_iou, pixel_accuracy
from mcjepa.evals.probe.results import (
    ProbedEncoder,
    ProbedHead,
    draw_confusion,
    draw_overlays,
    image_rows,
    metrics_of,
    total_confusion,
    write_tables,
)
from mcjepa.evals.probe.settings import ProbeConfig, both_sides, describe_protocol
from mcjepa.evals.progress import EvalEvent, OnEvent, evenly_spaced, silent


def run_probe(loaded: LoadedModel, config: ProbeConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    """Probes frozen features on the set that the settings name.

    Raises:
        DataError: the set is unknown or missing, or has nothing that can be scored.
    """
    return score_probe(loaded, read_labelled_set(config, "probe.set"), config, seed, out / score_name(config), on_event)


def score_name(config: ProbeConfig) -> str:
    """`probe/SET` of the linear head, `probe-knn/SET` of the nearest neighbours; also the folder of its files."""
    return f"{'probe' if config.head == 'linear' else 'probe-knn'}/{config.set}"


def score_probe(
    loaded: LoadedModel,
    data: LabelledSet,
    config: ProbeConfig,
    seed: int,
    out: Path,
    on_event: OnEvent = silent,
) -> Score:
    """Fits a head to frozen features and scores it; again on the random twin if the settings ask for it.

    Args:
        loaded: the model, and its random twin where the baseline is wanted.
        data: training and validation images with labels.
        config: protocol.
        seed: of the head, its batches and the random encoder, where `config.seeds` names none.
        out: folder for tables and pictures, RESULTS/KIND/SET; features are cached in `features` beside RESULTS where
            the settings name no folder.
        on_event: progress.

    Returns:
        The score `probe/SET` or `probe-knn/SET`: `miou`, `pixel_accuracy`, `mean_accuracy`, `iou_CLASS` (all in %),
        `…_std` with several seeds; the random encoder's with the suffix `_random`.

    Raises:
        DataError: no training or no validation image could be read, or the features have no room.
    """
    name, seeds = score_name(config), config.seeds or (seed,)
    data = dataclasses.replace(
        data, train=evenly_spaced(data.train, config.max_train), val=evenly_spaced(data.val, config.max_val)
    )
    root = Path(config.cache) if config.cache else out.parent.parent.parent / "features"
    cache = FeatureCache(
        root,
        most_gib=config.cache_gib,
        dtype=config.cache_dtype,
        batch=config.encode_batch,
        keep=config.keep_features,
    )
    with cache:
        run = ProbeRun(
            data=data,
            config=config,
            cache=cache,
            digests=_digests(data, name, on_event),
            shown=tuple(item.name for item in evenly_spaced(data.val, config.pictures)) if config.pictures else (),
            on_event=on_event,
        )
        result = probe_encoder(loaded.model, run, seeds, name)
        random = _probe_random(loaded, run, seeds, name) if config.random_baseline else None
    write_tables(out, data.classes, seeds, result, random)
    pictures = draw_overlays(data.val, result, random, data.classes, out)
    if config.pictures:
        pictures.append(draw_confusion(total_confusion(result), data.classes, out))
    return Score(
        name=name,
        metrics=metrics_of(result, data.classes) | (metrics_of(random, data.classes, "_random") if random else {}),
        card=_card(loaded, data, config, seeds, result),
        rivals=("random",) if random is not None else (),
        table=tuple(image_rows(result, random)),
        pictures=tuple(pictures),
    )


def _digests(data: LabelledSet, name: str, on_event: OnEvent) -> tuple[str, str]:
    total = len(data.train) + len(data.val)

    def digest(part: Sequence, before: int) -> str:
        def tell(done: int) -> None:
            on_event(EvalEvent(score=name, phase="digest", done=before + done, total=total))

        return images_digest(part, tell)

    return digest(data.train, 0), digest(data.val, len(data.train))


def _probe_random(loaded: LoadedModel, run: ProbeRun, seeds: Sequence[int], name: str) -> ProbedEncoder | None:
    """The same probe on random encoders, one per seed where the model is ours, else on the model's own twin."""
    if loaded.random_model is None:
        return None
    named = f"{name} (random encoder)"
    if not isinstance(loaded.model, McJepaEvalModel):
        return probe_encoder(loaded.random_model, run, seeds, named)
    heads: list[ProbedHead] = []
    for seed in seeds:
        twin: EvalModel = random_twin(loaded.model, seed)
        found = probe_encoder(twin, run, (seed,), named)
        heads += found.heads
    return dataclasses.replace(found, heads=tuple(heads))


def probe_encoder(model: EvalModel, run: ProbeRun, seeds: Sequence[int], name: str) -> ProbedEncoder:
    """Fits one head per seed to the training images and scores each on the validation images.

    Args:
        model: the encoder.
        run: data, protocol, cache.
        seeds: of the heads.
        name: of the score, for progress.

    Raises:
        DataError: no training or no validation image could be read, or the features have no room.
    """

    def tell(phase: str, done: int, total: int) -> None:
        run.on_event(EvalEvent(score=name, phase=phase, done=done, total=total))

    fit, train_failed, trained_on = make_fit(model, run, tell)
    val = features_of(model, run, training=False, tell=tell)
    device = device_of(model)
    heads = []
    for seed in seeds:
        classifier = fit(seed)
        heads.append(_score_head(classifier, val, run, device, lambda done: tell("predict", done, len(val))))
    return ProbedEncoder(
        heads=tuple(heads),
        failed=(*train_failed, *val.failed),
        trained_on=trained_on,
        sizes=tuple(sorted({f"{image.labels.shape[1]}x{image.labels.shape[0]}" for image in val})),
        channels=sum(some_map.shape[0] for some_map in val[0].tiles[0].maps),
    )


def _score_head(
    classifier: PixelClassifier, val: FeatureFile, run: ProbeRun, device: torch.device, on_image: Callable[[int], None]
) -> ProbedHead:
    classes = len(run.data.classes)
    total = np.zeros((classes, classes), np.int64)
    by_image, predictions = {}, {}
    for done, image in enumerate(val, start=1):
        predicted = predict_labels(classifier, image, device)
        confusion = confusion_matrix(image.labels.numpy(), predicted, classes)
        total += confusion
        by_image[image.name] = (int(confusion.sum()), 100.0 * mean_iou(confusion), 100.0 * pixel_accuracy(confusion))
        if image.name in run.shown:
            predictions[image.name] = predicted
        on_image(done)
    if not total.sum():
        raise DataError(
            f"all {len(val)} validation images of {run.data.root} are void; expected pixels with a class; "
            "check the labels"
        )
    return ProbedHead(confusion=total, by_image=by_image, predictions=predictions)


def _card(
    loaded: LoadedModel, data: LabelledSet, config: ProbeConfig, seeds: Sequence[int], result: ProbedEncoder
) -> Card:
    several = ", mean over the seeds" if len(seeds) > 1 else ""
    return Card(
        data_set=config.set,
        split=f"fitted to {result.trained_on} images of {config.train_split}, scored on {config.val_split}",
        root=str(data.root),
        frames=len(result.heads[0].by_image),
        unit="validation images",
        failed=result.failed,
        resolution=_resolution(config, result),
        masks=f"all pixels but void (255); {len(data.classes)} classes: {', '.join(data.classes)}",
        head=f"protocol {describe_protocol(config)}: {_head(config, result)}",
        schedule=_schedule(config),
        aggregation="one confusion matrix over all pixels; mean over the classes that occur in truth or "
        f"prediction, %{several}",
        seeds=tuple(seeds),
        config=dataclasses.asdict(config) | {"trained_on": result.trained_on},
        weights_digest=loaded.digest,
        model=loaded.name,
        lineage=loaded.lineage,
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _resolution(config: ProbeConfig, result: ProbedEncoder) -> str:
    fitted = "not resized" if config.resize_px == (0, 0) else "resized into {} x {} px".format(*config.resize_px)
    test = "whole images"
    if both_sides(config.window_px) != (0, 0):
        high, wide = both_sides(config.window_px)
        down, right = both_sides(config.window_stride_px or config.window_px)
        test = f"test in windows of {high}x{wide} px every {down}x{right} px, scores averaged where they overlap"
    sizes = ", ".join(result.sizes[:8]) + (", …" if len(result.sizes) > 8 else "")
    return f"{sizes} px, {fitted}, {test}, padded to multiples of 64 by their edge; scored at the labels' size"


def _head(config: ProbeConfig, result: ProbedEncoder) -> str:
    levels = f"frozen features of strides {', '.join(str(2**level) for level in sorted(config.levels))}"
    cached = f"features cached in {config.cache_dtype}"
    grid = f"{levels}, {result.channels} channels concatenated on the finest grid"
    if config.head == "knn":
        return (
            f"{grid}, standardised with the training features' mean and deviation, brought to length 1; {cached}; the "
            f"{config.knn_k} nearest of at most {config.knn_cells} training cells vote with exp(cosine / "
            f"{config.knn_temperature:g}) for the classes of their pixels"
        )
    if config.augment == "mmseg":
        norm = "batch normalisation over the whole batch (on one process what SyncBN is on several)"
        images = (
            f"training images augmented as mmsegmentation does, encoded in every step in float32; validation {cached}"
        )
    else:
        norm = (
            "batch normalisation over the whole batch"
            if config.norm == "batch"
            else "standardised with the training features' mean and deviation"
        )
        images = f"no augmentation; {cached}"
    return f"{grid}, {norm}, one 1x1 convolution; {images}"


def _schedule(config: ProbeConfig) -> str:
    if config.head == "knn":
        return "none"
    high, wide = both_sides(config.crop_px)
    crop = f"random windows of {high}x{wide} px" if high else "whole images"
    return (
        f"AdamW lr {config.lr:g}, weight decay {config.weight_decay:g}, {config.steps} steps, linear warm-up "
        f"{config.warmup_steps}, poly power {config.poly_power:g}, batch {config.batch}, {crop}, loss on every "
        f"{config.loss_stride_px}. pixel"
    )

"""Scores frozen features by image classification: nearest neighbours and a linear head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from mcjepa.evals.cards import Card, Score, package_versions
from mcjepa.evals.classification.features import PooledFeatureCache
from mcjepa.evals.classification.heads import knn_predictions, train_linear
from mcjepa.evals.classification.images import ClassifyData, read_class_folders
from mcjepa.evals.classification.results import (
    ClassifiedModel,
    accuracies,
    class_rows,
    draw_pictures,
    main_classifier,
    write_tables,
)
from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.models import EvalModel, LoadedModel
from mcjepa.evals.progress import EvalEvent, OnEvent, set_folder, silent

EVENTS = 200


def score_classify(
    loaded: LoadedModel, data: ClassifyData, config: ClassifyConfig, seed: int, out: Path, on_event: OnEvent = silent
) -> Score:
    """Encodes both splits and classifies the validation images; again with the random twin if the settings ask for it.

    Args:
        loaded: the model, and its random twin where the baseline is wanted.
        data: training and validation images.
        config: protocol.
        seed: of the linear head.
        out: folder of tables and pictures, RESULTS/classify/SET; features are cached beside RESULTS where the settings
            name no folder.
        on_event: progress.

    Returns:
        The score `classify/SET`: `knnK_top1`, `linear_top1` and, from six classes on, `…_top5`, all in %; the random
        encoder's with the suffix `_random`; `linear_top1_majority` of the most frequent training class.

    Raises:
        DataError: no image of a split can be read, or the disk is full.
    """
    name = f"classify/{config.set}"
    folder = Path(config.cache) if config.cache else out.parent.parent.parent / "pooled-features"
    cache = PooledFeatureCache(
        folder=folder, model=loaded.kept_as, device=getattr(loaded.model, "device", torch.device("cpu"))
    )
    result = classify_model(loaded.model, cache, data, config, (seed, name, on_event))
    metrics = accuracies(result, len(data.classes), "")
    rivals: tuple[str, ...] = ()
    if config.random_baseline and loaded.random_model is not None:
        who = f"random twin {seed} of {loaded.kept_as}" if loaded.kept_as else ""
        twin = dataclasses.replace(cache, model=who)
        told = (seed, f"{name} (random encoder)", on_event)
        random = classify_model(loaded.random_model, twin, data, config, told)
        metrics |= accuracies(random, len(data.classes), "_random")
        rivals = ("random",)
    majority = int(np.bincount(result.train.labels).argmax())
    shown = main_classifier(result)
    metrics[f"{shown}_top1_majority"] = 100.0 * float((result.val.labels == majority).mean())
    write_tables(result.predictions, data, result.val, out)
    return Score(
        name=name,
        metrics=metrics,
        card=_card(loaded, data, config, seed, result),
        rivals=(*rivals, "majority"),
        table=tuple(class_rows(data, result)),
        pictures=draw_pictures(main_classifier(result), result.predictions[shown], data, result.val, config, out),
    )


def classify_model(
    model: EvalModel,
    cache: PooledFeatureCache,
    data: ClassifyData,
    config: ClassifyConfig,
    told: tuple[int, str, OnEvent],
) -> ClassifiedModel:
    """Encodes both splits, or reads them, and predicts the validation images by every classifier.

    Args:
        model: the encoder.
        cache: where its features are or go.
        data: both splits.
        config: protocol.
        told: seed, name and listener.
    """
    seed, name, on_event = told

    def tell(phase: str, done: int, total: int) -> None:
        if done == total or done % max(1, total // EVENTS) == 0 or phase.startswith("encode"):
            on_event(EvalEvent(score=name, phase=phase, done=done, total=total))

    train = cache.features(model, data.train, config, lambda n: tell("encode training", n, len(data.train)))
    val = cache.features(model, data.val, config, lambda n: tell("encode validation", n, len(data.val)))
    ks = [k for k in config.knn_k if k <= len(train)] or [len(train)]
    classes = len(data.classes)
    votes = knn_predictions(train, val, classes, ks, config.knn_temperature, lambda n: tell("neighbours", n, len(val)))
    predictions = {f"knn{k}": found for k, found in votes.items()}
    linear = None
    if config.linear:
        linear = train_linear(train, classes, config, seed, lambda n, total: tell("head", n, total))
        predictions["linear"] = linear.predict(val)
    if not config.keep_features:
        cache.remove(data.train, config)
        cache.remove(data.val, config)
    return ClassifiedModel(train=train, val=val, predictions=predictions, linear=linear)


def _card(loaded: LoadedModel, data: ClassifyData, config: ClassifyConfig, seed: int, result: ClassifiedModel) -> Card:
    strides = ", ".join(str(2**level) for level in sorted(config.levels))
    left_out = [k for k in config.knn_k if k > len(result.train)]
    neighbours = ", ".join(name.removeprefix("knn") for name in result.predictions if name != "linear")
    return Card(
        data_set=config.set,
        split=f"trained on {len(result.train)} images of train, scored on val",
        root=str(data.root),
        frames=len(result.val),
        unit="validation images",
        failed=(*(f"train/{why}" for why in result.train.failed), *(f"val/{why}" for why in result.val.failed)),
        resolution=f"turned upright by EXIF, short side to {config.resize_px} px ({config.interpolation}, Pillow, "
        f"antialiased), central square of {config.crop_px} px",
        masks=f"whole images; {len(data.classes)} classes, the folders of train in the order of their names",
        head=f"global average of the maps of strides {strides}, concatenated ({result.train.channels} channels); k-NN: "
        f"brought to length 1, {neighbours} neighbours by cosine, votes exp(s / {config.knn_temperature:g})"
        f"{f' ({left_out} left out: too few training images)' if left_out else ''}; {_linear_head(result)}",
        schedule=_schedule(config, result),
        aggregation="part of the images whose class comes first (top1) or among the first five (top5), %; `majority` "
        "is the most frequent training class",
        seeds=(seed,),
        config=dataclasses.asdict(config),
        weights_digest=loaded.digest,
        model=loaded.name,
        lineage=loaded.lineage,
        versions=package_versions("torch", "numpy", "pillow", "opencv-python-headless"),
    )


def _linear_head(result: ClassifiedModel) -> str:
    return "linear: standardised by channel, one layer" if result.linear else "no linear head"


def _schedule(config: ClassifyConfig, result: ClassifiedModel) -> str:
    if result.linear is None:
        return "none"
    rates = ", ".join(f"{lr:g}" for lr in config.linear_lrs)
    how = f"by {result.linear.chosen_on} held-out training images" if result.linear.chosen_on else "by training loss"
    return (
        f"SGD momentum 0.9, cosine to 0, {config.linear_epochs} epochs of {config.linear_batch}, no augmentation; lr "
        f"{result.linear.lr:g} chosen {how} from {rates}, then trained on all"
    )


def run_classify(loaded: LoadedModel, config: ClassifyConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    """Classifies by frozen features.

    Raises:
        DataError: the folder is missing, or has nothing that can be scored.
    """
    data = read_class_folders(set_folder(config.root, config.set), config.max_train, config.max_val)
    return score_classify(loaded, data, config, seed, out / "classify" / config.set, on_event)

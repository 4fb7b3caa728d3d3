"""Fine-tunes a model with UperNet on a labelled set and scores it: mean IoU, card, table by image, overlays.

The test is mmsegmentation's protocol: the whole image or sliding windows, images fitted into `image_scale`, logits
brought back to the labels' size, their softmax averaged over scales and mirrors. Legend: K classes, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Card, Picture, Score, package_versions
from mcjepa.evals.finetune.checkpoint import Keeper, TrainingProgress, tensors_digest
from mcjepa.evals.finetune.data import TrainingSamples
from mcjepa.evals.finetune.model import Segmenter, Trainable, parameter_groups, resize_to, trainable_of
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.finetune.train import make_optimizer, require_equal_on_ranks, train
from mcjepa.evals.models import LoadedModel
from mcjepa.evals.pictures import class_legend, overlay_labels, side_by_side, write_png
from mcjepa.evals.probe.images import (
    LabelledSet,
    fitted_size,
    images_digest,
    read_labelled,
    read_labelled_set,
    resize_image,
    window_boxes,
)
from mcjepa.evals.probe.metrics import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy
from mcjepa.evals.probe.results import metric_names
from mcjepa.evals.progress import EvalEvent, OnEvent, evenly_spaced, nothing_scored, silent


@dataclass(frozen=True, kw_only=True)
class FinetunedResult:
    """What the test found."""

    by_image: dict[str, NDArray[np.int64]]
    """Confusion matrix (K, K) of each validation image."""
    predictions: dict[str, NDArray[np.uint8]]
    """Labels (H, W) of the images that are shown."""
    failed: tuple[str, ...]
    """ "name: reason" of validation images that could not be read."""
    progress: TrainingProgress
    """Of the training."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Over all images."""
        return np.sum(list(self.by_image.values()), axis=0)


def assemble_score(
    loaded: LoadedModel, data: LabelledSet, config: FinetuneConfig, seed: int, result: FinetunedResult, out: Path
) -> Score:
    """The score `finetune/SET`, with pictures written to `out`."""
    confusion = result.confusion
    return Score(
        name=f"finetune/{config.set}",
        metrics={
            **_metrics(confusion, data.classes),
            **{f"{name}_majority": value for name, value in _metrics(constant_prediction(confusion), ()).items()},
        },
        card=_card(loaded, data, config, seed, result),
        rivals=("majority",),
        table=tuple(_rows(result)),
        pictures=tuple(_draw_pictures(data, result, out)),
    )


def constant_prediction(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """The confusion matrix that predicting the truth's most frequent class everywhere would have."""
    truth = confusion.sum(1)
    constant = np.zeros_like(confusion)
    constant[:, int(truth.argmax())] = truth
    return constant


def _metrics(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    metrics = {"miou": 100.0 * mean_iou(confusion), "pixel_accuracy": 100.0 * pixel_accuracy(confusion)}
    for name, value in zip(metric_names(classes), iou_per_class(confusion) if classes else (), strict=True):
        if np.isfinite(value):
            metrics[f"iou_{name}"] = 100.0 * float(value)
    return metrics


def _rows(result: FinetunedResult) -> Iterator[dict[str, object]]:
    for name, confusion in result.by_image.items():
        yield {
            "image": name,
            "counted_pixels": int(confusion.sum()),
            "miou": 100.0 * mean_iou(confusion),
            "pixel_accuracy": 100.0 * pixel_accuracy(confusion),
        }


def _card(loaded: LoadedModel, data: LabelledSet, config: FinetuneConfig, seed: int, result: FinetunedResult) -> Card:
    long, short = config.image_scale
    height, width = config.crop_px
    return Card(
        data_set=config.set,
        split=f"fine-tuned on {_trained_on(data, config)} images of {config.train_split}, scored on {config.val_split}",
        root=str(data.root),
        frames=len(result.by_image),
        unit="validation images",
        failed=(*(f"training: {failure}" for failure in result.progress.failed), *result.failed),
        resolution=f"fitted into {long}x{short} px{_scales(config)}, {_test(config)}; scored at the labels' size",
        masks=f"all pixels but void (255); {len(data.classes)} classes: {', '.join(data.classes)}",
        head=f"whole encoder trained with UperNet: levels {', '.join(map(str, config.levels))}, LayerNorm on each, "
        f"{config.channels} channels, pools {', '.join(map(str, config.pool_scales))}, auxiliary FCN weight "
        f"{config.auxiliary_weight:g}; batch normalisation over {config.micro_batch} images",
        schedule=f"AdamW lr {config.lr:g}, {config.lr_decay:g} a {config.lr_decay_by} down, weight decay "
        f"{config.weight_decay:g} but on norms and biases, drop-path {config.drop_path:g}; {config.steps} steps of "
        f"{config.batch}, warm-up {config.warmup_steps}, poly {config.poly_power:g}; mmsegmentation's windows: "
        f"{height}x{width} px of images at 0.5 to 2 of their size, at most 3/4 of one class, mirrored, colours "
        f"distorted; {config.precision}",
        aggregation="one confusion matrix over all pixels; mean over the classes that occur in truth or prediction, "
        "%; `majority` is the best constant prediction",
        seeds=(seed,),
        config=dataclasses.asdict(config) | {"trained_on": _trained_on(data, config)},
        weights_digest=loaded.digest,
        model=loaded.name,
        lineage=loaded.lineage,
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _trained_on(data: LabelledSet, config: FinetuneConfig) -> int:
    return min(len(data.train), config.max_train or len(data.train))


def _scales(config: FinetuneConfig) -> str:
    factors = "" if config.test_scales == (1.0,) else f" times {', '.join(f'{f:g}' for f in config.test_scales)}"
    return f"{factors}{', and mirrored' if config.test_flip else ''}"


def _test(config: FinetuneConfig) -> str:
    height, width = config.crop_px
    return f"windows of {height}x{width} px overlapping by a third" if config.test == "slide" else "whole image"


def _draw_pictures(data: LabelledSet, result: FinetunedResult, out: Path) -> Iterator[Picture]:
    items: dict[str, LabelledImage] = {item.name: item for item in data.val}
    for position, (name, prediction) in enumerate(result.predictions.items()):
        image, labels = items[name].read()
        panels = [image, overlay_labels(image, labels), overlay_labels(image, prediction)]
        yield Picture(
            caption=f"{name}: mIoU {100.0 * mean_iou(result.by_image[name]):.1f} % in this image",
            path=write_png(out / f"{position:03d}.png", side_by_side(panels)),
            kind="finetune",
            columns=("image", "truth", "fine-tuned"),
            legend=class_legend(data.classes),
        )


TEST_ONLY = (
    *("root", "val_split", "max_val", "test", "test_scales", "test_flip"),
    *("workers", "checkpoint_every", "pictures"),
)
"""Settings that do not change the trained network."""
EVENTS = 1_000


def run_finetune(loaded: LoadedModel, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent) -> Score:
    """Trains the encoder on, and scores it.

    Raises:
        DataError: the set is unknown or missing, or as `score_finetune`.
    """
    data = read_labelled_set(config, "finetune.set")
    return score_finetune(loaded, data, config, seed, _folder(out, config), on_event)


def train_finetune(loaded: LoadedModel, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent) -> None:
    """The training alone, as one of several ranks; `run_finetune` takes its network over from `out`.

    Raises:
        DataError: as `run_finetune`.
    """
    data = read_labelled_set(config, "finetune.set")
    finetuned_network(loaded, data, config, seed, _folder(out, config), on_event)


def _folder(out: Path, config: FinetuneConfig) -> Path:
    return out / "finetune" / config.set


def score_finetune(
    loaded: LoadedModel, data: LabelledSet, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent = silent
) -> Score:
    """Trains encoder and head on the training part, or continues or takes over what is in `out`, and scores it.

    Args:
        loaded: the model; it is copied, not changed.
        data: training and validation images with labels.
        config: the recipe.
        seed: of the head, the batches and everything random.
        out: folder for checkpoint, network, curve.csv and pictures.
        on_event: progress.

    Returns:
        The score `finetune/SET`: `miou`, `pixel_accuracy`, `iou_CLASS`, in %; `miou_majority` and
        `pixel_accuracy_majority` are those of the best constant prediction.

    Raises:
        DataError: nothing readable, a loss that is not finite, or `out` holds another training.
        ValueError: the model cannot be fine-tuned.
    """
    network, progress = finetuned_network(loaded, data, config, seed, out, on_event)
    result = test_network(network, data, config, on_event)
    lines = [f"{step},{loss:.6g}" for step, loss in progress.curve]
    atomic_write(out / "curve.csv", ("\n".join(["step,loss", *lines]) + "\n").encode())
    return assemble_score(loaded, data, config, seed, dataclasses.replace(result, progress=progress), out)


def finetuned_network(
    loaded: LoadedModel, data: LabelledSet, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent = silent
) -> tuple[Segmenter, TrainingProgress]:
    """The trained network, on the model's device; all ranks of a distributed training call this.

    Raises:
        DataError, ValueError: as `score_finetune`.
    """
    items = evenly_spaced(data.train, config.max_train)
    if not items:
        raise DataError(f"no training image in {data.root}; expected at least one; check the folder and the split")
    encoder = trainable_of(loaded.model)
    device = next(encoder.module.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Segmenter(encoder, len(data.classes), config).to(device)
    keeper = Keeper(
        out, {"weights": _weights_of(loaded, encoder), **_identity(loaded, items, data.classes, config, seed)}
    )
    finished = keeper.load_finished(network)
    require_equal_on_ranks(int(finished is not None), "finished networks")
    if finished is not None:
        return network, finished

    def tell(step: int) -> None:
        if step % max(1, config.steps // EVENTS) == 0 or step == config.steps:
            name = f"finetune/{config.set}"
            on_event(EvalEvent(score=name, phase="fine-tuning", done=step, total=config.steps))

    optimizer = make_optimizer(parameter_groups(network, encoder, config))
    samples = TrainingSamples(items, len(data.classes), config, seed)
    return network, train(network, optimizer, samples, keeper, tell)


def _weights_of(loaded: LoadedModel, encoder: Trainable) -> str:
    """What the weights are known by; a digest of the encoder's tensors where they are no file."""
    state = encoder.module.state_dict()
    return loaded.kept_as or tensors_digest({name: tensor.detach().cpu() for name, tensor in state.items()})


def _identity(
    loaded: LoadedModel, items: Sequence[LabelledImage], classes: Sequence[str], config: FinetuneConfig, seed: int
) -> dict[str, object]:
    """What decides the trained network beside the weights that it begins with."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in TEST_ONLY}
    who = {"model": loaded.name, "seed": seed}
    return {**who, "training images": images_digest(items), "classes": len(classes), **settings}


def test_network(
    network: Segmenter, data: LabelledSet, config: FinetuneConfig, on_event: OnEvent = silent
) -> FinetunedResult:
    """Predicts every validation image that can be read.

    Raises:
        DataError: there is none, none with a class, or a probability is not finite.
    """
    network.eval()
    items = evenly_spaced(data.val, config.max_val)
    shown = {item.name for item in evenly_spaced(items, config.pictures)} if config.pictures else set()
    by_image: dict[str, NDArray[np.int64]] = {}
    predictions: dict[str, NDArray[np.uint8]] = {}
    failed: list[str] = []
    for number, item in enumerate(items, start=1):
        try:
            image, labels = read_labelled(item, len(data.classes))
        except (DataError, OSError) as error:
            failed.append(f"{item.name}: {error}")
            continue
        prediction = predict_labels(network, image, config)
        by_image[item.name] = confusion_matrix(labels, prediction, len(data.classes))
        if item.name in shown:
            predictions[item.name] = prediction
        on_event(EvalEvent(score=f"finetune/{config.set}", phase="validation", done=number, total=len(items)))
    if not by_image:
        raise nothing_scored(f"validation images of {data.root}", failed, "readable images")
    if not any(counts.any() for counts in by_image.values()):
        raise DataError(f"validation images of {data.root} have void labels only; expected classes; check the labels")
    return FinetunedResult(
        by_image=by_image, predictions=predictions, failed=tuple(failed), progress=TrainingProgress()
    )


STRIDE_PARTS = (2, 3)
"""Windows are two thirds of their size apart: 341 px for 512."""


@torch.inference_mode()
def predict_labels(network: Segmenter, image_HW3: NDArray[np.uint8], config: FinetuneConfig) -> NDArray[np.uint8]:
    """The most likely class of every pixel of an image of any size, (H, W) uint8; the network in evaluation mode.

    Raises:
        DataError: a probability is not finite.
    """
    device = next(network.parameters()).device
    size = (image_HW3.shape[0], image_HW3.shape[1])
    total = torch.zeros((), device=device)
    for factor in config.test_scales:
        resized = resize_image(image_HW3, fitted_size(size, config.image_scale, factor))
        pixels = torch.from_numpy(np.ascontiguousarray(resized)).to(device).permute(2, 0, 1)[None].float() / 255.0
        for mirrored in (False, True) if config.test_flip else (False,):
            logits = _logits(network, pixels.flip(-1) if mirrored else pixels, config)
            total = total + resize_to(logits.flip(-1) if mirrored else logits, size).softmax(1)
    if not total.isfinite().all():
        raise DataError(
            "the fine-tuned network gives probabilities that are not finite; expected numbers; lower finetune.lr or "
            "take finetune.precision=fp32, with another --out"
        )
    return total[0].argmax(0).to(torch.uint8).cpu().numpy()


def _logits(network: Segmenter, image_13HW: Tensor, config: FinetuneConfig) -> Tensor:
    """(1, K, H, W) float32, by windows if the settings say so."""
    with torch.autocast(image_13HW.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        if config.test == "whole":
            return network.label_logits(image_13HW)
        return slide(network, image_13HW, config.crop_px)


def slide(network: Segmenter, image_13HW: Tensor, crop_px: tuple[int, int]) -> Tensor:
    """Mean of the logits of all windows over a pixel, (1, K, H, W) float32."""
    total: Tensor | None = None
    count = torch.zeros(image_13HW.shape[-2:], device=image_13HW.device)
    part, whole = STRIDE_PARTS
    stride = (max(1, crop_px[0] * part // whole), max(1, crop_px[1] * part // whole))
    for top, left, height, width in window_boxes((image_13HW.shape[-2], image_13HW.shape[-1]), crop_px, stride):
        rows, columns = slice(top, top + height), slice(left, left + width)
        logits = network.label_logits(image_13HW[..., rows, columns])
        if total is None:
            total = logits.new_zeros((1, logits.shape[1], *image_13HW.shape[-2:]))
        total[..., rows, columns] += logits
        count[rows, columns] += 1
    assert total is not None  # every image has at least one window
    return total / count

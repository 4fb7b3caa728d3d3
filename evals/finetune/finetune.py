"""Fine-tunes a model with UperNet on a labelled set and scores it by mean IoU."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Score
from mcjepa.evals.finetune.checkpoint import Keeper, Progress
from mcjepa.evals.finetune.data import TrainingSamples
from mcjepa.evals.finetune.model import Segmenter, parameter_groups, trainable_of
from mcjepa.evals.finetune.predict import predict_labels
from mcjepa.evals.finetune.score import FinetunedResult, assemble_score
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.finetune.train import make_optimizer, require_equal_on_ranks, train
from mcjepa.evals.probe.metrics import confusion_matrix
from mcjepa.evals.progress import EvalEvent, OnEvent, evenly_spaced, silent
from mcjepa.evals.subject import Subject

TEST_ONLY = (
    *("root", "val_split", "max_val", "test", "test_scales", "test_flip"),
    *("workers", "checkpoint_every", "pictures"),
)
"""Settings that do not change the trained network."""
EVENTS = 1_000


@dataclass(frozen=True, kw_only=True)
class FinetuneData:
    """The two parts of a labelled set."""

    root: Path
    train: Sequence[LabelledImage]
    val: Sequence[LabelledImage]
    classes: tuple[str, ...]


def score_finetune(
    subject: Subject, data: FinetuneData, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent = silent
) -> Score:
    """Trains encoder and head on the training part, or continues or takes over what is in `out`, and scores it.

    Args:
        subject: the model; it is copied, not changed.
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
    network, progress = finetuned_network(subject, data, config, seed, out, on_event)
    result = test_network(network, data, config, on_event)
    lines = [f"{step},{loss:.6g}" for step, loss in progress.curve]
    atomic_write(out / "curve.csv", ("\n".join(["step,loss", *lines]) + "\n").encode())
    return assemble_score(subject, data, config, seed, dataclasses.replace(result, progress=progress), out)


def finetuned_network(
    subject: Subject, data: FinetuneData, config: FinetuneConfig, seed: int, out: Path, on_event: OnEvent = silent
) -> tuple[Segmenter, Progress]:
    """The trained network, on the model's device; all ranks of a distributed training call this.

    Raises:
        DataError, ValueError: as `score_finetune`.
    """
    items = evenly_spaced(data.train, config.max_train)
    if not items:
        raise DataError(f"no training image in {data.root}; expected at least one; check the folder and the split")
    encoder = trainable_of(subject.model)
    device = next(encoder.module.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Segmenter(encoder, len(data.classes), config).to(device)
    keeper = Keeper(out, _identity(subject, items, data.classes, config, seed))
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


def _identity(
    subject: Subject, items: Sequence[LabelledImage], classes: Sequence[str], config: FinetuneConfig, seed: int
) -> dict[str, object]:
    """What decides the trained network."""
    names = hashlib.sha256("\n".join(item.name for item in items).encode()).hexdigest()
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in TEST_ONLY}
    who = {"weights": subject.digest, "model": subject.name, "seed": seed}
    return {**who, "training images": names, "classes": len(classes), **settings}


def test_network(
    network: Segmenter, data: FinetuneData, config: FinetuneConfig, on_event: OnEvent = silent
) -> FinetunedResult:
    """Predicts every validation image that can be read.

    Raises:
        DataError: there is none.
    """
    network.eval()
    items = evenly_spaced(data.val, config.max_val)
    shown = {item.name for item in evenly_spaced(items, config.pictures)} if config.pictures else set()
    by_image: dict[str, NDArray[np.int64]] = {}
    predictions: dict[str, NDArray[np.uint8]] = {}
    failed: list[str] = []
    for number, item in enumerate(items, start=1):
        try:
            image, labels = item.read()
        except (DataError, OSError) as error:
            failed.append(f"{item.name}: {error}")
            continue
        prediction = predict_labels(network, image, config)
        by_image[item.name] = confusion_matrix(labels, prediction, len(data.classes))
        if item.name in shown:
            predictions[item.name] = prediction
        on_event(EvalEvent(score=f"finetune/{config.set}", phase="validation", done=number, total=len(items)))
    if not by_image:
        reason = failed[0] if failed else "the list is empty"
        raise DataError(f"validation images of {data.root}: {reason}; expected readable images; check the folder")
    return FinetunedResult(by_image=by_image, predictions=predictions, failed=tuple(failed), progress=Progress())

"""The training batches of fine-tuning, and the windows of its test."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.finetune.checkpoint import CHECKPOINT, Keeper
from mcjepa.evals.finetune.data import TrainingSamples, epoch_order, training_batches
from mcjepa.evals.finetune.model import Segmenter, TrainableEncoder, parameter_groups
from mcjepa.evals.finetune.score import slide
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.finetune.train import make_optimizer, train
from mcjepa.model.config import EncoderConfig
from mcjepa.model.encoder import Encoder

CONFIG = FinetuneConfig(
    set="camvid", image_scale=(120, 80), crop_px=(64, 96), steps=4, warmup_steps=0, batch=4, workers=0
)


def _quadrants() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Four classes, each with its own grey level: label k has the colour 60 k."""
    labels = np.zeros((80, 120), np.uint8)
    labels[40:] += 1
    labels[:, 60:] += 2
    return np.repeat((labels * 60)[..., None], 3, axis=2), labels


def _save(folder: Path, count: int) -> list[LabelledImage]:
    image, labels = _quadrants()
    items = []
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), np.roll(image, 7 * index, axis=1))
        cv2.imwrite(str(folder / f"{index}l.png"), np.roll(labels, 7 * index, axis=1))
        items.append(LabelledImage(str(index), folder / f"{index}.png", folder / f"{index}l.png"))
    return items


def test_every_epoch_has_every_image_and_workers_and_resuming_change_nothing(tmp_path: Path) -> None:
    items = _save(tmp_path, 8)
    samples = TrainingSamples(items, 4, CONFIG, seed=1)
    plain = list(training_batches(samples, 0))
    assert len(plain) == 4 and plain[0].images_B3HW.shape == (4, 3, 64, 96)
    tail = list(training_batches(TrainingSamples(items, 4, CONFIG, seed=1), 2))
    split = TrainingSamples(items, 4, dataclasses.replace(CONFIG, workers=2), seed=1)
    for batches, reference in ((tail, plain[2:]), (list(training_batches(split, 0)), plain)):
        for batch, same in zip(batches, reference, strict=True):
            assert torch.equal(batch.images_B3HW, same.images_B3HW) and torch.equal(batch.labels_BHW, same.labels_BHW)
    ranks = [list(training_batches(samples, 0, rank, 2)) for rank in range(2)]
    together = torch.cat([ranks[0][0].images_B3HW, ranks[1][0].images_B3HW])
    assert torch.equal(together, plain[0].images_B3HW[[0, 2, 1, 3]])


def test_unreadable_image_is_replaced_by_its_neighbour_and_named(tmp_path: Path) -> None:
    items = _save(tmp_path, 4)
    items[1].image.write_bytes(b"no picture")  # type: ignore[union-attr]
    batches = list(training_batches(TrainingSamples(items, 4, CONFIG, 0), 0))
    failures = {failure for batch in batches for failure in batch.failed}
    assert len(failures) == 1 and failures.pop().startswith("1: ")
    assert all(batch.images_B3HW.shape == (4, 3, 64, 96) for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_usable_image_is_an_error_of_one_line_that_says_why(workers: int, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, workers=workers)
    with pytest.raises(
        DataError, match=r"^no training image can be used.*label ids \[2, 3\]; expected 0\.\.1"
    ) as caught:
        next(training_batches(TrainingSamples(_save(tmp_path, 2), 2, config, 0), 0))
    assert "Traceback" not in str(caught.value)


class _Fatal(LabelledImage):
    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        os._exit(9)  # as the kernel does to a process without memory


def test_a_reading_process_that_ends_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    fatal = _Fatal("x", tmp_path / "x.png", tmp_path / "x.png")
    config = dataclasses.replace(CONFIG, workers=1)
    with pytest.raises(DataError, match=r"a process that reads images ended.*lower finetune\.workers"):
        next(training_batches(TrainingSamples([fatal], 2, config, 0), 0))


class _Pointwise(torch.nn.Module):
    """A network whose logits depend on each pixel alone: windows must not show."""

    def label_logits(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return torch.cat([image_B3HW, 1 - image_B3HW], dim=1)


def test_windows_cover_every_pixel_and_their_mean_is_the_whole() -> None:
    image = torch.rand(1, 3, 130, 75)
    for crop in ((64, 64), (130, 75), (200, 40), (33, 33)):
        torch.testing.assert_close(
            slide(_Pointwise(), image, crop),  # type: ignore[arg-type]
            _Pointwise().label_logits(image),
        )


def _two_steps_of_a_rank(rank: int, folder: str) -> None:
    """Trains until the checkpoint of step 2 has been written."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    config = dataclasses.replace(CONFIG, channels=8, pool_scales=(1, 2), checkpoint_every=2)
    items = [LabelledImage(str(n), Path(folder) / f"{n}.png", Path(folder) / f"{n}l.png") for n in range(8)]
    torch.manual_seed(0)
    encoder = TrainableEncoder(Encoder(EncoderConfig(stem_channels=(4, 4), stage_channels=(8,) * 4, depths=(1,) * 4)))
    network = Segmenter(encoder, 4, config)
    optimizer = make_optimizer(parameter_groups(network, encoder, config))

    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(network, optimizer, TrainingSamples(items, 4, config, 1), Keeper(Path(folder), {}), stop)
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_checkpoint_names_the_images_that_any_rank_could_not_read(tmp_path: Path) -> None:
    """The first epoch is over after two steps of four: the resumed run meets the image again by luck only."""
    _save(tmp_path, 8)
    broken = int(epoch_order(1, 0, 8)[1])  # sample 1, the first of rank 1
    (tmp_path / f"{broken}.png").write_bytes(b"no picture")
    mp.spawn(_two_steps_of_a_rank, args=(str(tmp_path),), nprocs=2)
    record = json.loads(torch.load(tmp_path / CHECKPOINT, weights_only=True)["record"])
    assert record["step"] == 2 and [failure.partition(":")[0] for failure in record["failed"]] == [str(broken)]

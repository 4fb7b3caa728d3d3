"""Batches of fine-tuning: which image is sample k and how it is augmented are functions of the seed and k alone.

So a resumed run continues with the batches that an undisturbed one would have had, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.probe.images import read_labelled
from mcjepa.evals.probe.windows import augment_sample
from mcjepa.evals.reading import read_batches

ORDER, LOOK = 0, 1
"""What a generator is for, beside the seed."""

Sample = tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[str, ...]]
"""Window (H, W, 3), labels (H, W), "name: reason" of images that could not be used on the way."""

Attempt = Sample | DataError


@dataclass(frozen=True)
class Batch:
    """Windows of one step."""

    images_B3HW: Tensor
    """uint8 RGB."""
    labels_BHW: Tensor
    """uint8, 255 = void."""
    failed: tuple[str, ...]
    """ "name: reason" of images that could not be read and were replaced by the next one of the list."""


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Indices of all images in the order of an epoch; sample k is number k mod count of epoch k div count.

    >>> sorted(epoch_order(1, 0, 4).tolist()), epoch_order(1, 0, 9).tolist() == epoch_order(1, 1, 9).tolist()
    ([0, 1, 2, 3], False)
    """
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)


class StepSampler:
    """Sample numbers of each step from `first_step` on; rank r of W has r, r + W, ... of the batch."""

    def __init__(self, config: FinetuneConfig, first_step: int, rank: int, world: int) -> None:
        self.steps = range(first_step, config.steps)
        self.batch, self.rank, self.world = config.batch, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.batch + self.rank, (step + 1) * self.batch, self.world))


class TrainingSamples(Dataset[Sample]):
    """Sample number to an augmented window, its labels, and the images that could not be read on the way."""

    def __init__(self, items: Sequence[LabelledImage], classes: int, config: FinetuneConfig, seed: int) -> None:
        self.items, self.classes, self.config, self.seed = items, classes, config, seed
        self._epoch = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.config.steps * self.config.batch

    def __getitem__(self, sample: int) -> Sample:
        """Window (H, W, 3), labels (H, W), failures.

        Raises:
            DataError: no image of the list can be read.
        """
        epoch, place = divmod(sample, len(self.items))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self.seed, epoch, len(self.items)))
        start = int(self._epoch[1][place])
        failed: list[str] = []
        for step in range(len(self.items)):
            item = self.items[(start + step) % len(self.items)]
            try:
                image, labels = read_labelled(item, self.classes)
            except (DataError, OSError) as error:
                failed.append(f"{item.name}: {error}")
                continue
            rng = np.random.default_rng((self.seed, LOOK, sample))
            where = (self.config.image_scale, self.config.crop_px)
            window = augment_sample(image, labels, *where, rng)
            return (*window, tuple(failed))
        raise DataError(f"no training image can be used ({failed[0]}); expected readable images; check the folder")


class _Attempts(Dataset["Attempt"]):
    """The samples, or the error in their place: raised in a worker it would come with the worker's traceback."""

    def __init__(self, samples: TrainingSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, sample: int) -> Attempt:
        try:
            return self.samples[sample]
        except DataError as error:
            return error


def training_batches(samples: TrainingSamples, first_step: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Batches from `first_step` to the last, of this rank's samples.

    Raises:
        DataError: no image can be used, or a reading process ended.
    """
    steps = StepSampler(samples.config, first_step, rank, world)
    with closing(read_batches(_Attempts(samples), steps, _collate, samples.config.workers, "finetune.workers")) as read:
        for batch in read:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _collate(attempts: Sequence[Attempt]) -> Batch | DataError:
    good: list[Sample] = []
    for attempt in attempts:
        if isinstance(attempt, DataError):
            return attempt
        good.append(attempt)
    return Batch(
        images_B3HW=torch.from_numpy(np.stack([image for image, _, _ in good])).permute(0, 3, 1, 2),
        labels_BHW=torch.from_numpy(np.stack([labels for _, labels, _ in good])),
        failed=tuple(failure for _, _, failures in good for failure in failures),
    )

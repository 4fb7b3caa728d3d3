"""Epochs of the segmentation probe from cached features, beside epochs with the encoder in every step.

    python -m benchmarks.evals_probe_cache [--full]

The paper's encoder (ConvNeXt-T, random weights), packaged photos in 512 px windows with 21 classes made of their
colours, the protocol `cached`. Both sides train the same head with the same loss and batch; one cuts windows from the
files of the cache, as every epoch after the first and every later run does, the other reads, augments and encodes its
images in each step. Rounds alternate; times are the processor's, because the machine is shared: the cached side waits
for nothing but the disk. The last line is JSON; `ratio` is an epoch with the encoder over a cached one, the bar 10.
`ratio_all_pixels` has the loss on every pixel, as VICRegL does, instead of on every fourth of each row and column: then
the head itself is most of a cached epoch. `first_epochs` is how many cached epochs encoding once costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcjepa.data_prep.corpora.image_files import read_rgb, write_png
from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.corpora.samples import packaged_photos
from mcjepa.evals.probe.cache import FeatureCache
from mcjepa.evals.probe.features import EncodingPlan, Statistics, measure_statistics
from mcjepa.evals.probe.fitting import train_head
from mcjepa.evals.probe.head import LinearHead
from mcjepa.evals.probe.images import images_digest, resize_image
from mcjepa.evals.probe.settings import ProbeConfig, protocol_settings
from mcjepa.evals.probe.windows import AugmentedWindows, CachedWindows, WindowSource
from mcjepa.model.config import ModelConfig
from mcjepa.model.encoder import Encoder

CLASSES, SIDE_PX, STRIDES = 21, 512, (8, 16, 32, 64)


class EncoderAlone:
    """The paper's encoder as the evaluations see a model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = Encoder(ModelConfig().encoder).eval()

    @torch.inference_mode()
    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """Six maps, finest first."""
        return list(self.encoder(image_B3HW))

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        """Not asked for here."""
        raise NotImplementedError("this measurement has no flow")


def labelled_photos(folder: Path, count: int) -> list[LabelledImage]:
    """Packaged photos of one size, each pixel's class made of its colour."""
    items = []
    photos = packaged_photos()
    for index in range(count):
        image = resize_image(read_rgb(photos[index % len(photos)]), (SIDE_PX, SIDE_PX))
        image = np.ascontiguousarray(np.roll(image, 37 * (index // len(photos)), axis=1))
        labels = (image.astype(int) @ np.array([3, 5, 2]) // 16 % CLASSES).astype(np.uint8)
        places = folder / f"{index}.png", folder / f"{index}_labels.png"
        for place, pixels in zip(places, (image, labels), strict=True):
            write_png(place, pixels)
        items.append(LabelledImage(str(index), *places))
    return items


def epoch_seconds(source: WindowSource, config: ProbeConfig, fixed: Statistics) -> float:
    """Processor time of one epoch of training the head."""
    head = LinearHead(source.channels, STRIDES, CLASSES, seed=0)
    head.set_statistics(fixed)
    started = time.process_time()
    train_head(source, head, config, torch.device("cpu"))
    return time.process_time() - started


def measure(folder: Path, images: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every epoch of each side, and of encoding everything once."""
    (folder / "photos").mkdir()
    items, model = labelled_photos(folder / "photos", images), EncoderAlone()
    settings = protocol_settings("cached") | {"batch": 4, "steps": images // 4, "warmup_steps": 0}
    config = ProbeConfig(**settings)
    augmented = dataclasses.replace(config, augment="mmseg", norm="batch", workers=1)
    times: dict[str, list[float]] = {name: [] for name in ("cached", "encoder", "cached_all", "encoder_all", "first")}
    with FeatureCache(folder / "cache", most_gib=4.0, dtype="float16", batch=4) as cache:
        plan = EncodingPlan(strides=STRIDES, classes=CLASSES)
        started = time.process_time()
        features = cache.features(model, items, images_digest(items), plan)
        times["first"].append(time.process_time() - started)
        fixed = measure_statistics(((image.tiles[0].maps, image.size) for image in features), STRIDES)
        with AugmentedWindows(model, items, STRIDES, CLASSES, augmented, seed=0) as encoded:
            for _ in range(rounds + 1):
                for name, step in (("", config), ("_all", dataclasses.replace(config, loss_stride_px=1))):
                    cached = CachedWindows(features, STRIDES, config, 0)
                    times[f"cached{name}"].append(epoch_seconds(cached, step, fixed))
                    times[f"encoder{name}"].append(epoch_seconds(encoded, step, fixed))
    return {name: each[1:] or each for name, each in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more images and rounds")
    full = parser.parse_args().full
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), 64 if full else 8, 5 if full else 3)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    ratio, all_pixels = (
        statistics.median(a / b for a, b in zip(times[f"encoder{name}"], times[f"cached{name}"], strict=True))
        for name in ("", "_all")
    )
    figures = {f"{name}_s": round(value, 3) for name, value in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "evals_probe_cache",
                "ratio": round(ratio, 2),
                "bar": 10,
                "ratio_all_pixels": round(all_pixels, 2),
                "first_epochs": round(seconds["first"] / seconds["cached"], 1),
                **figures,
            }
        )
    )


if __name__ == "__main__":
    main()

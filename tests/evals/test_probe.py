"""The linear probe: the cheap head equals the written-out one; statistics, schedule, known answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_prep.corpora import SEGMENTATION_SETS
from data_prep.corpora.items import LabelledImage
from data_prep.errors import DataError
from evals.model_under_test import ModelUnderTest, Subject
from evals.progress import EvalEvent
from evals.segmentation.config import ProbeConfig
from evals.segmentation.features import (
    EncodedImage,
    encode_images,
    measure_statistics,
    resize_map,
    standardise,
)
from evals.segmentation.probe import (
    LinearHead,
    TrainingWindow,
    batch_loss,
    cut_window,
    predict_labels,
    schedule_factor,
    train_head,
)
from evals.segmentation.score import ProbeData, score_probe

STRIDES = (8, 16, 32, 64)
CONFIG = ProbeConfig(steps=60, warmup_steps=5, lr=0.05, batch=4, crop_px=0, encode_batch=3)


def _encoded(seed: int, height: int = 100, width: int = 140, channels: tuple[int, ...] = (3, 4, 5, 6)) -> EncodedImage:
    generator = torch.Generator().manual_seed(seed)
    padded = (-(-height // 64) * 64, -(-width // 64) * 64)
    maps = tuple(
        torch.randn(count, padded[0] // stride, padded[1] // stride, generator=generator) * 3 + 1
        for count, stride in zip(channels, STRIDES, strict=True)
    )
    labels = torch.randint(0, 5, (height, width), generator=generator).to(torch.uint8)
    return EncodedImage(f"image{seed}", maps, labels)


def _concatenated(image: EncodedImage) -> torch.Tensor:
    levels = [
        F.interpolate(level[None], scale_factor=stride // 8, mode="bilinear", align_corners=False)
        for level, stride in zip(image.maps, STRIDES, strict=True)
    ]
    return torch.cat(levels, dim=1)


def test_head_by_level_equals_one_convolution_on_the_concatenated_grid() -> None:
    image = _encoded(0)
    head = LinearHead([3, 4, 5, 6], STRIDES, 5, seed=1)
    together = torch.cat(list(head.weights), dim=1)[:, :, None, None]
    explicit = F.conv2d(_concatenated(image), together, head.bias)
    torch.testing.assert_close(head([level[None] for level in image.maps]), explicit)
    full = F.interpolate(explicit, scale_factor=8, mode="bilinear", align_corners=False)[0, :, :100, :140]
    assert np.array_equal(predict_labels(head, image), full.argmax(0).numpy())


def test_standardised_grid_has_mean_0_and_deviation_1_without_the_padding() -> None:
    images = [_encoded(seed) for seed in range(3)]
    normal = standardise(images, measure_statistics(images, STRIDES))
    cells = torch.cat([_concatenated(image)[0, :, :13, :18].flatten(1) for image in normal], dim=1)
    torch.testing.assert_close(cells.mean(1), torch.zeros(18), atol=1e-4, rtol=0)
    torch.testing.assert_close(cells.std(1, correction=0), torch.ones(18), atol=1e-4, rtol=0)


def test_constant_channel_becomes_zero_and_not_infinite() -> None:
    image = _encoded(0)
    flat = dataclasses.replace(image, maps=(torch.full_like(image.maps[0], 7.0), *image.maps[1:]))
    normal = standardise([flat], measure_statistics([flat], STRIDES))
    torch.testing.assert_close(normal[0].maps[0], torch.zeros_like(image.maps[0]), atol=1e-4, rtol=0)


def test_schedule_warms_up_linearly_and_decays_to_zero_by_the_power() -> None:
    config = ProbeConfig(steps=10, warmup_steps=4, poly_power=1.0)
    assert [schedule_factor(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule_factor(4, config) == 1.0
    assert schedule_factor(7, config) == pytest.approx(0.5)
    assert schedule_factor(9, dataclasses.replace(config, poly_power=2.0)) == pytest.approx((1 / 6) ** 2)


def test_windows_keep_maps_and_labels_aligned() -> None:
    image = _encoded(0, 200, 300)
    rows = torch.arange(256).div(8, rounding_mode="floor")[::8].float()
    marked = dataclasses.replace(
        image,
        maps=(rows[None, :, None].expand(1, 32, 40), *image.maps[1:]),
        labels=torch.arange(200, dtype=torch.uint8)[:, None].expand(200, 300),
    )
    seen = set()
    for seed in range(20):
        window = cut_window(marked, STRIDES, 128, np.random.default_rng(seed))
        assert window.labels.shape == (128, 128)
        assert [tuple(level.shape[1:]) for level in window.maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
        assert int(window.labels[0, 0]) == int(window.maps[0][0, 0, 0]) * 8
        seen.add(int(window.labels[0, 0]))
    assert seen == {0, 64}


def test_window_larger_than_the_image_is_the_whole_image() -> None:
    image = _encoded(0, 100, 140)
    for crop_px in (0, 512):
        window = cut_window(image, STRIDES, crop_px, np.random.default_rng(0))
        assert window.labels.shape == (100, 140)
        assert torch.equal(window.maps[1], image.maps[1])


def test_loss_is_the_mean_over_counted_pixels_of_the_whole_batch_whatever_the_sizes() -> None:
    images = [_encoded(0, 64, 64), _encoded(1, 64, 128)]
    images[0].labels[:, :50] = 255
    head = LinearHead([3, 4, 5, 6], STRIDES, 5, seed=1)
    windows = [TrainingWindow(image.maps, image.labels) for image in images]
    logits = [
        head.label_logits([level[None] for level in image.maps], *image.labels.shape)[0].flatten(1).T
        for image in images
    ]
    labels = torch.cat([image.labels.flatten() for image in images]).long()
    expected = F.cross_entropy(torch.cat(logits), labels, ignore_index=255)
    assert batch_loss(head, windows, 1, backward=False) == pytest.approx(expected.item(), rel=1e-5)


def test_batch_without_a_counted_pixel_has_no_loss() -> None:
    image = _encoded(0, 64, 64)
    window = TrainingWindow(image.maps, torch.full_like(image.labels, 255))
    assert batch_loss(LinearHead([3, 4, 5, 6], STRIDES, 5, seed=0), [window], 1, backward=True) is None


def test_head_learns_a_linear_answer_and_repeats_itself_bit_for_bit() -> None:
    images = []
    for seed in range(6):
        image = _encoded(seed, 64, 128)
        answer = resize_map(image.maps[0][None], 8)[0, :, :64, :128].argmax(0)
        images.append(dataclasses.replace(image, labels=answer.to(torch.uint8)))
    normal = standardise(images, measure_statistics(images, STRIDES))
    config = dataclasses.replace(CONFIG, steps=150, loss_stride_px=4)
    first = train_head(normal, STRIDES, 3, config, seed=3)
    right = np.mean([predict_labels(first, image) == image.labels.numpy() for image in normal])
    assert right > 0.85
    second = train_head(normal, STRIDES, 3, config, seed=3)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))
    other = train_head(normal, STRIDES, 3, config, seed=4)
    assert not torch.equal(first.weights[0], other.weights[0])


def test_images_are_encoded_once_in_batches_of_equal_size_and_broken_ones_named(
    tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    items = []
    for index, size in enumerate([(64, 80), (64, 80), (64, 80), (64, 80), (70, 70), (0, 0)]):
        image, labels = tmp_path / f"{index}.png", tmp_path / f"{index}_labels.png"
        if size[0]:
            cv2.imwrite(str(image), np.full((*size, 3), 40 * index, np.uint8))
            cv2.imwrite(str(labels), np.zeros(size, np.uint8))
        else:
            image.write_bytes(b"no picture")
        items.append(LabelledImage(str(index), image, labels))
    model = foreign_model()
    done: list[int] = []
    encoded, failed = encode_images(model, items, STRIDES, 3, done.append)
    assert [image.name for image in encoded] == ["0", "1", "2", "3", "4"]
    assert model.sizes == [(3, 3, 64, 128), (1, 3, 64, 128), (1, 3, 128, 128)]  # type: ignore[attr-defined]
    assert len(failed) == 1 and failed[0].startswith("5: ")
    assert done[-1] >= 5
    # The third image in a batch has its own features: its grey level.
    assert float(encoded[2].maps[0][0, 0, 0]) == pytest.approx(80 / 255, abs=1e-6)


def test_probe_of_a_set_beats_the_model_that_sees_nothing_and_tells_its_protocol(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]
) -> None:
    class Blind:
        def features(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
            return [torch.ones_like(level) for level in foreign_model().features(image_B3HW)]

    read = SEGMENTATION_SETS["moving-photos"]
    data = ProbeData(
        root=moving_photos,
        train=read(moving_photos, "train"),
        val=read(moving_photos, "val"),
        classes=("a.png", "b", "c", "d", "e", "f g"),
    )
    subject = Subject(model=foreign_model(), name="m", digest="9be", random_model=Blind())  # type: ignore[arg-type]
    events: list[EvalEvent] = []
    config = dataclasses.replace(CONFIG, set="moving-photos", pictures=1)
    score = score_probe(subject, data, config, 5, tmp_path, events.append)
    assert score.name == "probe/moving-photos"
    assert score.metrics["miou"] > score.metrics["miou_random"] + 5
    assert {"iou_a", "iou_f_g"} & set(score.metrics)
    assert score.card.seeds == (5,) and score.card.weights_digest == "9be"
    assert score.card.config["levels"] == (3, 4, 5, 6)
    assert score.pictures[0].columns == ("image", "truth", "model", "random encoder")
    assert {event.phase for event in events} == {"encode training", "encode validation", "head"}
    again = score_probe(subject, data, config, 5, tmp_path)
    assert again.metrics == score.metrics


def test_probe_without_readable_images_is_refused(tmp_path: Path, foreign_model: Callable[..., ModelUnderTest]) -> None:
    bad = LabelledImage("bad", tmp_path / "no.png", tmp_path / "no.png")
    data = ProbeData(root=tmp_path, train=[bad], val=[bad], classes=("a", "b"))
    with pytest.raises(DataError, match="bad"):
        score_probe(Subject(model=foreign_model(), name="m"), data, CONFIG, 0, tmp_path)

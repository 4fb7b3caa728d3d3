"""Sizes, windows and augmentation of images with their labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcjepa.evals.models import EvalModel
from mcjepa.evals.probe.images import fitted_size, resize_image, resize_labels, window_boxes
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.probe.windows import AugmentedWindows, augment_sample, choose_crop, distort_colours
from tests.evals.labelled_sets import STRIDES, write_items


@pytest.mark.parametrize("size", [(512, 683), (512, 512), (300, 700), (100, 90), (1024, 2048)])
@pytest.mark.parametrize(
    ("window", "stride"), [((512, 512), (341, 341)), ((512, 1024), (341, 683)), ((64, 64), (0, 0))]
)
def test_windows_cover_every_pixel_and_stay_inside(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> None:
    counts = np.zeros(size, int)
    boxes = window_boxes(size, window, stride)
    for top, left, height, width in boxes:
        assert (height, width) == (min(window[0], size[0]), min(window[1], size[1]))
        part = counts[top : top + height, left : left + width]
        assert part.shape == (height, width)
        part += 1
    assert counts.min() >= 1 and len(set(boxes)) == len(boxes)


def test_windows_of_cityscapes_are_as_many_as_mmsegmentation_has() -> None:
    assert len(window_boxes((1024, 2048), (512, 1024), (341, 683))) == 3 * 3
    assert window_boxes((1024, 2048), (512, 1024), (341, 683))[-1] == (512, 1024, 512, 1024)


def test_images_fit_into_both_limits_and_keep_their_shape() -> None:
    assert fitted_size((1024, 2048), (2048, 1024)) == (1024, 2048)
    assert fitted_size((375, 500), (2048, 512), 0.5) == (256, 341)
    assert fitted_size((375, 500), (0, 0), 2.0) == (750, 1000)
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    assert resize_image(image, (20, 30)) is image
    labels = np.array([[0, 200], [255, 7]], np.uint8)
    assert set(np.unique(resize_labels(labels, (11, 13)))) == {0, 200, 255, 7}  # no class between classes


def test_labels_follow_the_image_and_the_rest_is_void_and_mean_colour() -> None:
    labels = np.zeros((60, 90), np.uint8)
    labels[:, 45:] = 3
    image = np.where(labels[..., None] == 3, np.uint8(250), np.uint8(5)).repeat(3, axis=2)
    seen_flipped = set()
    for seed in range(30):
        window, classes = augment_sample(image, labels, (0, 0), (64, 96), np.random.default_rng(seed))
        assert window.shape == (64, 96, 3) and classes.shape == (64, 96) and window.dtype == classes.dtype == np.uint8
        inside = classes != 255
        grey = window.astype(int).mean(2)
        bright, dark = grey[classes == 3], grey[classes == 0]
        if len(bright) and len(dark):
            assert np.median(bright) > np.median(dark)
            columns = np.nonzero(inside[0])[0]
            seen_flipped.add(int(classes[0, columns[0]]) == 3)
        assert (window[~inside] == (124, 116, 104)).all()
    assert seen_flipped == {True, False}


def test_the_same_random_numbers_give_the_same_window() -> None:
    image = np.random.default_rng(1).integers(0, 255, (80, 90, 3)).astype(np.uint8)
    labels = (image[..., 0] % 5).astype(np.uint8)
    one, two = (augment_sample(image, labels, (0, 0), (64, 64), np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_a_crop_avoids_one_class_where_it_can() -> None:
    labels = np.zeros((64, 256), np.uint8)
    labels[:, 128:160] = 1
    labels[:, :32] = 255
    both = 0
    for seed in range(40):
        counts = np.bincount(labels[choose_crop(labels, (64, 64), np.random.default_rng(seed))].ravel(), minlength=2)
        both += counts[0] < 0.75 * counts[:2].sum() and counts[1] > 0
    assert both > 35  # by chance alone it would be a quarter
    alone = choose_crop(np.zeros((64, 256), np.uint8), (64, 64), np.random.default_rng(0))
    assert alone[0] == slice(0, 64) and alone[1].stop - alone[1].start == 64


def test_colours_change_and_stay_bytes() -> None:
    image = np.random.default_rng(2).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    results = [distort_colours(image.copy(), np.random.default_rng(seed)) for seed in range(20)]
    assert all(result.dtype == np.uint8 and result.shape == image.shape for result in results)
    assert len({result.tobytes() for result in results}) > 10


def test_augmented_batches_are_a_function_of_the_step(tmp_path: Path, foreign_model: Callable[..., EvalModel]) -> None:
    items = write_items(tmp_path, [(70, 90)] * 5)
    config = ProbeConfig(
        augment="mmseg", norm="batch", steps=4, warmup_steps=0, batch=3, crop_px=64, encode_batch=2, workers=3
    )
    drawn = []
    for steps in ((0, 1, 2), (2,)):
        with AugmentedWindows(foreign_model(), items, STRIDES, 5, config, seed=4) as source:
            drawn.append([source.batch(step) for step in steps][-1])
            assert source.channels == (6, 6, 6, 6)
    for one, two in zip(*drawn, strict=True):
        assert one.labels.shape == (64, 64) and bool((one.labels == two.labels).all())
        assert all(bool((a == b).all()) for a, b in zip(one.maps, two.maps, strict=True))

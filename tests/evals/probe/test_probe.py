"""The linear probe: the cheap head equals the written-out one; schedule, windows, loss, known answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.features import EncodedImage, EncodedTile, Statistics, measure_statistics, resize_map
from mcjepa.evals.probe.fitting import HeadCheckpoint, batch_loss, poly_schedule, train_head, training_key
from mcjepa.evals.probe.head import LinearHead, predict_labels
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.probe.windows import CachedWindows, TrainingWindow, WindowOrder, cut_window
from tests.evals.labelled_sets import CHANNELS, STRIDES, encoded_image

CPU = torch.device("cpu")
CONFIG = ProbeConfig(steps=60, warmup_steps=5, lr=0.05, batch=4, crop_px=0, encode_batch=3)


def with_maps(image: EncodedImage, maps: tuple[Tensor, ...], labels: Tensor | None = None) -> EncodedImage:
    """The image with other maps, and other labels."""
    tile = dataclasses.replace(image.tiles[0], maps=maps)
    return dataclasses.replace(image, tiles=(tile,), labels=image.labels if labels is None else labels)


def concatenated(maps: tuple[Tensor, ...]) -> Tensor:
    """The levels written out on the finest grid, (1, C, h, w)."""
    levels = [
        F.interpolate(level[None], scale_factor=stride // 8, mode="bilinear", align_corners=False)
        for level, stride in zip(maps, STRIDES, strict=True)
    ]
    return torch.cat(levels, dim=1)


def statistics_of(images: list[EncodedImage]) -> Statistics:
    """Statistics of whole images."""
    return measure_statistics([(i.tiles[0].maps, (i.labels.shape[0], i.labels.shape[1])) for i in images], STRIDES)


def test_head_by_level_equals_one_convolution_on_the_concatenated_grid() -> None:
    image = encoded_image(0)
    head = LinearHead(CHANNELS, STRIDES, 5, seed=1)
    together = torch.cat(list(head.weights), dim=1)[:, :, None, None]
    explicit = F.conv2d(concatenated(image.tiles[0].maps), together, head.bias)
    torch.testing.assert_close(head([level[None] for level in image.tiles[0].maps]), explicit)
    full = F.interpolate(explicit, scale_factor=8, mode="bilinear", align_corners=False)[0, :, :100, :140]
    assert np.array_equal(predict_labels(head, image, CPU), full.argmax(0).numpy())


def test_batch_norm_folded_into_the_weights_trains_and_tests_as_pytorchs_on_the_concatenated_grid() -> None:
    torch.manual_seed(0)
    images = [encoded_image(seed, 64, 128) for seed in range(3)]
    maps = [torch.stack(level) for level in zip(*(image.tiles[0].maps for image in images), strict=True)]
    grid = torch.cat([concatenated(image.tiles[0].maps) for image in images])
    head = LinearHead(CHANNELS, STRIDES, 5, seed=1, batch_norm=True)
    norm, convolution = nn.BatchNorm2d(sum(CHANNELS)), nn.Conv2d(sum(CHANNELS), 5, 1)
    with torch.no_grad():
        for ours in (*head.scales, *head.shifts):
            ours.uniform_(0.5, 1.5)
        norm.weight.copy_(torch.cat(list(head.scales)))
        norm.bias.copy_(torch.cat(list(head.shifts)))
        convolution.weight.copy_(torch.cat(list(head.weights), dim=1)[:, :, None, None])
        convolution.bias.copy_(head.bias)  # type: ignore[union-attr]
    statistics = measure_statistics([(maps, (64, 128))], STRIDES)
    head.follow_statistics(statistics)
    ours, theirs = head(maps, statistics), convolution(norm(grid))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    (ours.square().mean()).backward()
    (theirs.square().mean()).backward()
    assert norm.weight.grad is not None
    torch.testing.assert_close(torch.cat([p.grad for p in head.scales]), norm.weight.grad, atol=1e-6, rtol=1e-3)
    head.eval()
    norm.eval()
    torch.testing.assert_close(head(maps), convolution(norm(grid)), atol=1e-5, rtol=1e-4)


def test_statistics_make_the_grid_one_of_mean_0_and_deviation_1_without_the_padding() -> None:
    images = [encoded_image(seed) for seed in range(3)]
    found = statistics_of(images)
    cells = torch.cat([concatenated(i.tiles[0].maps)[0, :, :13, :18].flatten(1) for i in images], dim=1)
    torch.testing.assert_close(torch.cat(found.mean), cells.mean(1))
    torch.testing.assert_close(torch.cat(found.variance), cells.var(1, correction=0))
    assert found.count == 3 * 13 * 18


def test_constant_channel_becomes_zero_and_not_infinite() -> None:
    image = encoded_image(0)
    flat = with_maps(image, (torch.full_like(image.tiles[0].maps[0], 7.0), *image.tiles[0].maps[1:]))
    head = LinearHead(CHANNELS, STRIDES, 5, seed=1)
    head.set_statistics(statistics_of([flat]))
    maps = [level[None] for level in flat.tiles[0].maps]
    with torch.no_grad():
        before = head(maps)
        head.weights[0].mul_(100.0)  # whatever its weights, a constant says nothing
    torch.testing.assert_close(head(maps), before, atol=1e-3, rtol=0)


def test_schedule_is_mmsegmentations() -> None:
    config = ProbeConfig(steps=10, warmup_steps=4, poly_power=1.0)
    factors = [poly_schedule(step, config.steps, config.warmup_steps, config.poly_power) for step in range(10)]
    assert factors[:4] == pytest.approx([0.0, 0.25 * 0.9, 0.5 * 0.8, 0.75 * 0.7], abs=2e-6)
    assert factors[4:] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    squared = dataclasses.replace(config, poly_power=2.0)
    assert poly_schedule(9, squared.steps, squared.warmup_steps, squared.poly_power) == pytest.approx(0.01)


def test_windows_keep_maps_and_labels_aligned() -> None:
    image = encoded_image(0, 200, 300)
    rows = torch.arange(256).div(8, rounding_mode="floor")[::8].float()
    maps = (rows[None, :, None].expand(1, 32, 40), *image.tiles[0].maps[1:])
    marked = with_maps(image, maps, torch.arange(200, dtype=torch.uint8)[:, None].expand(200, 300))
    seen = set()
    for seed in range(20):
        window = cut_window(marked, STRIDES, (128, 128), np.random.default_rng(seed))
        assert window.labels.shape == (128, 128)
        assert [tuple(level.shape[1:]) for level in window.maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
        assert int(window.labels[0, 0]) == int(window.maps[0][0, 0, 0]) * 8
        seen.add(int(window.labels[0, 0]))
    assert seen == {0, 64}


@pytest.mark.parametrize(("crop", "shape"), [((0, 0), (100, 140)), ((512, 512), (100, 140)), ((512, 64), (100, 64))])
def test_side_shorter_than_the_window_stays_whole(crop: tuple[int, int], shape: tuple[int, int]) -> None:
    assert cut_window(encoded_image(0), STRIDES, crop, np.random.default_rng(0)).labels.shape == shape


def test_every_image_comes_once_an_epoch_and_a_step_is_a_function_of_its_number() -> None:
    order = WindowOrder(7, seed=3)
    epochs = [[order.image_of(epoch * 7 + n) for n in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]
    images = [encoded_image(seed, 200, 300) for seed in range(7)]
    config = dataclasses.replace(CONFIG, crop_px=64)
    late, early = (CachedWindows(images, STRIDES, config, 3) for _ in range(2))
    for step in range(4):
        early.batch(step)
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(late.batch(4), early.batch(4), strict=True))


def test_loss_is_the_mean_over_counted_pixels_of_the_whole_batch_whatever_the_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [encoded_image(0, 64, 64), encoded_image(1, 64, 128), encoded_image(2, 64, 128)]
    images[0].labels[:, :50] = 255
    head = LinearHead(CHANNELS, STRIDES, 5, seed=1)
    windows = [TrainingWindow(image.tiles[0].maps, image.labels) for image in images]
    logits = [
        resize_map(head([level[None] for level in i.tiles[0].maps]), 8)[0, :, : i.labels.shape[0]].flatten(1).T
        for i in images
    ]
    labels = torch.cat([image.labels.flatten() for image in images]).long()
    expected = F.cross_entropy(torch.cat(logits), labels, ignore_index=255)
    assert batch_loss(head, windows, 1, backward=True) == pytest.approx(expected.item(), rel=1e-5)
    gradient = head.weights[0].grad.clone()  # type: ignore[union-attr]
    head.zero_grad()
    monkeypatch.setattr("mcjepa.evals.probe.fitting.MOST_LOGITS", 1)  # one window at a time
    assert batch_loss(head, windows, 1, backward=True) == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(head.weights[0].grad, gradient)


def test_batch_without_a_counted_pixel_has_no_loss() -> None:
    image = encoded_image(0, 64, 64)
    window = TrainingWindow(image.tiles[0].maps, torch.full_like(image.labels, 255))
    assert batch_loss(LinearHead(CHANNELS, STRIDES, 5, seed=0), [window], 1, backward=True) is None


@pytest.mark.parametrize("norm", ["statistics", "batch"])
def test_head_learns_a_linear_answer_and_repeats_itself_bit_for_bit(norm: str) -> None:
    images = []
    for seed in range(6):
        image = encoded_image(seed, 64, 64)
        answer = resize_map(image.tiles[0].maps[0][None], 8)[0, :, :64, :64].argmax(0)
        images.append(with_maps(image, image.tiles[0].maps, answer.to(torch.uint8)))

    def trained(seed: int, steps: int) -> LinearHead:
        config = dataclasses.replace(CONFIG, steps=steps, loss_stride_px=4, norm=norm)
        head = LinearHead(CHANNELS, STRIDES, 3, seed, batch_norm=norm == "batch")
        if norm == "statistics":
            head.set_statistics(statistics_of(images))
        return train_head(CachedWindows(images, STRIDES, config, seed), head, config, CPU)

    first = trained(3, 100)
    right = np.mean([predict_labels(first, image, CPU) == image.labels.numpy() for image in images])
    assert right > 0.85
    short, again = trained(3, 6), trained(3, 6)
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), again.parameters(), strict=True))
    assert not torch.equal(short.weights[0], trained(4, 6).weights[0])


@pytest.mark.parametrize("norm", ["statistics", "batch"])
def test_a_training_that_was_ended_goes_on_to_the_same_bits(tmp_path: Path, norm: str) -> None:
    images = [encoded_image(seed, 64, 64) for seed in range(5)]
    config = dataclasses.replace(CONFIG, steps=9, loss_stride_px=8, norm=norm)

    class Ended(Exception):
        pass

    def trained(checkpoint: HeadCheckpoint | None, until: int = 9) -> LinearHead:
        def end(step: int) -> None:
            if step == until and until < 9:
                raise Ended

        head = LinearHead(CHANNELS, STRIDES, 5, seed=1, batch_norm=norm == "batch")
        return train_head(CachedWindows(images, STRIDES, config, 1), head, config, CPU, end, checkpoint)

    saved = HeadCheckpoint(tmp_path / "heads/a.pt", every_steps=2)
    with pytest.raises(Ended):
        trained(saved, until=5)
    steps: list[int] = []
    head = LinearHead(CHANNELS, STRIDES, 5, seed=1, batch_norm=norm == "batch")
    train_head(CachedWindows(images, STRIDES, config, 1), head, config, CPU, steps.append, saved)
    assert steps == [5, 6, 7, 8, 9] and not (tmp_path / "heads/a.pt").exists()
    undisturbed = trained(None).state_dict()
    assert all(torch.equal(value, undisturbed[name]) for name, value in head.state_dict().items())
    (tmp_path / "heads/a.pt").write_bytes(b"torn")
    with pytest.raises(DataError, match="trained from its start"):
        trained(saved)


def test_what_shapes_a_training_is_in_its_key() -> None:
    keys = {training_key("m", "i", CONFIG, 0), training_key("m", "i", dataclasses.replace(CONFIG, pictures=9), 0)}
    assert len(keys) == 1
    for changes in ({"lr": 0.1}, {"steps": 61}, {"levels": (3,)}, {"resize_px": (9, 9)}, {"cache_dtype": "float32"}):
        keys.add(training_key("m", "i", dataclasses.replace(CONFIG, **changes), 0))  # type: ignore[arg-type]
    keys |= {training_key("n", "i", CONFIG, 0), training_key("m", "j", CONFIG, 0), training_key("m", "i", CONFIG, 1)}
    assert len(keys) == 9


def test_overlapping_windows_are_averaged_and_brought_to_the_labels_size() -> None:
    class ConstantPerWindow:
        strides = STRIDES

        def __call__(self, maps: list[Tensor]) -> Tensor:
            return maps[0][:, :3]  # the cells are the scores

    def tile(left: int, scores: tuple[float, float, float]) -> EncodedTile:
        finest = torch.tensor(scores)[:, None, None].expand(3, 8, 8)
        return EncodedTile((0, left, 64, 64), (finest, *(torch.zeros(1, 1, 1) for _ in range(3))))

    tiles = (tile(0, (1.0, 0.8, 0.0)), tile(32, (0.0, 0.8, 1.0)))
    image = EncodedImage("a", (64, 96), tiles, torch.zeros(64, 96, dtype=torch.uint8))
    predicted = predict_labels(ConstantPerWindow(), image, CPU)  # type: ignore[arg-type]
    assert [set(np.unique(predicted[:, n : n + 32])) for n in (0, 32, 64)] == [{0}, {1}, {2}]
    half = dataclasses.replace(image, labels=torch.zeros(32, 48, dtype=torch.uint8))
    smaller = predict_labels(ConstantPerWindow(), half, CPU)  # type: ignore[arg-type]
    assert smaller.shape == (32, 48) and set(np.unique(smaller[:, :12])) == {0} and set(smaller[0, 20:28]) == {1}

"""Augmentations: as PIL and torchvision define them, the same for both frames, seeded by the sample."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mcjepa.pipeline.settings.stream import ColourJitterConfig, PairAugmentConfig, StreamConfig, ViewAugmentConfig
from mcjepa.pipeline.stream import frames as jpeg
from mcjepa.pipeline.stream.augment import colour
from mcjepa.pipeline.stream.augment.geometry import (
    CropBox,
    choose_reduction,
    cut_and_resize,
    draw_resized_crop,
    draw_scaled_crop,
    reduce_box,
)
from mcjepa.pipeline.stream.augment.pairs import choose_frames, make_pair
from mcjepa.pipeline.stream.augment.views import make_views
from mcjepa.pipeline.stream.seeding import seeded_random
from tests.pipeline.decoded_frame import DecodedFrame

NO_JITTER = ColourJitterConfig(probability=0.0)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A smooth coloured picture with texture, 90x120: as a photo, it has no hard pixel noise."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC))


def both(frame0: np.ndarray, frame1: np.ndarray) -> tuple[DecodedFrame, DecodedFrame]:
    return DecodedFrame(frame0), DecodedFrame(frame1)


def mean_difference(ours: np.ndarray, theirs: Image.Image) -> tuple[float, int]:
    difference = np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
    return float(difference.mean()), int(difference.max())


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (colour.adjust_brightness, ImageEnhance.Brightness),
        (colour.adjust_contrast, ImageEnhance.Contrast),
        (colour.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_colour_adjustments_equal_those_of_pil(
    photo: np.ndarray,
    adjust: Callable[..., np.ndarray],
    enhancer: Callable[..., ImageEnhance.Color],
    factor: float,
) -> None:
    mean, worst = mean_difference(adjust(photo, factor), enhancer(Image.fromarray(photo)).enhance(factor))
    assert mean < 0.6 and worst <= 2  # one level of rounding in the grey image, doubled by the blend


def test_brightness_of_single_values_by_hand() -> None:
    image = np.array([[[0, 100, 200]]], dtype=np.uint8)
    assert colour.adjust_brightness(image, 1.3).tolist() == [[[0, 130, 255]]]
    assert colour.adjust_contrast(np.full((2, 2, 3), 80, np.uint8), 1.4).tolist() == [[[80] * 3] * 2] * 2


@pytest.mark.parametrize("turn", [-0.1, 0.05, 0.1, 0.5])
def test_hue_turns_as_torchvision_turns_it_in_pil(photo: np.ndarray, turn: float) -> None:
    hue, saturation, value = Image.fromarray(photo).convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(turn * 255)) % 256
    channels = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    mean, _ = mean_difference(colour.adjust_hue(photo, turn), Image.merge("HSV", channels).convert("RGB"))
    assert mean < 1.5
    assert mean_difference(photo, Image.merge("HSV", channels).convert("RGB"))[0] > 4  # it does turn


def test_hue_leaves_grey_pixels_alone_and_turns_red_into_green() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(colour.adjust_hue(grey, 0.3), grey)
    red = np.array([[[255, 0, 0]]], dtype=np.uint8)
    turned = colour.adjust_hue(red, 1 / 3)[0, 0].tolist()
    assert turned[1] == 255 and turned[0] <= 3 and turned[2] == 0


def test_solarize_grey_and_blur_equal_those_of_pil(photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    np.testing.assert_array_equal(colour.solarize(photo), np.asarray(ImageOps.solarize(image, 128)))
    assert colour.solarize(np.array([[[127, 128, 255]]], np.uint8)).tolist() == [[[127, 127, 0]]]
    assert mean_difference(colour.to_grey(photo), image.convert("L").convert("RGB"))[1] <= 1
    for sigma in (0.5, 1.0, 2.0):
        assert mean_difference(colour.blur(photo, sigma), image.filter(ImageFilter.GaussianBlur(sigma)))[0] < 1.0


@pytest.mark.parametrize(("height", "width"), [(180, 240), (45, 60), (30, 40)])
def test_resizing_is_close_to_antialiased_bicubic(photo: np.ndarray, height: int, width: int) -> None:
    ours = cut_and_resize(photo, CropBox(0, 0, 90, 120), height, width)
    theirs = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
    assert ours.shape == (height, width, 3)
    assert mean_difference(ours, theirs)[0] < 3


def test_shrinking_a_checkerboard_gives_grey_not_a_pattern() -> None:
    board = ((np.indices((96, 96)).sum(axis=0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert np.ptp(cut_and_resize(board, CropBox(0, 0, 96, 96), 24, 24)) <= 1


def test_resized_crops_cover_the_stated_areas_and_aspects() -> None:
    rng = random.Random(0)
    boxes = [draw_resized_crop(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(3000)]
    areas = np.array([box.height * box.width for box in boxes]) / (300 * 400)
    aspects = np.array([box.width / box.height for box in boxes])
    assert 0.078 < areas.min() < 0.1 and 0.9 < areas.max() <= 1
    assert 0.74 < aspects.min() < 0.78 and 1.28 < aspects.max() < 1.35
    assert all(box.top + box.height <= 300 and box.left + box.width <= 400 for box in boxes)
    assert min(box.top for box in boxes) == 0 and max(box.left for box in boxes) > 200


def test_a_crop_that_cannot_fit_is_the_largest_central_one() -> None:
    box = draw_resized_crop(10, 1000, (0.9, 1.0), (3 / 4, 4 / 3), random.Random(1))
    assert box == CropBox(0, (1000 - 13) // 2, 10, 13)
    assert draw_resized_crop(1, 1, (0.08, 1.0), (3 / 4, 4 / 3), random.Random(1)) == CropBox(0, 0, 1, 1)


def test_scaled_crop_is_unresized_at_factor_one_and_covers_small_images() -> None:
    assert (lambda b: (b.height, b.width))(draw_scaled_crop(100, 200, (64, 96), (1, 1), random.Random(0))) == (64, 96)
    small = draw_scaled_crop(48, 100, (96, 96), (1, 1), random.Random(0))
    assert (small.height, small.width) == (48, 48)
    enlarged = draw_scaled_crop(200, 200, (100, 100), (2, 2), random.Random(0))
    assert (enlarged.height, enlarged.width) == (50, 50)


def test_views_have_their_size_and_depend_on_the_seed_alone(photo: np.ndarray) -> None:
    config = ViewAugmentConfig(size=64)
    first = make_views(DecodedFrame(photo), config, seeded_random(5))
    again = make_views(DecodedFrame(photo.copy()), config, seeded_random(5))
    other = make_views(DecodedFrame(photo), config, seeded_random(6))
    assert all(view.shape == (64, 64, 3) and view.dtype == np.uint8 for view in first)
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, three)
    assert not np.array_equal(*first)


def test_images_written_to_their_places_are_those_of_their_own(photo: np.ndarray) -> None:
    """Whatever the last filter is: also one that has nothing to do."""
    view_size, pair_config = (64, 64, 3), PairAugmentConfig(crop=(48, 64), flip=0.5, jitter=ColourJitterConfig())
    for config in (ViewAugmentConfig(size=64), ViewAugmentConfig(size=64, blur=(0, 0), jitter=NO_JITTER, grey=0)):
        for seed in range(40):
            places = np.zeros((2, *view_size), np.uint8)
            written = make_views(DecodedFrame(photo), config, seeded_random(seed), list(places))
            np.testing.assert_array_equal(places, make_views(DecodedFrame(photo), config, seeded_random(seed)))
            assert all(np.shares_memory(place, view) for place, view in zip(places, written, strict=True))
    moved = np.roll(photo, 3, axis=1)
    for seed in range(40):
        places = np.zeros((2, 48, 64, 3), np.uint8)
        make_pair(*both(photo, moved), pair_config, seeded_random(seed), list(places))
        np.testing.assert_array_equal(places, make_pair(*both(photo, moved), pair_config, seeded_random(seed)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (17, 5), (64, 64)])
def test_views_of_any_image_size(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for seed in range(20):
        assert {
            view.shape for view in make_views(DecodedFrame(image), ViewAugmentConfig(size=32), seeded_random(seed))
        } == {(32, 32, 3)}


def test_blur_and_solarize_strike_the_first_and_second_view_as_often_as_stated() -> None:
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    config = ViewAugmentConfig(
        size=64,
        area=(1, 1),
        aspect=(1, 1),
        flip=0,
        jitter=NO_JITTER,
        grey=0,
        blur=(0, 0),
        solarize=(0.0, 0.2),
    )
    views = [make_views(DecodedFrame(ramp), config, seeded_random(seed)) for seed in range(600)]
    assert all(np.array_equal(first, ramp) for first, _ in views)
    solarized = sum(np.array_equal(second, colour.solarize(ramp)) for _, second in views)
    assert 0.15 < solarized / 600 < 0.25
    assert sum(np.array_equal(second, ramp) for _, second in views) == 600 - solarized


def test_jitter_draws_every_order_and_range() -> None:
    rng = random.Random(3)
    draws = [colour.draw_jitter(ColourJitterConfig(), rng) for _ in range(3000)]
    assert 0.77 < sum(bool(draw) for draw in draws) / 3000 < 0.83
    jittered = [draw for draw in draws if draw]
    assert len({tuple(name for name, _ in draw) for draw in jittered}) == math.factorial(4)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        factors = [dict(draw)[name] for draw in jittered]
        assert low <= min(factors) < low + 0.01 and high - 0.01 < max(factors) <= high


def test_pair_frames_keep_one_geometry(photo: np.ndarray) -> None:
    config = PairAugmentConfig(crop=(48, 64), scale=(1.0, 1.5))
    moved = np.roll(photo, (2, 3), axis=(0, 1))
    for seed in range(10):
        same0, same1 = make_pair(*both(photo, photo), config, seeded_random(seed))
        np.testing.assert_array_equal(same0, same1)
        assert not np.array_equal(same0, make_pair(*both(photo, moved), config, seeded_random(seed))[1])


def test_pair_of_shifted_frames_keeps_its_shift_mirrored_with_the_frames(photo: np.ndarray) -> None:
    moved = np.roll(photo, (2, 3), axis=(0, 1))
    for flip, shift in ((0.0, 3), (1.0, -3)):
        config = PairAugmentConfig(crop=(60, 80), flip=flip)
        frame0, frame1 = make_pair(*both(photo, moved), config, seeded_random(9))
        left, right = max(0, -shift), max(0, shift)
        np.testing.assert_array_equal(frame1[2:, right : 80 - left], frame0[:-2, left : 80 - right])


def test_pair_frames_get_the_same_colour_steps(photo: np.ndarray) -> None:
    config = PairAugmentConfig(crop=(48, 64), jitter=ColourJitterConfig(probability=1.0))
    plain = PairAugmentConfig(crop=(48, 64))
    jittered, untouched = (make_pair(*both(photo, photo), each, seeded_random(2)) for each in (config, plain))
    np.testing.assert_array_equal(jittered[0], jittered[1])
    assert not np.array_equal(jittered[0], untouched[0])


def test_small_frames_are_enlarged_and_frames_of_two_sizes_refused(photo: np.ndarray) -> None:
    frame0, frame1 = make_pair(*both(photo, photo), PairAugmentConfig(crop=(128, 160)), seeded_random(0))
    assert frame0.shape == frame1.shape == (128, 160, 3)
    with pytest.raises(ValueError, match="expected one size"):
        make_pair(*both(photo, photo[1:]), PairAugmentConfig(crop=(8, 8)), seeded_random(0))


def test_chosen_frames_are_consecutive_spread_over_the_clip_and_swapped_by_half() -> None:
    config = PairAugmentConfig()
    chosen = [choose_frames(5, seeded_random(seed), config) for seed in range(400)]
    assert {tuple(sorted(pair)) for pair in chosen} == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert 150 < sum(first > second for first, second in chosen) < 250
    assert choose_frames(4, seeded_random(0), PairAugmentConfig(frame_gap=3, swap=0)) == (0, 3)
    with pytest.raises(ValueError, match="2 frames, expected more than frame_gap=2"):
        choose_frames(2, seeded_random(0), PairAugmentConfig(frame_gap=2))


def test_jpegs_are_decoded_and_damaged_ones_refused(photo: np.ndarray) -> None:
    data = cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    grey = cv2.imencode(".jpg", photo[..., 0])[1].tobytes()
    decoded = jpeg.decode_jpeg(data)
    assert decoded.shape == photo.shape and np.abs(decoded.astype(int) - photo).mean() < 3
    assert jpeg.decode_jpeg(grey).shape == photo.shape
    by_opencv = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(by_opencv.astype(int) - decoded).max() <= 3
    damaged = (data[: len(data) // 2], b"", b"no picture", data[:300])
    for broken in damaged:
        with pytest.raises(ValueError):
            jpeg.decode_jpeg(broken)


class StoredJpeg:
    """A JPEG in memory that counts at which reductions it was decoded."""

    def __init__(self, image: np.ndarray, *, reducible: bool = True) -> None:
        self._data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        self.reducible, self.reductions = reducible, list[int]()

    @property
    def size(self) -> tuple[int, int]:
        return jpeg.jpeg_size(self._data.tobytes())

    def decode(self, reduction: int = 1) -> np.ndarray:
        self.reductions.append(reduction)
        return jpeg.decode_jpeg(self._data.tobytes(), reduction)


@pytest.fixture(scope="module")
def large_photo() -> np.ndarray:
    """Texture of every size, fine ones fainter, as photos have it; 601x803: sides that no reduction divides."""
    rng, picture = np.random.default_rng(3), np.full((601, 803, 3), 128.0)
    for cell_px in (2, 4, 8, 16, 32, 64, 128):
        noise = rng.normal(0, 6 * cell_px**0.4, (601 // cell_px + 2, 803 // cell_px + 2, 3))
        picture += cv2.resize(noise, (803, 601), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_decoding_is_a_small_version_of_the_whole(large_photo: np.ndarray, reduction: int) -> None:
    stored = StoredJpeg(large_photo)
    reduced = stored.decode(reduction)
    height, width = -(-601 // reduction), -(-803 // reduction)
    assert reduced.shape == (height, width, 3)
    padded = cv2.copyMakeBorder(
        stored.decode(), 0, height * reduction - 601, 0, width * reduction - 803, cv2.BORDER_REPLICATE
    )
    assert np.abs(reduced.astype(int) - cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)).mean() < 3


def test_the_reduction_is_the_largest_that_no_crop_falls_below(large_photo: np.ndarray) -> None:
    boxes = {side: CropBox(0, 0, side, side + 9) for side in (63, 64, 127, 128, 255, 256, 511, 512)}
    stored = StoredJpeg(large_photo)
    chosen = {side: choose_reduction(stored, (box,), (64, 64)) for side, box in boxes.items()}
    assert chosen == {63: 1, 64: 1, 127: 1, 128: 2, 255: 2, 256: 4, 511: 4, 512: 8}
    assert choose_reduction(stored, (boxes[512], boxes[128]), (64, 64)) == 2
    assert choose_reduction(StoredJpeg(large_photo, reducible=False), (boxes[512],), (64, 64)) == 1


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_crop_of_the_reduced_image_is_that_of_the_whole_one(large_photo: np.ndarray, reduction: int) -> None:
    stored = StoredJpeg(large_photo)
    image, reduced = stored.decode(), stored.decode(reduction)
    for top, left, side in ((0, 0, 576), (16, 64, 520), (24, 224, 576)):
        box = CropBox(top, left, side, side)
        ours = cut_and_resize(reduced, reduce_box(box, reduction, reduced), 64, 64)
        assert np.abs(ours.astype(int) - cut_and_resize(image, box, 64, 64)).mean() < 4
    edge = reduce_box(CropBox(2, 4, 599, 799), reduction, reduced)
    assert edge.top >= 0 and edge.top + edge.height <= reduced.shape[0] and edge.left + edge.width <= reduced.shape[1]


def test_views_of_a_reduced_image_are_those_of_the_whole_one(large_photo: np.ndarray) -> None:
    config = ViewAugmentConfig(size=64, jitter=NO_JITTER, grey=0, blur=(0, 0), solarize=(0, 0))
    reductions: list[int] = []
    for seed in range(30):
        stored, whole = StoredJpeg(large_photo), StoredJpeg(large_photo, reducible=False)
        ours, full = (make_views(each, config, seeded_random(seed)) for each in (stored, whole))
        reductions += stored.reductions
        for one, other in zip(ours, full, strict=True):
            assert one.shape == (64, 64, 3)
            assert np.abs(one.astype(int) - other).mean() < 8  # the box is rounded to half a pixel of the view
            assert np.abs(one.astype(int).mean((0, 1)) - other.mean((0, 1))).max() < 1
    assert {1, 2, 4} & set(reductions) >= {2, 4} and len(reductions) == 30


def test_pairs_of_reduced_frames_keep_their_shift(large_photo: np.ndarray) -> None:
    """Both frames are decoded alike, so a shift of 8 px is one of 2 px after the crop at a quarter of the scale."""
    frame0, frame1 = large_photo[:592, :792], large_photo[8:600, 8:800]
    config = PairAugmentConfig(crop=(96, 128), scale=(0.25, 0.25), flip=0)
    stored = StoredJpeg(frame0), StoredJpeg(frame1)
    cut0, cut1 = make_pair(*stored, config, seeded_random(4))
    assert stored[0].reductions == stored[1].reductions == [4]
    shifted = {
        shift: np.abs(cut0[shift:, shift:].astype(int) - cut1[: 96 - shift, : 128 - shift]).mean() for shift in range(5)
    }
    assert min(shifted, key=shifted.__getitem__) == 2 and shifted[2] < 0.25 * shifted[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViewAugmentConfig(size=0), "at least 1 px"),
        (lambda: ViewAugmentConfig(area=(0.5, 1.5)), "at most 1"),
        (lambda: ViewAugmentConfig(blur=(1.2, 0)), r"share in \[0, 1\]"),
        (lambda: PairAugmentConfig(crop=(0, 5)), "at least 1 px"),
        (lambda: PairAugmentConfig(scale=(2.0, 1.0)), "smaller one first"),
        (lambda: PairAugmentConfig(frame_gap=0), "at least 1 frame"),
        (lambda: ColourJitterConfig(hue=0.7), "at most 0.5"),
        (lambda: StreamConfig(pair_batch=0, view_batch=0), "both 0"),
        (lambda: StreamConfig(prefetch=0), "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

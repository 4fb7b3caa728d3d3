"""The flow of rendered sequences is exact: hand-known motions, and frames warped onto each other."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora.moving_photos.generate import load_photos
from mcjepa.data_prep.corpora.moving_photos.layered_motion import (
    Layer,
    LayerMotion,
    RenderedSequence,
    render_layers,
    render_sequence,
)
from mcjepa.data_prep.settings import MovingPhotosConfig

CONFIG = MovingPhotosConfig(out="unused")
SIZE = 64


@pytest.fixture(scope="module")
def photos(photos_of_packages: list[Path]) -> tuple[np.ndarray, ...]:
    return load_photos(tuple(str(p) for p in photos_of_packages))


def textured(side: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    colour = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.dstack([colour, np.full((side, side), 255, np.uint8)])


def background(motion: LayerMotion) -> Layer:
    return Layer(textured(4 * SIZE, 0), motion, photo=0, endless=True)


def warp_back(sequence: RenderedSequence, t: int) -> np.ndarray:
    """Frame t+1 sampled at x + flow(x): what frame t shows, where the point is visible in both."""
    y, x = np.mgrid[: sequence.flow.shape[1], : sequence.flow.shape[2]].astype(np.float32)
    flow = sequence.flow[t]
    following = sequence.frames[t + 1].astype(np.float32)
    return cv2.remap(following, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)


def test_a_pure_translation_has_exactly_that_flow() -> None:
    middle = (SIZE - 1) / 2
    sequence = render_layers([background(LayerMotion((middle, middle), (2.5, -1.25)))], 4, SIZE)
    assert np.abs(sequence.flow - np.array([2.5, -1.25], np.float32)).max() < 1e-5
    # a point leaves the frame at the right by 2.5 px and at the top by 1.25 px
    assert sequence.occluded[0][10, SIZE - 3 :].all() and not sequence.occluded[0][10, : SIZE - 3].any()
    assert sequence.occluded[0][:2, 10].all() and not sequence.occluded[0][2:, 10].any()


def test_whole_pixel_translation_repeats_the_very_pixels() -> None:
    middle = (SIZE - 1) / 2
    frames = render_layers([background(LayerMotion((middle, middle), (3.0, 2.0)))], 4, SIZE).frames.astype(int)
    assert np.abs(frames[1, 2:, 3:] - frames[0, :-2, :-3]).max() <= 1


def test_rotation_about_the_centre_turns_a_quarter_as_it_should() -> None:
    middle = (SIZE - 1) / 2
    motion = LayerMotion((middle, middle), turn_rad=np.pi / 2)
    flow = render_layers([background(motion)], 2, SIZE).flow[0]
    # the point 10 px right of the centre goes to 10 px below it (v points down)
    y, x = SIZE // 2, SIZE // 2 + 10
    u, v = x - middle, y - middle
    np.testing.assert_allclose(flow[y, x], [-v - u, u - v], atol=1e-4)


def test_an_object_hides_what_lies_before_it_and_has_its_own_flow() -> None:
    middle = (SIZE - 1) / 2
    still = background(LayerMotion((middle, middle)))
    moving = Layer(textured(2 * 16, 1), LayerMotion((middle, middle), (4.0, 0.0)), photo=1)
    sequence = render_layers([still, moving], 2, SIZE)
    objects, occluded = sequence.objects[0], sequence.occluded[0]
    assert (objects == 1).sum() == 16 * 16
    assert np.abs(sequence.flow[0][objects == 1] - np.array([4, 0])).max() < 1e-5
    assert np.abs(sequence.flow[0][objects == 0]).max() < 1e-5
    assert occluded.sum() == 4 * 16  # the stripe that the object moves onto
    rows, columns = np.nonzero(occluded)
    assert columns.min() == np.nonzero(objects.any(0))[0].max() + 1 and np.ptp(columns) == 3 and np.ptp(rows) == 15
    assert set(np.unique(sequence.classes[0])) <= {0, 1, 255}


@pytest.mark.parametrize("seed", range(4))
def test_warping_the_next_frame_by_the_flow_reproduces_the_frame(photos, seed: int) -> None:
    sequence = render_sequence(photos, CONFIG, seed)
    for t in range(CONFIG.frames - 1):
        visible = ~sequence.occluded[t]
        error = np.abs(warp_back(sequence, t) - sequence.frames[t]).mean(-1)[visible]
        still = np.abs(sequence.frames[t + 1].astype(float) - sequence.frames[t]).mean(-1)[visible]
        assert np.median(error) < 4.0
        assert error.mean() < 0.35 * still.mean()


def test_motion_is_of_the_wanted_size(photos) -> None:
    magnitudes = [np.linalg.norm(render_sequence(photos, CONFIG, s).flow, axis=-1) for s in range(12)]
    assert 3.5 < np.mean(magnitudes) < 5.5
    assert np.max(magnitudes) < 30


def test_the_seed_decides_every_byte(photos) -> None:
    first, again, other = (render_sequence(photos, CONFIG, s) for s in (3, 3, 4))
    for name in ("frames", "flow", "occluded", "objects", "classes"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert first.frames.tobytes() != other.frames.tobytes()


def test_shapes_and_types(photos) -> None:
    sequence = render_sequence(photos, CONFIG, 0)
    frames, size = CONFIG.frames, CONFIG.size
    assert sequence.frames.shape == (frames, size, size, 3) and sequence.frames.dtype == np.uint8
    assert sequence.flow.shape == (frames - 1, size, size, 2) and sequence.flow.dtype == np.float32
    assert sequence.occluded.shape == (frames - 1, size, size) and sequence.occluded.dtype == bool
    assert sequence.objects.shape == sequence.classes.shape == (frames, size, size)


def test_a_sequence_takes_a_fraction_of_a_second(photos) -> None:
    render_sequence(photos, CONFIG, 0)
    started = time.process_time()
    for seed in range(4):
        render_sequence(photos, CONFIG, seed)
    assert (time.process_time() - started) / 4 < 0.5  # 0.05 s on an idle core

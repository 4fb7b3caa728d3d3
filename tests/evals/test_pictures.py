"""Pictures: the colour wheel's known hues, unknown flow, void labels, PCA that agrees over a video."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mcjepa.evals.pictures import (
    class_colours,
    colour_wheel,
    error_picture,
    flow_picture,
    flow_scale,
    overlay_labels,
    pca_pictures,
    shrink_known,
    side_by_side,
    stacked,
    write_png,
)


def test_wheel_has_the_55_middlebury_hues() -> None:
    wheel = colour_wheel()
    assert wheel.shape == (55, 3)
    starts = {
        0: (255, 0, 0),
        15: (255, 255, 0),
        21: (0, 255, 0),
        25: (0, 255, 255),
        36: (0, 0, 255),
        49: (255, 0, 255),
    }
    assert {index: tuple(wheel[index].astype(int)) for index in starts} == starts
    assert tuple(wheel[1].astype(int)) == (255, 17, 0)


def test_flow_to_the_right_is_red_and_zero_flow_white() -> None:
    flow = np.array([[[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]])
    picture = flow_picture(flow, 1.0)
    assert tuple(picture[0, 0]) == (255, 0, 0)
    assert tuple(picture[0, 1]) == (255, 255, 255)
    # Half a turn away: between cyan and blue.
    red, green, blue = picture[0, 2].astype(int)
    assert red == 0 and blue == 255 and 0 < green < 255


def test_longer_flow_is_more_saturated_and_beyond_the_scale_darker() -> None:
    picture = flow_picture(np.array([[[0.5, 0.0], [1.0, 0.0], [2.0, 0.0]]]), 1.0).astype(int)
    assert tuple(picture[0, 0]) == (255, 127, 127)
    assert tuple(picture[0, 2]) == (191, 0, 0)


def test_unknown_flow_is_black_and_does_not_set_the_scale() -> None:
    flow = np.array([[[1.67e9, 1.67e9], [np.nan, 0.0], [3.0, 4.0]]])
    known = np.array([[False, True, True]])
    assert flow_scale(flow, known) == 5.0
    picture = flow_picture(flow, 5.0, known)
    assert not picture[0, :2].any() and picture[0, 2].any()
    assert flow_scale(np.full((1, 1, 2), np.nan)) == 1.0


def test_error_picture_is_grey_where_the_truth_is_unknown_and_bright_where_the_estimate_is_not_finite() -> None:
    picture = error_picture(np.array([[0.0, np.nan, 9.0]]), np.array([[True, True, False]])).astype(int)
    assert tuple(picture[0, 2]) == (128, 128, 128)
    assert picture[0, 1].sum() > 400 > picture[0, 0].sum()


def test_sparse_values_keep_their_size_when_they_are_shrunk() -> None:
    values, known = np.zeros((4, 8, 2)), np.zeros((4, 8), bool)
    values[0, 0], values[1, 1], known[0, 0], known[1, 1] = (2.0, 4.0), (4.0, 4.0), True, True
    values[3, 7] = np.nan
    small, where = shrink_known(values, known, widest_px=4)
    assert small.shape == (2, 4, 2)
    assert small[0, 0].tolist() == [3.0, 4.0]
    assert where.tolist() == [[True, False, False, False], [False] * 4]
    same, _ = shrink_known(values, known, widest_px=8)
    assert same.shape == values.shape and np.isfinite(same).all()


def test_class_colours_are_far_apart_and_none_is_dark() -> None:
    colours = class_colours(20).astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(20, dtype=int)
    assert distance.min() > 30
    assert colours.max(1).min() > 150
    assert np.array_equal(class_colours(256)[:20], colours)


def test_overlay_leaves_void_and_clear_pixels_as_they_are() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    tinted = overlay_labels(image, np.array([[0, 1, 255]]), clear=0)
    assert tinted[0, 0].tolist() == tinted[0, 2].tolist() == [100, 100, 100]
    expected = np.rint(0.4 * 100 + 0.6 * class_colours(2)[1].astype(float))
    assert tinted[0, 1].tolist() == expected.tolist()


def test_pca_gives_the_same_feature_the_same_colour_in_every_frame() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(3, 8, 5, 6))
    features[1:, :, 2, 3] = features[0, :, 2, 3][None]
    pictures = pca_pictures(features)
    assert len(pictures) == 3 and pictures[0].shape == (5, 6, 3)
    assert len({tuple(picture[2, 3]) for picture in pictures}) == 1
    assert all(np.array_equal(one, two) for one, two in zip(pictures, pca_pictures(features), strict=True))


def test_pca_of_constant_or_few_channels_does_not_fail() -> None:
    assert pca_pictures(np.ones((1, 2, 3, 3)))[0].shape == (3, 3, 3)


def test_panels_get_the_first_ones_size_and_a_transparent_gap(tmp_path: Path) -> None:
    row = side_by_side([np.full((20, 30, 3), 10, np.uint8), np.full((5, 8, 3), 20, np.uint8)])
    assert row.shape == (20, 66, 4)
    assert row[:, 30:36, 3].max() == 0 and row[0, 0, 3] == row[0, 40, 3] == 255
    assert side_by_side([np.zeros((200, 640, 3), np.uint8)]).shape == (100, 320, 4)
    assert stacked([row, row]).shape == (46, 66, 4)
    path = write_png(tmp_path / "new" / "row.png", row)
    back = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    assert np.array_equal(back, row)

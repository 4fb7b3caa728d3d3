"""Flow file formats against bytes written out by hand."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mcjepa.data_prep.corpora.flow.files import (
    decode_flo,
    decode_kitti_png,
    encode_flo,
    encode_kitti_png,
    read_flo,
    read_kitti_png,
    read_pfm,
    write_flo,
    write_kitti_png,
)
from mcjepa.data_prep.errors import DataError
from tests.pfm import encode_pfm

FLOW = np.array([[[1.5, -2.25], [0.0, 3.0]], [[-0.125, 8.0], [100.0, -100.0]], [[7, 8], [9, 10]]], np.float32)


def test_flo_bytes_are_tag_width_height_then_rows_of_u_v(tmp_path: Path) -> None:
    path = tmp_path / "a.flo"
    write_flo(path, FLOW)
    assert path.read_bytes() == b"PIEH" + struct.pack("<ii12f", 2, 3, *FLOW.ravel())
    assert struct.unpack("<f", b"PIEH")[0] == 202021.25
    np.testing.assert_array_equal(read_flo(path), FLOW)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"XIEH" + d[4:], lambda d: b""])
def test_flo_of_wrong_length_or_tag_is_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "a.flo"
    write_flo(path, FLOW)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.flo"):
        read_flo(path)


def test_kitti_png_stores_64ths_of_a_pixel_and_validity(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    valid = np.array([[True, False], [True, True], [True, True]])
    write_kitti_png(path, FLOW, valid)
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert raw[0, 0].tolist() == [1, 32768 - 144, 32768 + 96]  # B valid, G v = -2.25, R u = 1.5
    assert raw[0, 1].tolist() == [0, 0, 0]
    flow, read_valid = read_kitti_png(path)
    np.testing.assert_array_equal(read_valid, valid)
    np.testing.assert_array_equal(flow, np.where(valid[..., None], FLOW, 0))


def test_kitti_png_refuses_flow_beyond_its_range_only_where_valid(tmp_path: Path) -> None:
    far = FLOW * np.float32(6)
    with pytest.raises(DataError, match="511"):
        write_kitti_png(tmp_path / "a.png", far, np.ones((3, 2), bool))
    write_kitti_png(tmp_path / "a.png", far, np.abs(far).max(-1) < 500)


def test_kitti_reader_refuses_an_ordinary_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="16-bit"):
        read_kitti_png(tmp_path / "a.png")


@pytest.mark.parametrize(("scale", "order"), [("-1.0", "<"), ("1.0", ">")])
def test_pfm_of_both_byte_orders_has_its_first_row_last(tmp_path: Path, scale: str, order: str) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(f"Pf\n2 2\n{scale}\n".encode() + struct.pack(f"{order}4f", 3, 4, 1, 2))
    np.testing.assert_array_equal(read_pfm(path), np.array([[1, 2], [3, 4]], np.float32))


@pytest.mark.parametrize(
    "header",
    [
        "Pf\n2\n2\n-1.0\n",
        "Pf\n# made by a camera\n2 2\n# little-endian\n-1\n",
        "Pf # one channel\n2 2 -1e0\n",
        "Pf\r\n2 2\r\n-1.0\r\n",
    ],
)
def test_pfm_headers_of_other_programs_are_read(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(header.encode() + struct.pack("<4f", 3, 4, 1, 2))
    np.testing.assert_array_equal(read_pfm(path), np.array([[1, 2], [3, 4]], np.float32))


def test_pfm_with_missing_pixels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pfm").write_bytes(b"PF\n2 2\n-1.0\n" + bytes(40))
    with pytest.raises(DataError, match="40 bytes"):
        read_pfm(tmp_path / "a.pfm")


def test_real_kitti_flow_survives_a_round_trip(sample_data: Path, tmp_path: Path) -> None:
    flow, valid = read_kitti_png(sample_data / "flow" / "kitti_devkit" / "flow_gt.png")
    assert round(100 * valid.mean(), 2) == 23.90
    write_kitti_png(tmp_path / "b.png", flow, valid)
    again, again_valid = read_kitti_png(tmp_path / "b.png")
    np.testing.assert_array_equal(again, flow)
    np.testing.assert_array_equal(again_valid, valid)


def test_real_pfm_is_read(sample_data: Path) -> None:
    weights = read_pfm(sample_data / "flow/FlyingChairs2_crop50/train/0000000-occ_weights_01.pfm")
    assert weights.shape[:2] == (50, 50)
    assert weights.min() >= 0 and weights.max() <= 1 + 1e-6


sizes = st.tuples(st.integers(1, 7), st.integers(1, 9))


@given(sizes.flatmap(lambda size: arrays(np.float32, (*size, 2), elements=st.floats(width=32, allow_nan=False))))
@settings(max_examples=50, deadline=None)
def test_any_flow_is_exact_after_a_round_trip_through_flo_and_pfm(flow: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_flo(encode_flo(flow), "a.flo"), flow)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pfm"
        path.write_bytes(encode_pfm(flow))
        read = read_pfm(path)
    np.testing.assert_array_equal(read[..., :2], flow)
    assert read.shape[2] == 3 and not read[..., 2].any()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_any_flow_in_range_comes_back_from_a_kitti_png_to_half_a_64th(data: st.DataObject) -> None:
    size = data.draw(sizes)
    flow = data.draw(arrays(np.float32, (*size, 2), elements=st.floats(-512, 511.984375, width=32)))
    valid = data.draw(arrays(np.bool_, size))
    again, read_valid = decode_kitti_png(encode_kitti_png(flow, valid), "a.png")
    np.testing.assert_array_equal(read_valid, valid)
    assert np.abs(again - flow)[valid].max(initial=0.0) <= 0.5 / 64
    assert not again[~valid].any()
    twice, _ = decode_kitti_png(encode_kitti_png(again, valid), "a.png")
    np.testing.assert_array_equal(twice, again)


def test_kitti_png_refuses_values_that_are_no_numbers() -> None:
    flow = np.full((1, 2, 2), np.nan, np.float32)
    with pytest.raises(DataError, match="511"):
        encode_kitti_png(flow, np.ones((1, 2), bool))


def test_pfm_of_other_shapes_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 2, 4\)"):
        encode_pfm(np.zeros((2, 2, 4), np.float32))

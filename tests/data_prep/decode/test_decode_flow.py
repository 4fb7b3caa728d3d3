"""Pairs become flow samples with exact truth, clips of two frames, or single images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcjepa.data_prep.corpora.flow.files import read_flo, write_flo, write_kitti_png
from mcjepa.data_prep.corpora.image_files import decode_rgb, write_png
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.client import DecodeClient
from mcjepa.data_prep.decode.cutter import CutSample, cut_input
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from tests.data_prep.small_corpora import smooth_frames

FLOW = DatasetConfig(kind="flow", corpora=(CorpusConfig(reader="x"),), short_side=16, timeout_s=60)
FRAMES = smooth_frames(0, 2, 48, 64)
NAMES = {"frame0": "a.png", "frame1": "b.png", "flow": "f.flo", "valid": "valid.png", "occluded": "occ.png"}


@pytest.fixture
def pair(tmp_path: Path) -> Input:
    """A pair with flow, of which one pixel is unknown by the file and one by a mask, and an occlusion mask."""
    write_png(tmp_path / "a.png", FRAMES[0])
    write_png(tmp_path / "b.png", FRAMES[1])
    flow = np.random.default_rng(0).normal(0, 9, (48, 64, 2)).astype(np.float32)
    flow[0, 0] = 2e9
    write_flo(tmp_path / "f.flo", flow)
    valid, occluded = np.full((48, 64), 255, np.uint8), np.zeros((48, 64), np.uint8)
    valid[0, 1] = 0
    occluded[5, 5] = 255
    write_png(tmp_path / "valid.png", valid)
    write_png(tmp_path / "occ.png", occluded)
    return Input("p", str(tmp_path), "pair", tuple(NAMES.values()), tuple(NAMES))


def grey(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def cut(item: Input, config: DatasetConfig) -> list[CutSample]:
    pieces = list(cut_input(item, config))
    assert all(isinstance(p, CutSample) for p in pieces)
    return pieces  # type: ignore[return-value]


def test_a_flow_sample_holds_the_pair_without_loss(pair: Input, tmp_path: Path) -> None:
    with DecodeClient(FLOW) as client:
        (sample,) = client.cut(replace(pair, label="chairs"))
    assert isinstance(sample, CutSample)
    assert list(sample.members) == ["0.png", "1.png", "flow.flo", "valid.png", "occ.png"]
    assert sample.meta == {"fps_hz": None, "pts_s": [None, None], "frame_index": [0, 1], "label": "chairs"}
    for k in (0, 1):
        assert (decode_rgb(sample.members[f"{k}.png"], "png") == FRAMES[k]).all()
    (tmp_path / "back.flo").write_bytes(sample.members["flow.flo"])
    flow, truth = read_flo(tmp_path / "back.flo"), read_flo(tmp_path / "f.flo")
    unknown = np.zeros((48, 64), bool)
    unknown[0, :2] = True
    assert (flow[unknown] == np.float32(1e10)).all() and (flow[~unknown] == truth[~unknown]).all()
    assert (grey(sample.members["valid.png"]) == np.where(unknown, 0, 255)).all()
    assert grey(sample.members["occ.png"]).sum() == 255


def test_kitti_flow_is_read_by_its_suffix(pair: Input, tmp_path: Path) -> None:
    flow, valid = np.full((48, 64, 2), 1.5, np.float32), np.ones((48, 64), bool)
    valid[7] = False
    write_kitti_png(tmp_path / "f.png", flow, valid)
    item = replace(pair, members=("a.png", "b.png", "f.png"), roles=("frame0", "frame1", "flow"))
    (sample,) = cut(item, FLOW)
    assert "occ.png" not in sample.members
    assert (grey(sample.members["valid.png"]) == np.where(valid, 255, 0)).all()


def test_pairs_also_make_clips_and_images(pair: Input) -> None:
    clips = replace(FLOW, kind="clip", short_side=24, frame_step=3)
    (sample,) = cut(pair, clips)
    assert list(sample.members) == ["00.jpg", "01.jpg"] and sample.meta["frame_index"] == [0, 1]
    assert decode_rgb(sample.members["00.jpg"], "jpg").shape == (24, 32, 3)
    with pytest.raises(Unwanted, match="a sample spans 3"):
        cut(pair, replace(clips, frames=3))
    assert [s.meta["frame_index"] for s in cut(pair, replace(FLOW, kind="image", encoding="webp"))] == [[0], [1]]


def test_what_is_no_sound_pair_gives_no_flow_sample(pair: Input, tmp_path: Path) -> None:
    with pytest.raises(Unwanted, match="an input of kind video; flow samples are cut from pairs"):
        cut(Input("v", str(tmp_path / "v.mp4"), "video"), FLOW)
    with pytest.raises(Unwanted, match="the short side must be at least 50"):
        cut(pair, replace(FLOW, min_size=50))
    with pytest.raises(DecodeFailure, match=r"64x48 px are 0\.0 megapixels; at most 0\.001"):
        cut(pair, replace(FLOW, max_megapixels=0.001))
    with pytest.raises(DecodeFailure, match="has no frame1"):
        cut(replace(pair, members=pair.members[:1], roles=pair.roles[:1]), FLOW)
    with pytest.raises(DataError, match="has no flow"):
        cut(replace(pair, members=pair.members[:2], roles=pair.roles[:2]), FLOW)
    write_flo(tmp_path / "f.flo", np.zeros((24, 64, 2), np.float32))
    only_flow = replace(pair, members=pair.members[:3], roles=pair.roles[:3])
    with pytest.raises(DecodeFailure, match="flow of 64x24 px, frames of 64x48 px"):
        cut(only_flow, FLOW)
    write_png(tmp_path / "b.png", FRAMES[1][:40])
    with pytest.raises(DecodeFailure, match="frames of 64x48 and 64x40 px"):
        cut(pair, FLOW)

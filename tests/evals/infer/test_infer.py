"""A clip to its files: what is written, colours that are the same all over a clip, continuing, interrupts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from mcjepa.data_prep.corpora.flow.files import read_flo, read_kitti_png
from mcjepa.data_prep.corpora.image_files import read_rgb
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.infer.clip import Clip, Frame
from mcjepa.evals.infer.run import infer_clip
from mcjepa.evals.infer.settings import InferConfig
from mcjepa.evals.pictures import flow_picture

EVERYTHING = InferConfig(write=("flo", "kitti", "colour", "video", "features"), tile_px=128, overlap_px=64)
SIZE = (49, 65)


class BrightnessFlow:
    """Flow = the change of the mean brightness, so that every pair has its own; features are means of colours."""

    def __init__(self, fails_at: int = -1) -> None:
        self.pairs = 0
        self._fails_at = fails_at

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(image_B3HW, 2**level) for level in range(1, 7)]

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        if self.pairs == self._fails_at:
            raise KeyboardInterrupt
        self.pairs += len(frame0_B3HW)
        change = (frame1_B3HW.mean((1, 2, 3)) - frame0_B3HW.mean((1, 2, 3))) * 100
        flow = torch.zeros(len(change), 2, *frame0_B3HW.shape[-2:])
        flow[:, 0], flow[:, 1] = change[:, None, None], torch.linspace(0, 3, SIZE[1])
        return flow


def _clip(frames: int, name: str = "clip", sizes: dict[int, tuple[int, int]] | None = None) -> Clip:
    def frame(number: int) -> Frame:
        random = np.random.default_rng(number % 5)  # frames 0 and 5 are the same
        small = random.integers(0, 256, (4, 5, 3), np.uint8)
        height, width = (sizes or {}).get(number, SIZE)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)

    def read(numbers: Sequence[int]) -> Iterator[Frame]:
        return (frame(number) for number in numbers)

    names = tuple(f"{number:03d}" for number in range(frames))
    return Clip(name=name, source=(f"/somewhere/{name}",), frames=names, read=read, fps_hz=12.5, bytes=frames)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _infer(clip: Clip, out: Path, config: InferConfig = EVERYTHING, model: BrightnessFlow | None = None, **more: bool):  # type: ignore[no-untyped-def]
    return infer_clip(model or BrightnessFlow(), "digest", clip, config, out, **more)


def test_every_product_of_a_clip_is_written(tmp_path: Path) -> None:
    clip = _clip(7)
    result = _infer(clip, tmp_path)
    written = set(_files(tmp_path))
    pairs, frames = [f"{n:03d}" for n in range(6)], [f"{n:03d}" for n in range(7)]
    expected = {f"clip/flo/{n}.flo" for n in pairs} | {
        f"clip/{kind}/{n}.png" for kind in ("kitti", "colour") for n in pairs
    }
    expected |= {f"clip/features/{n}.png" for n in frames} | {"clip/flow.mp4", "clip/features.mp4"}
    assert written == expected | {"clip/infer.json"}
    assert {str(path.relative_to(tmp_path)) for path in result.written} == expected and result.kept == 0
    flow = read_flo(tmp_path / "clip/flo/002.flo")
    frame2, frame3 = clip.read([2, 3])
    assert flow.shape == (*SIZE, 2)
    assert flow[0, 0, 0] == pytest.approx((frame3.mean() - frame2.mean()) / 2.55, abs=1e-3)
    kitti, valid = read_kitti_png(tmp_path / "clip/kitti/002.png")
    assert valid.all() and np.abs(kitti - flow).max() <= 1 / 128
    colours = read_rgb(tmp_path / "clip/colour/002.png")
    assert np.array_equal(colours, flow_picture(flow, result.flow_px))
    assert not list(tmp_path.rglob("*.partial*"))


def test_movies_have_the_clips_frames_rate_and_both_panels(tmp_path: Path) -> None:
    _infer(_clip(7), tmp_path)
    for name, count in (("flow.mp4", 6), ("features.mp4", 7)):
        with av.open(str(tmp_path / "clip" / name)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(video=0))
            assert len(frames) == count and float(stream.average_rate or 0) == 12.5
            assert (stream.width, stream.height) == (2 * SIZE[1], SIZE[0] + 1)  # 49 rows are made even
            left = frames[2].to_ndarray(format="rgb24")[: SIZE[0], : SIZE[1]].astype(float)
            assert np.abs(left - next(_clip(7).read([2]))).mean() < 12


def test_one_frame_has_the_same_colours_all_over_a_clip_whatever_the_batch(tmp_path: Path) -> None:
    for batch in (1, 2, 5):
        _infer(_clip(9), tmp_path / str(batch), dataclasses.replace(EVERYTHING, batch=batch))
    first = _files(tmp_path / "1")
    assert first["clip/features/000.png"] == first["clip/features/005.png"] != first["clip/features/001.png"]
    assert first["clip/colour/000.png"] == first["clip/colour/005.png"] != first["clip/colour/001.png"]
    assert first == _files(tmp_path / "2") == _files(tmp_path / "5")


def test_a_rerun_computes_nothing_and_a_missing_file_alone_is_made_again(tmp_path: Path) -> None:
    _infer(_clip(7), tmp_path)
    before = _files(tmp_path)
    model = BrightnessFlow()
    result = _infer(_clip(7), tmp_path, model=model)
    assert result.written == [] and result.kept == len(before) - 1 and model.pairs == 0
    (tmp_path / "clip/colour/003.png").unlink()
    (tmp_path / "clip/flow.mp4").unlink()
    result = _infer(_clip(7), tmp_path, model=model)
    assert {path.name for path in result.written} == {"003.png", "flow.mp4"}
    assert model.pairs == 0  # flows came from the .flo files
    assert _files(tmp_path) == before


def test_an_interrupted_run_leaves_no_half_file_and_is_finished_as_if_undisturbed(tmp_path: Path) -> None:
    _infer(_clip(9), tmp_path / "whole")
    config = dataclasses.replace(EVERYTHING, batch=1)
    with pytest.raises(KeyboardInterrupt):
        _infer(_clip(9), tmp_path / "cut", config, BrightnessFlow(fails_at=6))
    whole, cut = _files(tmp_path / "whole"), _files(tmp_path / "cut")
    assert 1 < len(cut) < len(whole) and not any(name.endswith(".mp4") or "partial" in name for name in cut)
    assert all(whole[name] == data for name, data in cut.items())
    (tmp_path / "cut/clip/.flow.mp4.123.partial").write_bytes(b"what a killed run leaves")
    _infer(_clip(9), tmp_path / "cut", config)
    assert _files(tmp_path / "cut") == whole


def test_results_of_another_input_or_other_weights_are_not_continued(tmp_path: Path) -> None:
    _infer(_clip(4), tmp_path)
    model = BrightnessFlow()
    with pytest.raises(DataError, match=r"holds results with weights digest, this command has other.*--overwrite"):
        infer_clip(model, "other", _clip(4), EVERYTHING, tmp_path)
    moved = dataclasses.replace(_clip(4), source=("/elsewhere/clip",))
    with pytest.raises(DataError, match=r"source .*somewhere.*elsewhere"):
        _infer(moved, tmp_path)
    with pytest.raises(DataError, match="changed_ns 0, this command has 5"):  # rendered anew, as many bytes
        _infer(dataclasses.replace(_clip(4), changed_ns=5), tmp_path)
    with pytest.raises(DataError, match="frames 4, this command has 5"):
        _infer(dataclasses.replace(_clip(5), bytes=4), tmp_path)
    infer_clip(model, "other", _clip(4), dataclasses.replace(EVERYTHING, write=("flo",)), tmp_path, overwrite=True)
    assert set(_files(tmp_path)) == {"clip/infer.json", *(f"clip/flo/{n:03d}.flo" for n in range(3))}
    assert json.loads((tmp_path / "clip/infer.json").read_text())["weights"] == "other"


def test_a_folder_of_other_files_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/diary.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds files but no infer\.json"):
        _infer(_clip(3), tmp_path)
    _infer(_clip(3), tmp_path, overwrite=True)
    assert (tmp_path / "clip/diary.txt").read_text() == "mine"


def test_frames_of_different_sizes_and_a_single_frame_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"frame 003 of clip is 30x20 px, frame 000 is 65x49 px"):
        _infer(_clip(5, sizes={3: (20, 30)}), tmp_path)
    assert not list(tmp_path.rglob("*.mp4"))
    with pytest.raises(DataError, match="clip has 1 frame; expected 2 or more"):
        _infer(_clip(1), tmp_path / "one")
    result = _infer(_clip(1), tmp_path / "one", dataclasses.replace(EVERYTHING, write=("features",)))
    assert [path.name for path in result.written] == ["000.png"]


def test_features_alone_need_no_flow_and_a_given_scale_no_look_ahead(tmp_path: Path) -> None:
    model = BrightnessFlow()
    _infer(_clip(6), tmp_path / "features", dataclasses.replace(EVERYTHING, write=("features",)), model)
    assert model.pairs == 0
    result = _infer(_clip(6), tmp_path, dataclasses.replace(EVERYTHING, write=("colour",), max_flow_px=7.0), model)
    assert model.pairs == 5 and result.flow_px == 7.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tile_px": 100}, "multiple of 64"),
        ({"tile_px": 256, "overlap_px": 192}, "half of the tile, 128"),
        ({"write": ()}, "write is empty"),
        ({"stride": 3}, "stride is 3"),
        ({"batch": 0}, "batch is 0"),
        ({"max_flow_px": -1.0}, "max-flow"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InferConfig(**wrong)  # type: ignore[arg-type]

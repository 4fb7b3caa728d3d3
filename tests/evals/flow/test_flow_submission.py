"""Submissions: the servers' layouts, exact content, equal bytes, and that nothing incomplete or damaged passes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mcjepa.data_prep.corpora import FLOW_TEST_SETS
from mcjepa.data_prep.corpora.flow.files import decode_flo, decode_kitti_png, encode_flo, encode_kitti_png
from mcjepa.data_prep.corpora.flow.scans import SINTEL_TEST_SCENES
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.flow.methods import FlowMethods, Method, flow_methods
from mcjepa.evals.flow.submission import check_submission, write_submission
from mcjepa.evals.models import EvalModel
from mcjepa.evals.progress import EvalEvent
from tests.data_prep import layouts
from tests.evals.flow_layouts import kitti_test, sintel_test

H, W = layouts.SIZE


@pytest.fixture(scope="module")
def kitti2015(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kitti_test(tmp_path_factory.mktemp("kitti") / "data_scene_flow", "image_2", 200)


@pytest.fixture
def constant(foreign_model: Callable[..., EvalModel]) -> FlowMethods:
    return flow_methods(Method(name="m", model=foreign_model((1.5, -2.25))), ())


def test_kitti2015_has_its_200_files_in_the_folder_flow(kitti2015: Path, tmp_path: Path, constant: FlowMethods) -> None:
    pairs = FLOW_TEST_SETS["kitti2015-test"](kitti2015)
    events: list[EvalEvent] = []
    write_submission(tmp_path / "new/k.zip", "kitti2015-test", pairs, constant, 2, events.append)
    with zipfile.ZipFile(tmp_path / "new/k.zip") as archive:
        assert archive.namelist() == [f"flow/{number:06d}_10.png" for number in range(200)]
        flow, valid = decode_kitti_png(archive.read("flow/000199_10.png"), "x")
    assert valid.all() and flow.shape == (H, W, 2) and (flow == np.float32([1.5, -2.25])).all()
    assert [(event.phase, event.done) for event in events] == [
        (p, n + 1) for p in ("pairs", "check") for n in range(200)
    ]
    first = (tmp_path / "new/k.zip").read_bytes()
    write_submission(tmp_path / "new/k.zip", "kitti2015-test", pairs, constant, 1)
    assert (tmp_path / "new/k.zip").read_bytes() == first
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["k.zip"]


def test_kitti2012_has_its_195_files_in_the_root(tmp_path: Path, constant: FlowMethods) -> None:
    pairs = FLOW_TEST_SETS["kitti2012-test"](kitti_test(tmp_path / "k", "image_0", 195))
    write_submission(tmp_path / "k.zip", "kitti2012-test", pairs, constant, 2)
    with zipfile.ZipFile(tmp_path / "k.zip") as archive:
        assert archive.namelist() == [f"{number:06d}_10.png" for number in range(195)]


def test_sintel_has_both_passes_of_its_12_scenes_as_the_bundler_takes_them(
    tmp_path: Path, constant: FlowMethods
) -> None:
    pairs = FLOW_TEST_SETS["sintel-test"](sintel_test(tmp_path / "s"))
    write_submission(tmp_path / "s.zip", "sintel-test", pairs, constant, 2)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        names = archive.namelist()
        flow = decode_flo(archive.read("final/wall/frame0046.flo"), "x")
    assert len(names) == 2 * 552 and names[0] == "clean/PERTURBED_market_3/frame0001.flo"
    assert {tuple(name.split("/")[:2]) for name in names} == {
        (rendering, scene) for rendering in ("clean", "final") for scene in SINTEL_TEST_SCENES
    }
    assert (flow == np.float32([1.5, -2.25])).all() and flow.dtype == np.float32


def test_an_incomplete_test_folder_is_refused_before_anything_is_computed(
    tmp_path: Path, constant: FlowMethods
) -> None:
    pairs = FLOW_TEST_SETS["kitti2012-test"](kitti_test(tmp_path / "k", "colored_0", 3))
    with pytest.raises(DataError, match=r"3 pairs here; the server expects 195"):
        write_submission(tmp_path / "k.zip", "kitti2012-test", pairs, constant, 2)
    assert not (tmp_path / "k.zip").exists()


class OneBadPair:
    """Zero flow, and another in the middle of the eighth pair."""

    def __init__(self, u_px: float) -> None:
        self.calls, self.u_px = 0, u_px

    def features(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def flow(self, frame0_B3HW: torch.Tensor, frame1_B3HW: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        flow = torch.zeros(1, 2, H, W)
        flow[:, 0, 2:4, 3] = self.u_px if self.calls == 8 else 0.0
        return flow


def test_flow_that_is_not_finite_leaves_the_old_archive_alone(kitti2015: Path, tmp_path: Path) -> None:
    (tmp_path / "k.zip").write_bytes(b"old")
    pairs = FLOW_TEST_SETS["kitti2015-test"](kitti2015)
    methods = flow_methods(Method(name="m", model=OneBadPair(float("nan"))), ())
    with pytest.raises(DataError, match=r"000007: .*not finite"):
        write_submission(tmp_path / "k.zip", "kitti2015-test", pairs, methods, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["k.zip"] and (tmp_path / "k.zip").read_bytes() == b"old"


@pytest.mark.parametrize(("u_px", "written"), [(600.0, 65535 / 64 - 512), (-513.0, -512.0)])
def test_flow_beyond_kittis_format_is_cut_to_it_as_the_devkit_does_and_counted(
    kitti2015: Path, tmp_path: Path, u_px: float, written: float
) -> None:
    """io_flow.h of the devkit: max(min(u * 64 + 32768, 65535), 0)."""
    pairs = FLOW_TEST_SETS["kitti2015-test"](kitti2015)
    methods = flow_methods(Method(name="m", model=OneBadPair(u_px)), ())
    assert write_submission(tmp_path / "k.zip", "kitti2015-test", pairs, methods, 2) == {"000007": 2}
    with zipfile.ZipFile(tmp_path / "k.zip") as archive:
        flow, valid = decode_kitti_png(archive.read("flow/000007_10.png"), "x")
    assert valid.all() and (flow[2:4, 3, 0] == np.float32(written)).all() and np.count_nonzero(flow) == 2


DENSE = np.ones((H, W), bool)
ZERO = np.zeros((H, W, 2), np.float32)
SPARSE = encode_kitti_png(ZERO, np.arange(H * W).reshape(H, W) > 0)
SMALL = encode_kitti_png(ZERO[:2], DENSE[:2])
DAMAGES = {
    "missing": (lambda files: files.pop("flow/000005_10.png"), r"lacks flow/000005_10\.png; expected 200 files"),
    "extra": (lambda files: files.update({"flow/readme.txt": b""}), r"has too much: flow/readme\.txt"),
    "misplaced": (lambda files: files.update({"000003_10.png": files.pop("flow/000003_10.png")}), "lacks flow/000003"),
    "sparse": (lambda files: files.update({"flow/000009_10.png": SPARSE}), r"000009_10\.png has pixels without"),
    "small": (lambda files: files.update({"flow/000009_10.png": SMALL}), "8x2 px; expected the frame's 8x6"),
    "another format": (lambda files: files.update({"flow/000009_10.png": encode_flo(ZERO)}), "expected a 16-bit RGB"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_archive_is_refused_with_the_place(kitti2015: Path, tmp_path: Path, damage: str) -> None:
    change, said = DAMAGES[damage]
    files = {f"flow/{number:06d}_10.png": encode_kitti_png(ZERO, DENSE) for number in range(200)}
    pairs = FLOW_TEST_SETS["kitti2015-test"](kitti2015)
    _write_zip(tmp_path / "good.zip", files)
    check_submission(tmp_path / "good.zip", "kitti2015-test", pairs)
    change(files)
    _write_zip(tmp_path / "bad.zip", files)
    with pytest.raises(DataError, match=said):
        check_submission(tmp_path / "bad.zip", "kitti2015-test", pairs)


def test_a_cut_off_or_altered_archive_is_refused(kitti2015: Path, tmp_path: Path, constant: FlowMethods) -> None:
    pairs = FLOW_TEST_SETS["kitti2015-test"](kitti2015)
    path = tmp_path / "k.zip"
    write_submission(path, "kitti2015-test", pairs, constant, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no readable zip"):
        check_submission(path, "kitti2015-test", pairs)
    altered = bytearray(whole)
    altered[60] ^= 0xFF
    path.write_bytes(altered)
    with pytest.raises(DataError, match=r"k\.zip"):
        check_submission(path, "kitti2015-test", pairs)
    with pytest.raises(DataError, match="no readable zip"):
        check_submission(tmp_path / "none.zip", "kitti2015-test", pairs)


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)

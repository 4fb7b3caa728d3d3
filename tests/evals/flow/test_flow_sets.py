"""Every flow set in its official layout, found below one folder and scored against numbers made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora import FLOW_SCANS
from mcjepa.data_prep.corpora.flow.files import write_flo, write_kitti_png
from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import Score
from mcjepa.evals.flow.methods import Method
from mcjepa.evals.flow.score import score_flow_sets
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.models import EvalModel
from tests.data_prep import layouts
from tests.evals.flow_layouts import write_all

V = np.arange(1, layouts.SIZE[0] + 1)
"""Vertical flow of the layouts' rows."""


@pytest.fixture(scope="module")
def sets_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("sets"))


def score(root: Path, names: str, model: EvalModel | None, out: Path, **settings: object) -> list[Score]:
    """Scores by name, the zero flow beside the model."""
    sets = dict.fromkeys(names.split(","), str(root))
    config = FlowEvalConfig(sets=sets, **{"baselines": ("zero",), "pictures": 0, **settings})  # type: ignore[arg-type]
    return score_flow_sets(Method(name="m", model=model) if model else None, config, out)


def lengths(*u_px: float, rows: np.ndarray = V) -> float:
    """Mean length of the layouts' flows."""
    return float(np.mean([np.hypot(u, rows) for u in u_px]))


@pytest.mark.parametrize(
    ("name", "pairs", "zero_epe"),
    [
        ("sintel-clean", 2, lengths(1, 2)),
        ("sintel-final", 2, lengths(1, 2)),
        ("kitti2015", 2, lengths(2, 6, rows=V[1:])),
        ("hd1k", 3, lengths(10, 11, 5, rows=V[1:])),
        ("chairs-val", 1, lengths(2)),
        ("chairs-train", 2, lengths(1, 3)),
        ("chairs2-val", 4, lengths(2)),
        ("things3d-clean", 4, lengths(6, 7)),
        ("things3d-final-test", 4, lengths(6, 7)),
        ("middlebury", 1, 5.0),
    ],
)
def test_each_set_is_found_and_scored(
    sets_root: Path,
    foreign_model: Callable[..., EvalModel],
    tmp_path: Path,
    name: str,
    pairs: int,
    zero_epe: float,
) -> None:
    (result,) = score(sets_root, name, foreign_model((0.0, 0.0)), tmp_path, subset=True)
    assert result.card.frames == pairs and result.card.complete
    assert result.metrics["epe"] == result.metrics["epe_zero"] == pytest.approx(zero_epe, rel=1e-6)
    assert not math.isnan(result.metrics["fl_all"])
    assert len({tuple(row) for row in result.table}) == 1


def test_several_sets_come_in_the_order_asked_for(sets_root: Path, tmp_path: Path) -> None:
    results = score(sets_root, "middlebury,chairs-val,sintel-final", None, tmp_path, subset=True)
    assert [result.name for result in results] == ["flow/middlebury", "flow/chairs-val", "flow/sintel-final"]
    assert all("epe_zero" in result.metrics and "epe" not in result.metrics for result in results)


def test_a_set_without_its_folder_is_named_before_any_is_scored(sets_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kitti2012"):
        score(sets_root, "chairs-val,kitti2012", None, tmp_path, pictures=1)
    assert not any(tmp_path.iterdir())


def test_kitti2015_tells_background_from_objects_in_both_kinds_of_truth(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    root = layouts.kitti2015(tmp_path / "k")
    objects = np.zeros(layouts.SIZE, np.uint8)
    objects[3] = 9
    for number in ("000000", "000004"):
        write_png(root / f"training/obj_map/{number}_10.png", objects)
    visible = np.zeros(layouts.SIZE, bool)
    visible[:4] = True
    flow = np.full((*layouts.SIZE, 2), 100.0, np.float32)
    write_kitti_png(root / "training/flow_noc/000000_10.png", flow, visible)
    write_kitti_png(root / "training/flow_noc/000004_10.png", flow, visible)
    (result,) = score(root, "kitti2015", foreign_model((2.0, 4.0)), tmp_path, subset=True)
    # True flow: u 2 and 6, v 2 to 6 in rows 1 to 5; the object is row 3 with v = 4. Noc: 100, 100 in rows 0 to 3.
    v = V[1:]
    errors = np.stack([np.abs(v - 4.0), np.hypot(4.0, v - 4.0)])
    assert result.metrics["epe"] == pytest.approx(errors.mean())
    assert result.metrics["epe_fg"] == pytest.approx(errors[:, 2].mean()) == 2.0
    assert result.metrics["fl_fg"] == 50.0 and result.metrics["fl_bg"] == 50.0
    noc = math.hypot(98.0, 96.0)
    assert result.metrics["epe_matched"] == result.metrics["epe_matched_fg"] == pytest.approx(noc)
    assert result.metrics["fl_matched_bg"] == result.metrics["fl_matched_fg"] == 100.0
    assert result.metrics["over_3px_matched"] == 100.0


def test_missing_frames_and_wrong_sizes_are_counted_and_the_rest_is_scored(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    root = layouts.chairs(tmp_path / "FlyingChairs_release")
    layouts.flow(root / "data/00004_flow.flo", 1)
    for k in (1, 2):
        layouts.picture(root / f"data/00004_img{k}.ppm")
    (root / "FlyingChairs_train_val.txt").write_text("1\n1\n1\n1\n1\n")
    (root / "data/00001_img2.ppm").unlink()
    write_flo(root / "data/00002_flow.flo", np.zeros((3, 3, 2), np.float32))
    (root / "data/00003_flow.flo").write_bytes(b"PIEH")
    (result,) = score(tmp_path, "chairs-train", foreign_model(), tmp_path)
    failed = dict(line.split(": ", 1) for line in result.card.failed)
    assert list(failed) == ["00001", "00005", "00002", "00003"]
    assert "data/00001_img2.ppm is not there" in failed["00001"]
    assert "3x3 px" in failed["00002"] and "8x6 px" in failed["00002"] and "PIEH" in failed["00003"]
    assert result.card.frames == 1 and not result.card.complete
    assert result.metrics["epe"] == pytest.approx(lengths(1)) and "1 of" not in result.card.split
    assert "3 of the set's 5 are there" in result.card.split


def test_a_long_list_of_missing_pairs_is_shortened_and_counted(sample_data: Path, tmp_path: Path) -> None:
    (result,) = score(sample_data / "flow", "kitti2012", None, tmp_path, max_pairs=1)
    assert len(result.card.failed) == 21 and result.card.failed[-1] == "171 more pairs are missing"
    assert result.card.frames == 1 and "1 evenly spaced ones" in result.card.split


def test_no_pair_at_all_is_an_error(tmp_path: Path, foreign_model: Callable[..., EvalModel]) -> None:
    root = layouts.sintel(tmp_path / "MPI-Sintel-complete")
    for path in root.glob("training/flow/alley_1/*.flo"):
        path.unlink()
    with pytest.raises(DataError, match=r"no whole pair of the set sintel-clean"):
        score(root, "sintel-clean", foreign_model(), tmp_path)


def test_the_table_has_the_methods_regions_and_their_pixels_add_up_to_the_sets_score(
    sample_data: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    (result,) = score(sample_data / "flow", "sintel-final", foreign_model((1.0, 0.0)), tmp_path, subset=True)
    wanted = {"epe_matched", "epe_unmatched", "epe_d0_10", "epe_d10_60", "epe_d60_140", "epe_s0_10", "epe_s10_40"}
    assert wanted <= set(result.metrics) and wanted <= set(result.table[0])
    pixels = [row["valid_pixels"] for row in result.table]
    assert result.metrics["epe"] == pytest.approx(np.average([row["epe"] for row in result.table], weights=pixels))
    assert all(set(row) == set(result.table[0]) for row in result.table)


def test_results_do_not_depend_on_the_number_of_workers(
    sample_data: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    settings = {"subset": True, "baselines": ("zero", "dis-fast"), "pictures": 1}
    one, three = (
        score(
            sample_data / "flow",
            "middlebury,sintel-final",
            foreign_model((1.0, 0.0)),
            tmp_path / str(workers),
            workers=workers,
            **settings,
        )
        for workers in (1, 3)
    )
    assert [result.metrics for result in one] == [result.metrics for result in three]
    assert [result.table for result in one] == [result.table for result in three]
    for first, second in zip(one, three, strict=True):
        for a, b in zip(first.pictures, second.pictures, strict=True):
            assert np.array_equal(cv2.imread(str(a.path)), cv2.imread(str(b.path)))


def test_scans_of_the_real_samples_find_all_their_pairs(sample_data: Path) -> None:
    counts = {"chairs": 2, "sintel-clean": 1, "sintel-final": 2, "kitti2012": 3, "middlebury": 1, "chairs2": 2}
    roots = {"chairs": "FlyingChairs_release", "kitti2012": "kitti2012/data_stereo_flow", "middlebury": "middlebury"}
    for name, count in counts.items():
        root = roots.get(name, "FlyingChairs2_crop50" if name == "chairs2" else "MPI-Sintel-complete")
        assert len(FLOW_SCANS[name](sample_data / "flow" / root, subset=True).pairs) == count

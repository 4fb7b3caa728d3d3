"""Flow computed before: found in the layouts people keep it in, never taken for another pair's or guessed."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora import FLOW_SCANS, FLOW_TEST_SETS
from mcjepa.data_prep.corpora.flow.files import read_flo, read_flow, write_flo, write_kitti_png
from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import Score
from mcjepa.evals.flow.estimates import EstimateFolder
from mcjepa.evals.flow.methods import Method, flow_methods
from mcjepa.evals.flow.score import score_flow_sets
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.flow.submission import write_submission
from mcjepa.evals.models import EvalModel
from tests.data_prep import layouts
from tests.evals.flow_layouts import kitti_test, sintel_test
from tests.pfm import encode_pfm


def score(folder: Path, root: Path, names: str, out: Path) -> list[Score]:
    sets = dict.fromkeys(names.split(","), str(root))
    config = FlowEvalConfig(sets=sets, subset=True, baselines=("zero",), pictures=1)
    return score_flow_sets(Method(name="e", estimates=folder), config, out)


@pytest.mark.parametrize("place", ["", "training/flow", "clean", "sintel-clean", "sintel-clean/training/flow"])
@pytest.mark.parametrize("suffix", [".flo", ".png", ".pfm"])
def test_estimates_of_sintel_are_found_in_every_usual_place_and_format(tmp_path: Path, place: str, suffix: str) -> None:
    root = layouts.sintel(tmp_path / "set")
    for number in (1, 2):
        flow = read_flo(root / f"training/flow/alley_1/frame_{number:04d}.flo") + np.float32([3.0, 4.0])
        path = tmp_path / "mine" / place / f"alley_1/frame_{number:04d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".flo":
            write_flo(path, flow)
        elif suffix == ".png":
            write_kitti_png(path, flow, np.ones(flow.shape[:2], bool))
        else:
            path.write_bytes(encode_pfm(flow))
    (result,) = score(tmp_path / "mine", root, "sintel-clean", tmp_path / "out")
    assert result.metrics["epe"] == pytest.approx(5.0) and result.card.frames == 2 and result.card.complete
    assert result.card.model == "e" and "estimates as they are" in result.card.resolution
    assert result.pictures[0].columns[2] == "model"


def test_an_unpacked_submission_of_ours_is_found_as_estimates(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    """Sintel's frame0001.flo below its pass, KITTI's folder flow; the archive itself is to be unpacked."""
    for name, root in (
        ("sintel-test", sintel_test(tmp_path / "s")),
        ("kitti2015-test", kitti_test(tmp_path / "k", "image_2", 200)),
    ):
        pairs = FLOW_TEST_SETS[name](root)
        methods = flow_methods(Method(name="m", model=foreign_model((1.5, -2.25))), ())
        write_submission(tmp_path / "x.zip", name, pairs, methods, 2)
        zipfile.ZipFile(tmp_path / "x.zip").extractall(tmp_path / name)
        estimates = EstimateFolder(tmp_path / name, name, root, pairs, alone=True)
        assert all((estimates.read(pair) == np.float32([1.5, -2.25])).all() for pair in (pairs[0], pairs[-1]))
        with pytest.raises(DataError, match=r"x\.zip is a file; expected a folder; unpack"):
            EstimateFolder(tmp_path / "x.zip", name, root, pairs, alone=True)


def test_the_ground_truth_itself_scores_zero_on_real_sets(sample_data: Path, tmp_path: Path) -> None:
    truth = {"kitti2012": "kitti2012/data_stereo_flow", "sintel-final": "MPI-Sintel-complete/training/flow"}
    for name, folder in truth.items():
        (result,) = score(sample_data / "flow" / folder, sample_data / "flow", name, tmp_path)
        assert result.metrics["epe"] == 0.0 and result.metrics["fl_all"] == 0.0 < result.metrics["fl_all_zero"]
        if name == "kitti2012":  # the noc file's values differ from the other's by up to 2.5 px
            assert 0.0 < result.metrics["epe_matched"] < 0.1


def test_the_devkits_estimate_scores_what_the_devkit_prints(sample_data: Path, tmp_path: Path) -> None:
    """KITTI's own ground truth and estimate as files, through the whole evaluation."""
    devkit, training = sample_data / "flow/kitti_devkit", tmp_path / "data_stereo_flow/training"
    truth, _ = read_flow(devkit / "flow_gt.png")
    for part in ("flow_occ", "flow_noc", "image_0"):
        (training / part).mkdir(parents=True)
    for part in ("flow_occ", "flow_noc"):
        shutil.copy(devkit / "flow_gt.png", training / part / "000000_10.png")
    for frame in (10, 11):
        write_png(training / f"image_0/000000_{frame}.png", np.zeros(truth.shape[:2], np.uint8))
    (tmp_path / "mine").mkdir()
    shutil.copy(devkit / "flow_est.png", tmp_path / "mine/000000_10.png")
    (result,) = score(tmp_path / "mine", tmp_path, "kitti2012", tmp_path / "out")
    assert f"{result.metrics['epe']:.4f}" == f"{result.metrics['epe_matched']:.4f}" == "12.2007"
    assert f"{result.metrics['over_3px']:.3f}" == "28.605" and f"{result.metrics['fl_all']:.3f}" == "20.688"
    assert f"{100 * result.table[0]['valid_pixels'] / truth[..., 0].size:.2f}" == "23.90"


def test_a_missing_sparse_corrupt_or_wrongly_sized_estimate_is_named_and_not_averaged_away(tmp_path: Path) -> None:
    root = layouts.hd1k(tmp_path / "set")
    mine = tmp_path / "mine"
    shutil.copytree(root / "hd1k_flow_gt/flow_occ", mine)
    valid = np.ones(layouts.SIZE, bool)
    valid[3, 4] = False  # where the truth is known
    flow, _ = read_flow(mine / "000000_0010.png")
    write_kitti_png(mine / "000000_0010.png", flow, valid)
    (mine / "000000_0011.png").unlink()
    (result,) = score(mine, root, "hd1k", tmp_path / "out")
    failed = dict(line.split(": ", 1) for line in result.card.failed)
    assert "unknown at 1 pixels that count" in failed["000000_0010"]
    assert "expected a file such as 000000_0011.png" in failed["000000_0011"]
    assert result.card.frames == 1 and result.metrics["epe"] == 0.0  # its first row is unknown in both: no matter
    write_flo(mine / "000000_0011.flo", np.zeros((2, 2, 2), np.float32))
    (mine / "000000_0010.png").write_bytes(b"no picture")
    (result,) = score(mine, root, "hd1k", tmp_path / "out")
    failed = dict(line.split(": ", 1) for line in result.card.failed)
    assert "2x2 px, frames of 8x6 px" in failed["000000_0011"] and "unreadable" in failed["000000_0010"]


def test_two_sets_must_not_share_one_flat_folder(tmp_path: Path) -> None:
    root = layouts.sintel(tmp_path / "set")
    flat = root / "training/flow"
    with pytest.raises(DataError, match=r"expected files such as sintel-clean/frame_0001\.flo"):
        score(flat, root, "sintel-clean,sintel-final", tmp_path / "out")
    for name in ("clean", "final"):
        shutil.copytree(flat, tmp_path / "mine" / name)
    write_flo(tmp_path / "mine/final/alley_1/frame_0001.flo", np.full((*layouts.SIZE, 2), 99.0, np.float32))
    clean, final = score(tmp_path / "mine", root, "sintel-clean,sintel-final", tmp_path / "out")
    assert clean.metrics["epe"] == 0.0 < final.metrics["epe"]


def test_folders_are_left_out_only_while_names_differ(tmp_path: Path) -> None:
    root = layouts.sintel(tmp_path / "set")
    for scene in ("clean/bamboo_2", "final/bamboo_2"):
        layouts.picture(root / f"training/{scene}/frame_0001.png")
        layouts.picture(root / f"training/{scene}/frame_0002.png")
    for mask in ("occlusions", "invalid"):
        layouts.picture(root / f"training/{mask}/bamboo_2/frame_0001.png")
    layouts.flow(root / "training/flow/bamboo_2/frame_0001.flo", 7)
    pairs = FLOW_SCANS["sintel-clean"](root, subset=True).pairs
    layouts.flow(tmp_path / "mine/frame_0001.flo", 0)
    with pytest.raises(DataError, match=r"any of the 3 pairs of sintel-clean.*alley_1/frame_0001\.flo"):
        EstimateFolder(tmp_path / "mine", "sintel-clean", root, pairs, alone=True)


def test_test_pairs_go_by_their_first_frames(tmp_path: Path) -> None:
    root = layouts.sintel(tmp_path / "set")
    pairs = FLOW_TEST_SETS["sintel-test"](root)
    for name in ("clean", "final"):
        layouts.flow(tmp_path / f"mine/{name}/wall/frame_0002.flo", 2 if name == "clean" else 5)
    estimates = EstimateFolder(tmp_path / "mine", "sintel-test", root, pairs, alone=True)
    assert [float(estimates.read(pairs[index])[0, 0, 0]) for index in (1, 3)] == [2.0, 5.0]
    with pytest.raises(DataError, match=r"clean/wall/frame_0001\.flo"):
        estimates.read(pairs[0])


def test_no_folder_of_estimates_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of estimates"):
        score(tmp_path / "nowhere", layouts.sintel(tmp_path / "set"), "sintel-clean", tmp_path / "out")

"""Scoring mask propagation: the protocol's sizes, objects, broken sequences, pictures, and DAVIS itself."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mcjepa.data_prep.corpora import VOS_SETS
from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.models import EvalModel, LoadedModel
from mcjepa.evals.vos.propagation import encode_frame, encoded_size, track_masks
from mcjepa.evals.vos.score import score_vos_estimates, score_vos_set
from mcjepa.evals.vos.sequence import read_ids_of
from mcjepa.evals.vos.settings import VosConfig

CONFIG = VosConfig(set="test", stride=8, short_side=0, radius_cells=4, context_frames=3, pictures=1)
COLOURS = {0: (30, 90, 40), 1: (220, 40, 30), 2: (40, 60, 230)}


def _write_video(folder: Path, name: str, frames: int = 6, size: tuple[int, int] = (96, 128)) -> MaskedVideo:
    """Two coloured blocks that move apart on an even ground."""
    paths: tuple[list[Path], list[Path]] = ([], [])
    folder.mkdir(exist_ok=True)
    for step in range(frames):
        mask = np.zeros(size, np.uint8)
        mask[16:48, 8 + 8 * step : 40 + 8 * step] = 1
        mask[56:88, 88 - 8 * step : 120 - 8 * step] = 2
        image = np.array([COLOURS[label] for label in (0, 1, 2)], np.uint8)[mask]
        for kind, array in zip(paths, (image[..., ::-1], mask), strict=True):
            kind.append(folder / f"{name}_{step}_{len(array.shape)}.png")
            cv2.imwrite(str(kind[-1]), array)
    return MaskedVideo(name, tuple(paths[0]), tuple(paths[1]))


class Blind:
    """A model that sees nothing: the same features everywhere."""

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        batch, _, height, width = image_B3HW.shape
        return [torch.ones(batch, 4, height // 2**level, width // 2**level) for level in range(1, 7)]

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        raise NotImplementedError


def test_moving_objects_are_followed_where_the_copied_mask_fails(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    video = _write_video(tmp_path / "in", "blocks")
    score = score_vos_set(LoadedModel(model=foreign_model(), name="m"), tmp_path, [video], CONFIG, tmp_path / "out")
    assert [(row["object"], row["frames"]) for row in score.table] == [(1, 4), (2, 4)]
    assert score.metrics["j_mean"] > 0.8 > score.metrics["j_mean_copy_first"]
    assert score.metrics["jf"] == pytest.approx((score.metrics["j_mean"] + score.metrics["f_mean"]) / 2)
    assert score.card.frames == 4 and score.rivals == ("copy_first",)
    assert [picture.kind for picture in score.pictures] == ["vos", "features"]
    assert score.pictures[1].columns == tuple(f"frame {index}" for index in (0, 1, 2, 3, 4))
    assert all(picture.path.is_file() for picture in score.pictures)


def test_a_random_encoder_is_propagated_beside_the_model_where_there_is_one(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    """The same model as its own twin has the model's values; without a twin, or unasked for, there is no column."""
    video, model = _write_video(tmp_path / "in", "blocks"), foreign_model()
    twin = LoadedModel(model=model, name="m", random_model=model)
    score = score_vos_set(twin, tmp_path, [video], CONFIG, tmp_path / "out")
    assert score.rivals == ("copy_first", "random")
    for name in ("jf", "j_mean", "j_decay", "f_recall"):
        assert score.metrics[f"{name}_random"] == score.metrics[name] != score.metrics[f"{name}_copy_first"]
    assert score.table[0]["j_mean_random"] == score.table[0]["j_mean"]
    other = LoadedModel(model=model, name="m", random_model=Blind())
    worse = score_vos_set(other, tmp_path, [video], CONFIG, tmp_path / "out")
    assert worse.metrics["j_mean"] == score.metrics["j_mean"] > worse.metrics["j_mean_random"] + 0.1
    unasked = dataclasses.replace(CONFIG, random_baseline=False)
    assert score_vos_set(twin, tmp_path, [video], unasked, tmp_path / "out").rivals == ("copy_first",)


def test_features_that_are_not_finite_are_an_error_and_no_low_score(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    class Broken(Blind):
        """NaN in one cell, as weights that overflow give it."""

        def features(self, image_B3HW: Tensor) -> list[Tensor]:
            maps = super().features(image_B3HW)
            maps[2][0, 1, 3, 4] = float("nan")
            return maps

    video = _write_video(tmp_path / "in", "blocks")
    with pytest.raises(DataError, match=r"blocks: .*features of a frame are not finite; expected numbers"):
        score_vos_set(LoadedModel(model=Broken(), name="m"), tmp_path, [video], CONFIG, tmp_path / "out")
    twin = LoadedModel(model=foreign_model(), name="m", random_model=Broken())
    with pytest.raises(DataError, match="not finite"):
        score_vos_set(twin, tmp_path, [video], CONFIG, tmp_path / "out")
    coarser = dataclasses.replace(CONFIG, stride=16)  # whose level is sound
    assert score_vos_set(LoadedModel(model=Broken(), name="m"), tmp_path, [video], coarser, tmp_path).card.complete


def test_copied_mask_has_the_overlap_of_shifted_blocks(tmp_path: Path, foreign_model: Callable[..., EvalModel]) -> None:
    video = _write_video(tmp_path / "in", "blocks", frames=4)
    score = score_vos_set(LoadedModel(model=foreign_model(), name="m"), tmp_path, [video], CONFIG, tmp_path / "out")
    # Blocks of 32 px shifted by 8 and 16 px: 24/40 and 16/48.
    assert score.metrics["j_mean_copy_first"] == pytest.approx((24 / 40 + 16 / 48) / 2)


def test_tracking_twice_gives_the_same_masks_and_takes_a_frame_at_a_time(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    video = _write_video(tmp_path, "blocks", size=(100, 130))
    first = read_ids_of(video, 0)
    seen: list[int] = []
    tracked = []
    for index, mask in track_masks(foreign_model(), video, first, CONFIG, lambda at, _: seen.append(at)):
        assert seen[-1] == index  # no later frame has been read
        tracked.append(mask)
    again = [mask for _, mask in track_masks(foreign_model(), video, first, CONFIG)]
    assert np.array_equal(tracked, again) and np.stack(tracked).shape == (5, 100, 130)


def test_encoded_size_follows_dinos_rule_or_keeps_the_shape() -> None:
    def size(frame: tuple[int, int], short_side: int, multiple_px: int = 64) -> tuple[int, int]:
        return encoded_size(frame, VosConfig(short_side=short_side, side_multiple_px=multiple_px))

    assert size((480, 854), 480) == size((1080, 1920), 480) == (480, 832)
    assert size((854, 480), 480) == (832, 480)
    assert size((96, 96), 80) == (80, 80)
    assert size((97, 131), 0) == (97, 131)
    assert size((480, 854), 480, multiple_px=1) == (480, 854)
    assert size((1080, 1920), 480, multiple_px=1) == (480, 853)


def test_padding_is_cut_off_the_features(foreign_model: Callable[..., EvalModel]) -> None:
    model = foreign_model()
    features = encode_frame(model, np.zeros((100, 130, 3), np.uint8), (100, 130), 8)
    assert features.shape == (6, 13, 17)
    assert model.sizes == [(1, 3, 128, 192)]  # type: ignore[attr-defined]


def test_broken_sequences_are_named_and_the_rest_is_scored(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    good = _write_video(tmp_path / "good", "good")
    short = MaskedVideo("short", good.frames[:2], good.masks[:2])
    unpaired = MaskedVideo("unpaired", good.frames, good.masks[:2])
    empty = tmp_path / "empty.png"
    cv2.imwrite(str(empty), np.zeros((96, 128), np.uint8))
    nothing = MaskedVideo("nothing", good.frames, (empty, *good.masks[1:]))
    loaded = LoadedModel(model=foreign_model(), name="m")
    videos = [short, unpaired, nothing, good]
    score = score_vos_set(loaded, tmp_path, videos, CONFIG, tmp_path / "out")
    assert [failure.split(":")[0] for failure in score.card.failed] == ["short", "unpaired", "nothing"]
    assert {row["sequence"] for row in score.table} == {"good"}
    with pytest.raises(DataError, match="short"):
        score_vos_set(loaded, tmp_path, videos[:3], CONFIG, tmp_path / "out")


def test_generated_set_is_scored_through_its_reader(
    moving_photos: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    videos = VOS_SETS["moving-photos"](moving_photos)
    score = score_vos_set(LoadedModel(model=foreign_model(), name="m"), moving_photos, videos, CONFIG, tmp_path)
    assert score.card.complete
    assert 0 < score.metrics["jf"] <= 1


def test_davis_first_mask_copied_has_the_known_score(
    sample_data: Path, tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    root = sample_data / "davis/DAVIS"
    video = next(video for video in VOS_SETS["davis2017"](root) if video.name == "car-shadow")
    loaded = LoadedModel(model=foreign_model(), name="m")
    config = VosConfig(stride=32, pictures=0)
    score = score_vos_set(loaded, root, [video], config, tmp_path)
    assert score.metrics["j_mean_copy_first"] == pytest.approx(0.408, abs=0.001)
    assert score.metrics["f_mean_copy_first"] == pytest.approx(0.252, abs=0.001)
    assert score.card.frames == 38
    assert score.card.resolution.startswith("854x480 px; encoded short side 480 px")


def test_masks_and_overlays_are_written_and_score_as_they_did(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    video = _write_video(tmp_path / "in", "blocks")
    config = dataclasses.replace(CONFIG, masks=True, overlays=True, pictures=0)
    score = score_vos_set(LoadedModel(model=foreign_model(), name="m"), tmp_path, [video], config, tmp_path / "out")
    written = sorted((tmp_path / "out/masks/blocks").iterdir())
    assert [path.name for path in written] == [f"{Path(str(frame)).stem}.png" for frame in video.frames]
    with Image.open(written[0]) as image:
        assert image.mode == "P" and np.array_equal(np.array(image), read_ids_of(video, 0))
    again = score_vos_estimates(tmp_path / "out/masks", tmp_path, [video], config, tmp_path / "again")
    assert again.metrics == score.metrics and again.table == score.table
    assert again.card.model.startswith("estimates in") and again.card.config["protocol"] == "estimates"
    with av.open(str(tmp_path / "out/overlays/blocks.mp4")) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == 6 and (frames[0].width, frames[0].height) == (128, 96)
        assert container.streams.video[0].codec_context.name == "h264"
    assert not list(tmp_path.rglob("*.partial"))


def test_overlays_of_frames_larger_than_their_masks_are_tinted_where_the_objects_are(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    """DAVIS' full-resolution frames with masks of 480 lines: the written masks, enlarged by OpenCV, say where."""
    video = _write_video(tmp_path / "in", "blocks")
    for path in video.frames:
        frame = cv2.imread(str(path))
        cv2.imwrite(str(path), cv2.resize(np.asarray(frame), (256, 192), interpolation=cv2.INTER_NEAREST))
    config = dataclasses.replace(CONFIG, masks=True, overlays=True, pictures=0)
    score_vos_set(LoadedModel(model=foreign_model(), name="m"), tmp_path, [video], config, tmp_path / "out")
    with av.open(str(tmp_path / "out/overlays/blocks.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    for index, path in enumerate(sorted((tmp_path / "out/masks/blocks").iterdir())):
        with Image.open(path) as image:
            mask = cv2.resize(np.array(image), (256, 192), interpolation=cv2.INTER_NEAREST)
        changed = np.abs(shown[index] - video.read_frame(index).astype(int)).sum(-1)
        inside = cv2.erode((mask > 0).astype(np.uint8), np.ones((9, 9))) > 0
        outside = cv2.dilate((mask > 0).astype(np.uint8), np.ones((9, 9))) == 0
        assert np.median(changed[inside]) > 40 > 20 > np.median(changed[outside])


def test_a_sequence_without_ground_truth_is_tracked_and_not_scored(
    tmp_path: Path, foreign_model: Callable[..., EvalModel]
) -> None:
    whole = _write_video(tmp_path / "in", "blocks")
    video = MaskedVideo("blocks", whole.frames, whole.masks[:1])
    score = score_vos_set(LoadedModel(model=foreign_model(), name="m"), tmp_path, [video], CONFIG, tmp_path / "out")
    assert score.metrics == {} and score.table == () and score.rivals == () and score.card.frames == 0
    assert "1 sequences without ground truth" in score.card.split
    assert len(list((tmp_path / "out/masks/blocks").iterdir())) == 6
    assert score.pictures[0].columns == ("frame", "predicted", "first mask copied")


def _estimates(folder: Path, video: MaskedVideo) -> list[Path]:
    """The true masks of the scored frames as somebody's estimates."""
    place = folder / video.name
    place.mkdir(parents=True)
    paths = []
    for frame, mask in list(zip(video.frames, video.masks, strict=True))[1:-1]:
        paths.append(place / f"{Path(str(frame)).stem}.png")
        shutil.copy(mask, paths[-1])
    return paths


def test_bad_estimates_fail_their_sequence_by_name_and_leave_the_others(tmp_path: Path) -> None:
    names = ("missing", "resized", "unknown", "corrupt", "coloured", "good")
    videos = [_write_video(tmp_path / name, name) for name in names]
    broken = {video.name: _estimates(tmp_path / "estimates", video)[1] for video in videos}
    broken["missing"].unlink()
    cv2.imwrite(str(broken["resized"]), np.zeros((48, 64), np.uint8))
    cv2.imwrite(str(broken["unknown"]), np.full((96, 128), 3, np.uint8))
    broken["corrupt"].write_bytes(broken["corrupt"].read_bytes()[:60])
    cv2.imwrite(str(broken["coloured"]), np.zeros((96, 128, 3), np.uint8))
    score = score_vos_estimates(tmp_path / "estimates", tmp_path, videos, CONFIG, tmp_path / "out")
    reasons = dict(failure.split(": ", 1) for failure in score.card.failed)
    assert list(reasons) == list(names[:-1]) and not score.card.complete
    assert "1 of 4 predicted masks are not there" in reasons["missing"] and "missing_2_3.png" in reasons["missing"]
    assert "resized/resized_2_3 is 64x48 px" in reasons["resized"]
    assert "has the object id 3; the first frame shows 1, 2" in reasons["unknown"]
    assert "no readable label map" in reasons["corrupt"]
    assert "pixels of mode RGB" in reasons["coloured"]
    assert {row["sequence"] for row in score.table} == {"good"} and score.metrics["jf"] == 1.0
    assert "5 sequences failed and are in no mean" in score.card.split


def test_grey_estimates_of_one_object_are_read_and_void_is_background(tmp_path: Path) -> None:
    two = _write_video(tmp_path / "in", "blocks")
    video = dataclasses.replace(two, one_object=True)
    for path in _estimates(tmp_path / "estimates", video):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(ids > 0, np.uint8(255), np.uint8(0)))
    score = score_vos_estimates(tmp_path / "estimates", tmp_path, [video], CONFIG, tmp_path / "out")
    assert score.metrics["jf"] == 1.0 and [row["object"] for row in score.table] == [1]
    mask = read_ids_of(two, 0)
    mask[:3] = 255
    cv2.imwrite(str(two.masks[0]), mask)
    assert set(np.unique(read_ids_of(two, 0))) == {0, 1, 2}


def test_void_alone_in_a_frame_of_several_objects_is_no_object(tmp_path: Path) -> None:
    """The official code takes 255 for void in every frame: both objects are absent and rightly not predicted, J 1."""
    video = _write_video(tmp_path / "in", "blocks")
    _estimates(tmp_path / "estimates", video)
    for path in (video.masks[2], tmp_path / "estimates/blocks/blocks_2_3.png"):
        void = np.zeros((96, 128), np.uint8)
        void[:10] = 255
        cv2.imwrite(str(path), void if path in video.masks else np.zeros_like(void))
    score = score_vos_estimates(tmp_path / "estimates", tmp_path, [video], CONFIG, tmp_path / "out")
    assert score.metrics["j_mean"] == 1.0 and [row["absent_frames"] for row in score.table] == [1, 1]
    cv2.imwrite(str(tmp_path / "estimates/blocks/blocks_2_3.png"), void)  # an estimate's void is background, too
    score = score_vos_estimates(tmp_path / "estimates", tmp_path, [video], CONFIG, tmp_path / "out")
    assert score.metrics["j_mean"] == 1.0


def test_void_of_palette_masks_is_not_the_one_object_of_davis_2016(tmp_path: Path) -> None:
    two = dataclasses.replace(_write_video(tmp_path, "blocks"), one_object=True)
    mask = two.read_mask(1)
    mask[:3] = 255
    cv2.imwrite(str(two.masks[1]), mask)
    assert set(np.unique(read_ids_of(two, 1)[:3])) == {0} and set(np.unique(read_ids_of(two, 1))) == {0, 1}


def test_a_place_without_estimates_is_refused(tmp_path: Path) -> None:
    video = _write_video(tmp_path / "in", "blocks")
    for folder, reason in ((tmp_path / "nowhere", "no folder"), (tmp_path / "in", "has no folder of a sequence")):
        with pytest.raises(DataError, match=reason):
            score_vos_estimates(folder, tmp_path, [video], CONFIG, tmp_path / "out")
    with pytest.raises(DataError, match="has nothing to score; expected sequences"):
        score_vos_estimates(tmp_path, tmp_path, [], CONFIG, tmp_path / "out")


@pytest.mark.parametrize(
    ("sequence", "region", "boundary"), [("car-shadow", 0.928, 0.917), ("drift-chicane", 0.774, 0.829)]
)
def test_real_osvos_masks_have_their_published_scores(
    sample_data: Path, tmp_path: Path, sequence: str, region: float, boundary: float
) -> None:
    root = sample_data / "davis/DAVIS"
    videos = [video for video in VOS_SETS["davis2016"](root) if video.name == sequence]
    osvos = sample_data / "davis/results/semi-supervised/osvos"
    score = score_vos_estimates(osvos, root, videos, VosConfig(set="davis2016", pictures=0), tmp_path)
    assert score.metrics["j_mean"] == pytest.approx(region, abs=0.005)
    assert score.metrics["f_mean"] == pytest.approx(boundary, abs=0.005)
    assert "the official list has 20 sequences" in score.card.split


@pytest.mark.slow
def test_real_sequence_of_ninety_frames_stays_within_its_memory(sample_data: Path, tmp_path: Path) -> None:
    """Nothing may hold the features of a whole video: in a process of its own, whose peak is measured.

    All its features at stride 4 are 275 MiB; the bound leaves no room for them. The masks' protocol is cut down for
    speed: benchmarks/evals/vos_propagation.py measures DINO's as it is.
    """
    code = """
import sys
from pathlib import Path
import torch
from mcjepa.data_prep.corpora import VOS_SETS
from mcjepa.evals.models import McJepaEvalModel, LoadedModel
from mcjepa.evals.vos.settings import VosConfig
from mcjepa.evals.vos.score import score_vos_set
from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
torch.set_num_threads(1)
size = EncoderConfig(size="nano", init_std=0.0)
model = MCJEPA(ModelConfig(encoder=size, flow=FlowConfig(width_factor=0.25), expander=ExpanderConfig(widths=(64, 64))))
root = Path(sys.argv[1])
videos = [video for video in VOS_SETS["davis2017"](root) if video.name == "camel"]
config = VosConfig(stride=4, tile_cells=16, radius_cells=2, context_frames=1, overlays=True, pictures=1)
loaded = LoadedModel(model=McJepaEvalModel(model, torch.device("cpu")), name="nano")
score = score_vos_set(loaded, root, videos, config, Path(sys.argv[2]))
peak_kib = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]  # ru_maxrss has the parent's too
print(score.card.frames, int(peak_kib) / 1024)
"""
    command = [sys.executable, "-c", code, str(sample_data / "davis/DAVIS"), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    frames, peak_mib = answer.stdout.split()
    assert frames == "88" and float(peak_mib) < 640

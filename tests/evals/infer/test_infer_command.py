"""`mcjepa infer` as a user runs it: images, folders, videos, names, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mcjepa.data_prep.corpora.flow.files import read_flo
from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.evals.infer.inputs import open_clips
from mcjepa.pipeline.cli.main import main

SIZE = (64, 80)


def _frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def _images(folder: Path, names: tuple[str, ...], size: tuple[int, int] = SIZE) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), _frame(number, size))
    return [folder / name for name in names]


def _video(path: Path, frames: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.stack([_frame(number) for number in range(frames)]), 10, 20)
    return path


def _infer(*words: object) -> int:
    return main(["infer", *map(str, words)])


def test_masks_beside_their_frames_are_no_frames_and_are_counted(
    weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The same folder with and without its masks gives the same flow."""
    plain = ("1.jpg", "2.jpg", "10.jpg")
    _images(tmp_path / "a/walk", plain)
    _images(tmp_path / "b/walk", (*plain, "1_mask.png", "2_mask.png", "10-depth.png"))
    found = []
    for name in "ab":
        words = (
            weights_folder,
            tmp_path / name / "walk",
            "--out",
            tmp_path / f"out-{name}",
            "--write",
            "flo",
            "--json",
        )
        assert _infer(*words) == 0
        (clip,) = json.loads(capsys.readouterr().out)["clips"]
        found.append({Path(path).name: read_flo(Path(path)).tobytes() for path in clip["written"]})
    assert list(found[0]) == ["1.flo", "2.flo"] and found[0] == found[1]
    assert "b/walk: 3 of 6 images belong to a frame by their names (10-depth.png)" in caplog.text
    assert "a/walk" not in caplog.text
    left, right = _images(tmp_path / "pair", ("1_left.png", "1_right.png"))  # two views, of no other frame
    assert open_clips([str(tmp_path / "pair")])[0].frames == (left.stem, right.stem)


def test_pair_folder_and_video_are_clips_of_one_call(
    weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = _images(tmp_path, ("a.png", "b.jpg"))
    _images(tmp_path / "walk", ("9.png", "10.png", "11.png"))
    (tmp_path / "walk/notes.txt").write_text("not a frame")
    video = _video(tmp_path / "film.mp4")
    out = tmp_path / "out"
    words = (weights_folder, *pair, tmp_path / "walk", video, "--out", out, "--write", "flo,video", "--json")
    assert _infer(*words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == []
    assert [(clip["clip"], clip["frames"]) for clip in document["clips"]] == [("a-b", 2), ("walk", 3), ("film", 4)]
    for clip in document["clips"]:
        written = {Path(path) for path in clip["written"]}
        assert written == {p for p in Path(clip["folder"]).rglob("*") if p.is_file() and p.name != "infer.json"}
        assert len(written) == clip["frames"]  # a flow a pair, and the video
    assert sorted(p.name for p in (out / "walk/flo").iterdir()) == ["10.flo", "9.flo"]
    assert read_flo(out / "film/flo/000002.flo").shape == (*SIZE, 2)
    with av.open(str(out / "film/flow.mp4")) as movie:
        assert len(list(movie.decode(video=0))) == 3 and float(movie.streams.video[0].average_rate or 0) == 10.0
    assert _infer(*words) == 0
    assert all(clip["written"] == [] and clip["kept"] for clip in json.loads(capsys.readouterr().out)["clips"])


def test_grey_sixteen_bit_and_turned_images_are_read_as_colour(tmp_path: Path) -> None:
    tmp_path.joinpath("in").mkdir()
    deep = _frame(0)[..., 0].astype(np.uint16) << 8 | 77
    cv2.imwrite(str(tmp_path / "in/0.png"), deep)
    cv2.imwrite(str(tmp_path / "in/1.png"), _frame(1)[..., 0])
    cv2.imwrite(str(tmp_path / "in/2.png"), _frame(2).astype(np.uint16) << 8)
    (clip,) = open_clips([str(tmp_path / "in")])
    frames = list(clip.read([0, 1, 2]))
    assert all(frame.shape == (*SIZE, 3) and frame.dtype == np.uint8 for frame in frames)
    assert np.array_equal(frames[0], np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))
    assert np.array_equal(frames[2], _frame(2)[..., ::-1])


def test_floating_point_and_animated_images_are_refused_by_name(
    weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _images(tmp_path / "in", ("0.png", "1.png"))
    cv2.imwrite(str(tmp_path / "in/1.tiff"), _frame(1)[..., 0].astype(np.float32))
    assert _infer(weights_folder, tmp_path / "in", "--out", tmp_path / "out") == 3
    assert "1.tiff has floating point pixels" in capsys.readouterr().err


def test_frames_of_equal_names_are_numbered_and_clips_of_equal_names_are_kept_apart(tmp_path: Path) -> None:
    left, right = (_images(tmp_path / side, ("0001.png",))[0] for side in ("left", "right"))
    (pair,) = open_clips([str(left), str(right)])
    assert (pair.name, pair.frames) == ("0001", ("000000", "000001"))
    twice = _images(tmp_path / "both", ("a.jpg", "a.png"))
    assert open_clips([str(tmp_path / "both")])[0].frames == ("a.jpg", "a.png") == tuple(p.name for p in twice)
    first, other = _video(tmp_path / "x/film.mp4"), _video(tmp_path / "x/film.mov.mp4")
    other = other.rename(tmp_path / "x/film.mov")
    assert [clip.name for clip in open_clips([str(first), str(other)])] == ["film.mp4", "film.mov"]


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["nowhere.mp4"], "no file or folder", 2),
        (["one.png"], "one has 1 frame; expected 2 or more", 3),
        (["text.mp4"], "text.mp4 FFmpeg cannot read it", 3),
        (["empty"], "empty has no image; expected frames", 3),
        (["nested"], "nested has no image but 0 videos, 1 folders", 3),
        (["mixed"], "frame 2 of mixed is 40x32 px, frame 1 is 80x64 px", 3),
        (["x/film.mp4", "y/film.mp4"], "two inputs would be written to the folder film.mp4", 2),
        (["mixed", "--write", "flow"], "--write has 'flow': did you mean 'flo'?", 2),
        (["mixed", "--tile", "100"], "tile is 100; expected a multiple of 64", 2),
        (["mixed", "--max-frames", "-1"], "--max-frames is -1", 2),
    ],
)
def test_bad_input_is_one_clear_line(
    weights_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    _images(tmp_path, ("one.png",))
    Path("text.mp4").write_text("this is no video, whatever its name says\n" * 20)
    Path("empty").mkdir()
    _images(Path("nested/deep"), ("1.png", "2.png"))
    _images(Path("mixed"), ("1.png",))
    _images(Path("mixed"), ("2.png",), size=(32, 40))
    for folder in ("x", "y"):
        _video(Path(folder) / "film.mp4")
    assert _infer(weights_folder, *words, "--out", "out") == code
    error = capsys.readouterr().err.strip()
    assert said in error.splitlines()[-1] and "Traceback" not in error


def test_weights_that_are_no_weights_are_named(
    weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = _images(tmp_path, ("a.png", "b.png"))
    assert _infer(tmp_path / "none", *pair, "--out", tmp_path / "out") == 2
    assert "no weights folder" in capsys.readouterr().err
    assert _infer(tmp_path, *pair, "--out", tmp_path / "out") == 2
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_bytes((weights_folder / "config.json").read_bytes())
    assert _infer(tmp_path / "half", *pair, "--out", tmp_path / "out") == 2
    assert "model.safetensors is not there" in capsys.readouterr().err


def test_a_damaged_video_fails_alone(weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = _video(tmp_path / "good.mp4"), _video(tmp_path / "bad.mp4", frames=8)
    data = bytearray(bad.read_bytes())
    start = data.index(b"mdat") + 8
    data[start : start + 3000] = bytes(len(data[start : start + 3000]))
    bad.write_bytes(data)
    code = _infer(weights_folder, bad, good, "--out", tmp_path / "out", "--write", "flo", "--json")
    document = json.loads(capsys.readouterr().out)
    assert code == 4 and [failed["clip"] for failed in document["failed"]] == ["bad"]
    assert "bad.mp4 cannot be decoded" in document["failed"][0]["reason"]
    assert [clip["clip"] for clip in document["clips"]] == ["good"]


@pytest.mark.slow
def test_every_real_video_is_read(
    sample_data: Path, weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted(path for path in (sample_data / "videos").iterdir() if path.is_file())
    words = (weights_folder, *videos, "--out", tmp_path, "--max-frames", 3, "--write", "flo,features", "--json")
    assert _infer(*words) == 0
    clips = json.loads(capsys.readouterr().out)["clips"]
    assert len(clips) == 9 and all(len(clip["written"]) == 2 + 3 + 1 for clip in clips)
    for name, size in (("h265_10bits", (200, 200)), ("nasa_13013", (270, 480))):  # of two streams, the larger
        flow = read_flo(tmp_path / name / "flo/000001.flo")
        assert np.isfinite(flow).all() and flow.shape == (*size, 2)

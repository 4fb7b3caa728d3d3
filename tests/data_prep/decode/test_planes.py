"""Videos that stay planes: colours, sharpness and chroma's place of the JPEGs, and what goes by RGB instead."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from test_video_kinds import BY_HAND, MATRICES
from video_files import FFMPEG, scene, set_matrix, shown_by_ffmpeg, write

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.cutter import CutSample, DroppedSample, cut_input
from mcjepa.data_prep.decode.encoders import shrink
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.decode.video.planes import Planes
from mcjepa.data_prep.decode.videos import open_video
from mcjepa.data_prep.plan.files import new_digest
from mcjepa.data_prep.settings import (
    CorpusConfig,
    CutFilter,
    DarkFilter,
    DatasetConfig,
    DecoderName,
    DuplicateFilter,
    FiltersConfig,
    VideoConfig,
)

PLANES = DatasetConfig(
    kind="image", corpora=(CorpusConfig(reader="videos"),), clip_stride=1, short_side=48, decoder="pyav-planes"
)
WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Weights of red and blue in luma: BT.601, BT.709 and BT.2020, as the recommendations print them."""
NUMBERS = {"bt601": 6, "bt709": 1, "bt2020": 9, "unnamed": 2, "bt470bg": 5}
"""ITU-T H.273, table 4."""
PATCHES = np.array(
    [
        [[230, 20, 20], [20, 200, 30], [30, 40, 220]],
        [[235, 220, 40], [30, 210, 220], [200, 60, 190]],
        [[128, 128, 128], [16, 16, 16], [245, 245, 245]],
        [[180, 120, 90], [70, 110, 160], [250, 250, 0]],
    ],
    np.float64,
)
PATCH_PX = 48


def jpegs(path: Path, config: DatasetConfig = PLANES) -> list[bytes]:
    pieces = list(cut_input(Input("v", str(path), "video"), config))
    assert all(isinstance(piece, CutSample) for piece in pieces)
    return [piece.members["jpg"] for piece in pieces if isinstance(piece, CutSample)]


def opened(data: bytes) -> np.ndarray:
    """RGB (H, W, 3) as Pillow shows a JPEG."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.float64)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((found.astype(np.float64) - wanted) ** 2)))


def coded(rgb: np.ndarray, weights: tuple[float, float], full: bool, bits: int) -> np.ndarray:
    """Y'CbCr (…, 3) of R'G'B' of 0 to 255, by the recommendations' formulas."""
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    red, blue = weights
    y = red * r + (1 - red - blue) * g + blue * b
    chroma = np.stack([(b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))], -1)
    step = 2 ** (bits - 8)
    if full:
        levels = np.concatenate([y[..., None] * (256 * step - 1), chroma * (256 * step - 1) + 128 * step], -1)
    else:
        levels = np.concatenate([(16 + 219 * y[..., None]) * step, (128 + 224 * chroma) * step], -1)
    return np.clip(np.rint(levels), 0, 256 * step - 1).astype(np.uint16)


def write_planes(path: Path, planes: list[np.ndarray], pixels: str, **attributes: int) -> Path:
    """A lossless video of one frame with these planes."""
    height, width = planes[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        frame = av.VideoFrame(width, height, pixels)
        for target, values in zip(frame.planes, planes, strict=True):
            data = values.astype(np.uint16 if "10le" in pixels else np.uint8)
            rows = np.zeros((target.height, target.line_size), np.uint8)
            rows[:, : data.shape[1] * data.itemsize] = data.view(np.uint8)
            target.update(rows)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patches_video(path: Path, matrix: str, pixels: str, full: bool) -> Path:
    """The patches as planes of this matrix and range."""
    bits = 10 if "10le" in pixels else 8
    levels = coded(PATCHES, WEIGHTS.get(matrix, WEIGHTS["bt601"]), full, bits)
    whole = levels.repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)
    across, down = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}[pixels[3:6].replace("j", "")]
    planes = [whole[..., 0], *(np.ascontiguousarray(whole[::down, ::across, n]) for n in (1, 2))]
    return write_planes(path, planes, pixels, color_range=2 if full else 1, colorspace=NUMBERS[matrix])


def middles(rgb: np.ndarray) -> np.ndarray:
    """The mean colour of each patch's inner half."""
    rows, columns = PATCHES.shape[:2]
    height, width = rgb.shape[0] / rows, rgb.shape[1] / columns
    return np.array(
        [
            [
                rgb[
                    round((i + 0.25) * height) : round((i + 0.75) * height),
                    round((j + 0.25) * width) : round((j + 0.75) * width),
                ].mean((0, 1))
                for j in range(columns)
            ]
            for i in range(rows)
        ]
    )


@pytest.mark.parametrize("short_side", [1000, 97, 48])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("matrix", NUMBERS)
def test_known_colours_come_out_whatever_matrix_and_range(
    matrix: str, pixels: str, full: bool, short_side: int, tmp_path: Path
) -> None:
    path = patches_video(tmp_path / "v.mkv", matrix, pixels, full)
    assert open_video(str(path), "pyav-planes").decoder == "pyav-planes"
    config = replace(PLANES, short_side=short_side, quality=100)
    found = opened(jpegs(path, config)[0])
    if short_side < 1000:
        assert found.shape == (round(short_side * 4 / 3), short_side, 3)
    assert np.abs(middles(found) - PATCHES).max() <= 3.5  # 8-bit codes of limited range are worth 1.2 each, twice


@pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg: apt install ffmpeg")
@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("size", [(96, 128), (270, 482), (145, 99)])
def test_jpegs_are_as_near_to_the_frames_that_ffmpeg_shows_as_those_of_rgb(
    size: tuple[int, int], matrix: int, tmp_path: Path
) -> None:
    """The truth: zimg's RGB of whole frames, chroma from where it lies, reduced with float arithmetic."""
    height, width = size[0] // 2 * 2, size[1] // 2 * 2
    path = write(tmp_path / "v.mp4", scene(3, height, width), colorspace=matrix, color_range=1)
    matrices = {1: "709", 6: "170m", 9: "2020_ncl"}
    shown = f"zscale=filter=bicubic:matrixin={matrices[matrix]}:rangein=limited:chromalin=left,format=gbrp,format=rgb24"
    ours, by_rgb = (jpegs(path, replace(PLANES, decoder=decoder)) for decoder in ("pyav-planes", "pyav"))
    for data, other, whole in zip(ours, by_rgb, shown_by_ffmpeg(path, shown), strict=True):
        found, theirs = opened(data), opened(other)
        assert found.shape == theirs.shape
        truth = cv2.resize(whole.astype(np.float32), found.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert psnr(found, truth) > max(34, psnr(theirs, truth) - 0.5)


@pytest.mark.slow
@pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg: apt install ffmpeg")
def test_jpegs_of_real_videos_are_no_worse_than_those_of_rgb(sample_data: Path) -> None:
    shown = "zscale=filter=bicubic:matrixin=170m:rangein=limited:chromalin=left,format=gbrp,format=rgb24"
    for name in ("bigbuckbunny.mp4", "bikes.mp4", "nasa_13013.mp4"):
        path = sample_data / "videos" / name
        config = replace(PLANES, short_side=144, max_samples_per_input=3)
        ours, by_rgb = (jpegs(path, replace(config, decoder=decoder)) for decoder in ("pyav-planes", "pyav"))
        whole = shown_by_ffmpeg(path, shown)
        numbers = np.rint(np.linspace(0, len(whole) - 1, 3)).astype(int)
        for data, other, number in zip(ours, by_rgb, numbers, strict=True):
            found, theirs = opened(data), opened(other)
            truth = cv2.resize(whole[number].astype(np.float32), found.shape[1::-1], interpolation=cv2.INTER_AREA)
            assert psnr(found, truth) > max(33, psnr(theirs, truth)), name


@pytest.mark.parametrize("place", ["left", "center"])
def test_chroma_lies_where_a_jpeg_has_it(place: str, tmp_path: Path) -> None:
    """A ramp of Cb, 1.74 levels a stored pixel: half a pixel beside its place it would be off by 0.87."""
    width, height, slope = 144, 96, 0.87
    shift = 0.5 if place == "center" else 0.0
    noise = np.random.default_rng(0).random((height // 2, width // 2))  # else every mean is rounded the same way
    cb = np.floor(56 + slope * np.arange(width // 2) * 2 + noise)
    grey = np.full((height, width), 128), np.full((height // 2, width // 2), 128)
    path = tmp_path / "v.mkv"
    write_planes(path, [grey[0], cb, grey[1]], "yuv420p", color_range=2, colorspace=6)
    if place == "left":
        path = _with_chroma_left(path, tmp_path / "left.mkv")
    image = Image.open(io.BytesIO(jpegs(path, replace(PLANES, quality=100))[0]))
    image.draft("YCbCr", image.size)
    columns = np.asarray(image)[4:-4, :, 1].mean(0)  # as Pillow enlarges it, at luma's places
    wanted = 56 + slope * ((np.arange(72) + 0.5) * 2 - 0.5 - shift)
    assert abs((columns - wanted)[6:-6].mean()) < 0.4


def _with_chroma_left(source: Path, target: Path) -> Path:
    """The frame in H.264, lossless, which says that chroma lies at the left."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream("libx264", rate=25, options={"qp": "0", "x264-params": "chromaloc=0:fullrange=on"})
        stream.width, stream.height, stream.pix_fmt = 144, 96, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = 2, 6
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    return target


def test_a_frame_that_keeps_its_size_keeps_its_chroma(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 33), np.uint8)
    parts = [noise[:31, :], noise[:16, :17], noise[16:32, :17]]
    path = write_planes(tmp_path / "v.mkv", parts, "yuv420p", color_range=2, colorspace=6)
    (frame,) = open_video(str(path), "pyav-planes").read(np.arange(1))
    kept = frame.shrunk(256)
    assert isinstance(kept, Planes) and kept.size == (33, 31)
    for plane, part in zip((kept.y, kept.cb, kept.cr), parts, strict=True):
        assert np.array_equal(plane, part)


def rgb_only(kind: str, path: Path) -> Path:
    frames = scene(4, 64, 96)
    if kind == "interlaced":
        return write(path, frames, options={"x264-params": "tff=1", "bf": "0"})
    if kind == "another matrix":
        return write(path, frames, colorspace=7)
    if kind == "wide colours":
        return write(path, frames, color_trc=16, color_primaries=9, colorspace=9)
    pixels = {"rgb": "bgr0", "grey": "gray", "alpha": "yuva420p"}[kind]
    return write(path, frames, codec="ffv1", pix_fmt=pixels)


@pytest.mark.parametrize("kind", ["interlaced", "another matrix", "wide colours", "rgb", "grey", "alpha"])
def test_what_planes_cannot_do_exactly_goes_by_rgb_and_is_recorded(kind: str, tmp_path: Path) -> None:
    path = rgb_only(kind, tmp_path / "v.mkv")
    config = replace(PLANES, video=VideoConfig(wide_colours="convert"))
    pieces = [
        list(cut_input(Input("v", str(path), "video"), replace(config, decoder=d))) for d in ("pyav-planes", "pyav")
    ]
    assert pieces[0] == pieces[1] and len(pieces[0]) == 4
    assert {piece.decoder for piece in pieces[0] if isinstance(piece, CutSample)} == {"pyav"}


def test_wide_colours_that_are_kept_stay_planes(tmp_path: Path) -> None:
    path = rgb_only("wide colours", tmp_path / "v.mkv")
    config = replace(PLANES, video=VideoConfig(wide_colours="keep"))
    (first, *others) = cut_input(Input("v", str(path), "video"), config)
    assert isinstance(first, CutSample) and first.decoder == "pyav-planes" and len(others) == 3
    by_rgb = jpegs(path, replace(config, decoder="pyav"))[0]
    assert np.abs(opened(first.members["jpg"]) - opened(by_rgb)).mean() < 3


@pytest.mark.parametrize("lies", MATRICES)
@pytest.mark.parametrize(("size", "short_side"), [((96, 128), 1000), ((97, 131), 1000), ((97, 131), 61)])
def test_turned_videos_are_stored_upright(size: tuple[int, int], short_side: int, lies: str, tmp_path: Path) -> None:
    """Chroma too: in a picture of odd sides a flip moves it against luma unless it is halved afterwards."""
    frames = scene(3, *size)
    path = write(tmp_path / "v.mp4", frames, pix_fmt="yuv444p", colorspace=6, color_range=1)
    set_matrix(path, *MATRICES[lies])
    config = replace(PLANES, short_side=short_side)
    found = [opened(data) for data in jpegs(path, config)]
    wanted = [shrink(np.ascontiguousarray(frame), short_side) for frame in BY_HAND[lies](frames)]
    for ours, truth in zip(found, wanted, strict=True):
        assert ours.shape == truth.shape and psnr(ours, truth) > 40
    assert open_video(str(path), "pyav-planes").decoder == "pyav-planes"


@pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg: apt install ffmpeg")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("aspect", "size"), [("2/1", (96, 256)), ("1/2", (192, 128)), ("16/15", (96, 137))])
def test_long_pixels_are_stored_square(aspect: str, size: tuple[int, int], turned: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", scene(3), sample_aspect_ratio=Fraction(aspect), colorspace=1, color_range=1)
    whole = shown_by_ffmpeg(path, f"format=rgb24,scale={size[1]}:{size[0]}:flags=bilinear+accurate_rnd")
    if turned:
        set_matrix(path, *MATRICES["quarter turn left"])
        whole = BY_HAND["quarter turn left"](whole)
    for short_side in (1000, 64):
        found = [opened(data) for data in jpegs(path, replace(PLANES, short_side=short_side))]
        for ours, theirs in zip(found, whole, strict=True):
            truth = shrink(np.ascontiguousarray(theirs), short_side)
            assert ours.shape == truth.shape and psnr(ours, truth) > 35
    (kept,) = jpegs(path, replace(PLANES, video=VideoConfig(square_pixels=False), max_samples_per_input=1))
    assert opened(kept).shape[:2] == ((64, 48) if turned else (48, 64))


def test_frames_that_become_interlaced_later_are_deinterlaced(tmp_path: Path) -> None:
    """In a transport stream; in the first frames nothing tells of it, so that the video stays planes."""
    moments = scene(16, 64, 96)
    woven = moments[::2].copy()
    woven[:, 1::2] = moments[1::2, 1::2]
    parts = []
    for name, frames, first, flags in (("a.ts", moments[:8], 0, {}), ("b.ts", woven, 8, {"x264-params": "tff=1"})):
        write(tmp_path / name, frames, format="mpegts", first_pts=first, options={"bf": "0", **flags})
        parts.append((tmp_path / name).read_bytes())
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(parts))
    video = open_video(str(path), "pyav-planes")
    assert video.decoder == "pyav-planes" and not video.table.facts.interlaced
    planes = [frame.rgb for frame in video.read(np.arange(16))]
    by_rgb = [frame.rgb for frame in open_video(str(path), "pyav").read(np.arange(16))]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(planes, by_rgb, strict=True))


def what_comes_of(path: Path, decoder: DecoderName) -> object:
    """Frames, times and sizes of all samples, or the words of the refusal."""
    config = replace(PLANES, kind="clip", frame_step=2, clip_stride=3, rate_hz=12.0, min_size=48, decoder=decoder)
    try:
        pieces = list(cut_input(Input("v", str(path), "video"), config))
    except (DecodeFailure, Unwanted) as error:
        return str(error)
    return [
        (piece.meta, [opened(data).shape for data in piece.members.values()])
        for piece in pieces
        if isinstance(piece, CutSample)
    ]


def test_samples_and_refusals_are_those_of_decord(tmp_path: Path, add_bad_videos: Callable[[Path], set[str]]) -> None:
    write(tmp_path / "a.mp4", scene(40, 64, 96), options={"bf": "3"})
    write(tmp_path / "small.mp4", scene(40, 32, 96))
    write(tmp_path / "short.mp4", scene(2, 64, 96))
    write(tmp_path / "a.ts", scene(40, 64, 96), format="mpegts")
    add_bad_videos(tmp_path)
    whole = (tmp_path / "a.mp4").read_bytes()
    for number, at in enumerate(range(2000, len(whole) - 3000, (len(whole) - 5000) // 5)):
        (tmp_path / f"hole{number}.mp4").write_bytes(whole[:at] + bytes(700) + whole[at + 700 :])
        (tmp_path / f"cut{number}.mp4").write_bytes(whole[:at])
    found = {}
    for path in sorted(path for path in tmp_path.iterdir() if path.suffix in (".mp4", ".ts")):
        found[path.name] = what_comes_of(path, "pyav-planes")
        # What a decoder has filled up is told by PyAV alone.
        assert found[path.name] == what_comes_of(path, "pyav" if "hole" in path.name else "decord"), path.name
    assert len(found["a.mp4"]) == len(found["a.ts"]) > 3  # type: ignore[arg-type]
    assert str(found["small.mp4"]).startswith("96x32 px") and "a sample spans" in str(found["short.mp4"])
    assert sum("damaged at frame" in str(each) for each in found.values()) >= 3
    assert sum("cut off" in str(each) for each in found.values()) >= 5


def test_filters_see_the_stored_colours_and_nothing_else_asks_for_rgb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "v.mp4", scene(6, 96, 128), colorspace=1, color_range=1)
    modes = FiltersConfig(
        cut=CutFilter(mode="score"), dark=DarkFilter(mode="score"), duplicates=DuplicateFilter(mode="score")
    )
    from mcjepa.data_prep.filters.judge import SampleJudge

    config = replace(PLANES, kind="clip", filters=modes)
    scores = [
        [
            piece.meta["scores"]
            for piece in cut_input(Input("v", str(path), "video"), replace(config, decoder=d), SampleJudge(modes))
            if isinstance(piece, CutSample)
        ]
        for d in ("pyav-planes", "pyav")
    ]
    assert len(scores[0]) == len(scores[1]) == 5
    for ours, theirs in zip(*scores, strict=True):
        assert ours["luma"] == pytest.approx(theirs["luma"], abs=1.5) and ours["cut"] == pytest.approx(
            theirs["cut"], rel=0.1
        )
        assert bin(int(ours["phash"], 16) ^ int(theirs["phash"], 16)).count("1") <= 2
    drops = FiltersConfig(dark=DarkFilter(mode="drop", min_luma=250))
    dropped = list(cut_input(Input("v", str(path), "video"), replace(config, filters=drops), SampleJudge(drops)))
    assert len(dropped) == 5 and all(isinstance(piece, DroppedSample) for piece in dropped)

    def refuse(self: Planes) -> np.ndarray:
        raise AssertionError("nobody looks at pixels")

    monkeypatch.setattr(Planes, "rgb", refuse)
    assert len(jpegs(path)) == 6


def test_the_same_frames_give_the_same_bytes_and_the_plan_tells_what_makes_them(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", scene(5, 270, 480), colorspace=1)
    assert jpegs(path) == jpegs(path)
    plans = {d: new_digest(replace(PLANES, decoder=d), []).summary() for d in ("pyav", "pyav-planes")}  # type: ignore[arg-type]
    assert (
        plans["pyav-planes"].encoder == f"{plans['pyav'].encoder}; planes of videos by swscale, to BT.601 in full range"
    )
    assert plans["pyav-planes"].plan_digest != plans["pyav"].plan_digest


def test_planes_go_into_jpegs_only() -> None:
    with pytest.raises(ValueError, match="decoder=pyav-planes with encoding=png; expected encoding=jpeg"):
        replace(PLANES, encoding="png")

"""Videos that are not plain: every decoder gives them as they are shown, or the video is refused by name."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from video_files import FFMPEG, run_ffmpeg, scene, set_matrix, shown_by_ffmpeg, write

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.samples import packaged_videos
from mcjepa.data_prep.decode.colour import to_light
from mcjepa.data_prep.decode.cutter import CutSample, DroppedSample, cut_input
from mcjepa.data_prep.decode.messages import DecodeFailure, Unwanted
from mcjepa.data_prep.decode.videos import open_video
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, DecoderName, VideoConfig

DECODERS = ("decord", "pyav", "pyav-planes", "torchcodec")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg: apt install ffmpeg")
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "half a turn": (-1, 0, 0, -1),
    "upside down mirrored": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "quarter turn right": (0, 1, -1, 0),
    "transversed": (0, -1, -1, 0),
    "quarter turn left": (0, -1, 1, 0),
}
BY_HAND = {
    "as stored": lambda f: f,
    "mirrored": lambda f: f[:, :, ::-1],
    "half a turn": lambda f: f[:, ::-1, ::-1],
    "upside down mirrored": lambda f: f[:, ::-1],
    "transposed": lambda f: f.transpose(0, 2, 1, 3),
    "quarter turn right": lambda f: np.rot90(f, -1, (1, 2)),
    "transversed": lambda f: np.rot90(f, 2, (1, 2)).transpose(0, 2, 1, 3),
    "quarter turn left": lambda f: np.rot90(f, 1, (1, 2)),
}


def frames_of(path: Path, decoder: str, config: VideoConfig | None = None) -> np.ndarray:
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    video = open_video(str(path), decoder, config=config)  # type: ignore[arg-type]
    return np.stack([frame.rgb for frame in video.read(np.arange(video.frame_count))])


def samples_of(path: Path, **changes: object) -> list[CutSample | DroppedSample]:
    encoding = "jpeg" if changes.get("decoder") == "pyav-planes" else "png"
    values: dict[str, object] = {"kind": "clip", "clip_stride": 1, "encoding": encoding, **changes}
    config = DatasetConfig(corpora=(CorpusConfig(reader="videos"),), **values)  # type: ignore[arg-type]
    return list(cut_input(Input("v", str(path), "video"), config))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("lies", MATRICES)
def test_all_eight_orientations_come_upright(lies: str, decoder: str, tmp_path: Path) -> None:
    frames = scene(4)
    path = set_matrix(write(tmp_path / "v.mp4", frames), *MATRICES[lies])
    found = frames_of(path, decoder)
    assert np.abs(found.astype(int) - BY_HAND[lies](frames)).mean() < 4  # lossy; another orientation differs by 30
    if FFMPEG:
        assert difference(found, shown_by_ffmpeg(path)) <= 2


def test_a_video_turned_by_thirty_degrees_is_refused(tmp_path: Path) -> None:
    path = set_matrix(write(tmp_path / "v.mp4", scene(3)), 2, 1, -1, 2)
    with pytest.raises(DecodeFailure, match="turns it by 27 degrees"):
        open_video(str(path), "decord")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("rotate", "flip", "lies"), [(0, "horizontal", "mirrored"), (90, None, "quarter turn left")])
def test_an_orientation_message_in_the_stream_is_followed(
    rotate: int, flip: str | None, lies: str, decoder: str, tmp_path: Path
) -> None:
    """H.264's display orientation SEI (D.2.19): a turn to the left, after flips."""
    import av
    from av.bitstream import BitStreamFilterContext

    frames = scene(4)
    plain = write(tmp_path / "plain.mp4", frames)
    path = tmp_path / "v.mp4"
    words = f"h264_metadata=display_orientation=insert:rotate={rotate}" + (f":flip={flip}" if flip else "")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        tool = BitStreamFilterContext(words, stream)
        for packet in source.demux(stream):
            for changed in tool.filter(packet if packet.size else None):
                changed.stream = out
                target.mux(changed)
    found = frames_of(path, decoder)
    assert np.abs(found.astype(int) - BY_HAND[lies](frames)).mean() < 4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("aspect", "size"), [("2:1", (96, 256)), ("1:2", (192, 128)), ("16:15", (96, 137))])
def test_pixels_that_are_not_square_are_stored_square(
    aspect: str, size: tuple[int, int], decoder: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "v.mp4", scene(4), sample_aspect_ratio=Fraction(aspect.replace(":", "/")))
    found = frames_of(path, decoder)
    assert found.shape[1:3] == size
    assert frames_of(path, decoder, VideoConfig(square_pixels=False)).shape[1:3] == (96, 128)
    if FFMPEG:
        height, width = size
        scaled = f"format=rgb24,scale={width}:{height}:flags=bilinear+accurate_rnd"
        assert difference(found, shown_by_ffmpeg(path, scaled)) <= 2
    samples = samples_of(path, decoder=decoder)
    assert {tuple(s.meta["pixel_aspect"]) for s in samples if isinstance(s, CutSample)} == {
        tuple(map(int, aspect.split(":")))
    }


def test_a_turned_video_with_long_pixels_is_stretched_along_the_right_axis(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", scene(3), sample_aspect_ratio=Fraction(2))
    set_matrix(path, *MATRICES["quarter turn right"])
    assert frames_of(path, "decord").shape[1:3] == (256, 96)


def test_an_aspect_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", scene(3), sample_aspect_ratio=Fraction(12))
    with pytest.raises(DecodeFailure, match="aspect ratio 12"):
        open_video(str(path), "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("second_pts", [5, 12, 10_000_000])
def test_no_sample_crosses_the_join_of_two_recordings(second_pts: int, decoder: str, tmp_path: Path) -> None:
    """Two transport streams in one file: their times overlap, or lie days apart."""
    first, second = scene(20, seed=1), scene(20, seed=2)
    for name, frames, pts in (("a.ts", first, 10), ("b.ts", second, second_pts)):
        write(tmp_path / name, frames, format="mpegts", first_pts=pts, options={"bf": "2"})
    path = tmp_path / "v.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    found = frames_of(path, decoder)
    assert np.abs(found.astype(int) - np.concatenate([first, second])).mean() < 4
    samples = samples_of(path, decoder=decoder)
    numbers = [s.meta["frame_index"] for s in samples if isinstance(s, CutSample)]
    assert numbers == [[k, k + 1] for k in range(39) if k != 19]
    gaps = [s.meta["pts_s"][1] - s.meta["pts_s"][0] for s in samples if isinstance(s, CutSample)]
    assert np.allclose(gaps, 0.04, atol=1e-3)
    picked = samples_of(path, decoder=decoder, rate_hz=5.0)
    assert [s.meta["frame_index"] for s in picked if isinstance(s, CutSample)] == [
        [a, a + 5] for start in (0, 20) for a in range(start, start + 15, 5)
    ]


def test_no_sample_crosses_a_freeze(tmp_path: Path) -> None:
    frames = scene(10)
    path = tmp_path / "v.mp4"
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = number if number < 5 else number + 75
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    numbers = [s.meta["frame_index"] for s in samples_of(path) if isinstance(s, CutSample)]
    assert numbers == [[k, k + 1] for k in range(9) if k != 4]
    assert len(samples_of(path, video=VideoConfig(max_gap_s=4.0))) == 9
    with pytest.raises(Unwanted, match=r"10 frame\(s\) in 2 pieces; a sample spans 6"):
        samples_of(path, frames=6)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["v.ts", "v.webm", "v.mp4"])
def test_a_change_of_size_is_never_squeezed(name: str, decoder: str, tmp_path: Path) -> None:
    small, large = scene(6), scene(6, 192, 256)
    path = tmp_path / name
    if name == "v.ts":
        write(tmp_path / "a.ts", small, format="mpegts", first_pts=0, options={"bf": "0"})
        write(tmp_path / "b.ts", large, format="mpegts", first_pts=6, options={"bf": "0"})
        path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    else:
        _change_size(path, small, large)
    samples = samples_of(path, decoder=decoder)
    kept = [s.meta["frame_index"] for s in samples if isinstance(s, CutSample)]
    dropped = [s for s in samples if isinstance(s, DroppedSample)]
    assert kept == [[k, k + 1] for k in range(11) if k != 5]
    assert [(d.frame_index, d.filter) for d in dropped] in ([((5, 6), "size")], [])  # a join, or a change within
    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="videos"),), clip_stride=1, encoding="png")
    shapes = [
        cv2.imdecode(np.frombuffer(s.members["png"], np.uint8), cv2.IMREAD_COLOR).shape[:2]
        for s in cut_input(Input("v", str(path), "video"), config)
        if isinstance(s, CutSample)
    ]
    assert shapes == [(96, 128)] * 6 + [(192, 256)] * 6


def _change_size(path: Path, small: np.ndarray, large: np.ndarray) -> None:
    """One stream of packets of two encoders: VP8 in WebM; H.264 in mp4 with its headers in the stream."""
    import av

    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    packets: list[tuple[int, bytes, bool]] = []
    for frames, start in ((small, 0), (large, len(small))):
        context = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        context.options = {"crf": "4", "b": "4M"} if codec == "libvpx" else {"crf": "4", "bf": "0"}
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += [(start + p.pts, bytes(p), p.is_keyframe) for p in context.encode(frame)]
        packets += [(start + p.pts, bytes(p), p.is_keyframe) for p in context.encode(None)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = small.shape[2], small.shape[1], "yuv420p"
        if codec == "libx264":
            stream.codec_context.options = {"bf": "0"}
        for pts, data, key in packets:
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.is_keyframe = (
                stream,
                Fraction(1, 25),
                pts,
                pts,
                key,
            )
            container.mux(packet)


@pytest.mark.parametrize("decoder", DECODERS)
def test_interlaced_frames_are_not_combed(decoder: str, tmp_path: Path) -> None:
    """Even rows of one moment, odd rows of the next: by yadif, as ffmpeg does it."""
    moments = scene(16)
    woven = moments[::2].copy()
    woven[:, 1::2] = moments[1::2, 1::2]
    path = write(tmp_path / "v.mp4", woven, options={"x264-params": "tff=1", "bf": "0"})
    with pytest.raises(Unwanted, match="interlaced"):
        frames_of(path, decoder, VideoConfig(interlaced="refuse"))
    kept = frames_of(path, decoder, VideoConfig(interlaced="keep"))
    found = frames_of(path, decoder, VideoConfig())
    assert len(found) == len(kept) == 8
    assert _combing(kept) > 3 * _combing(found)
    if FFMPEG:
        assert difference(found, shown_by_ffmpeg(path, "yadif=mode=send_frame:deint=interlaced")) <= 2


def _combing(frames: np.ndarray) -> float:
    """Mean difference of a row from the mean of its neighbours."""
    levels = frames.astype(float)
    return float(np.abs(levels[:, 1:-1] - (levels[:, :-2] + levels[:, 2:]) / 2).mean())


@pytest.mark.parametrize(
    ("transfer", "primaries", "words"),
    [(16, 9, r"HDR \(PQ\), BT.2020 primaries"), (18, 9, r"HDR \(HLG\)"), (1, 12, "Display P3 primaries")],
)
def test_wide_colours_are_refused_by_name(transfer: int, primaries: int, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", scene(3), color_trc=transfer, color_primaries=primaries)
    with pytest.raises(Unwanted, match=words):
        frames_of(path, "decord", VideoConfig())
    assert len(frames_of(path, "decord", VideoConfig(wide_colours="keep"))) == 3


TO_LIGHT = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709"
HABLE = ",tonemap=hable:desat=0:peak=10"
FROM_LIGHT = "zscale=t=bt709:r=full,format=gbrp"


@needs_ffmpeg
@pytest.mark.parametrize(
    ("pixels", "codec", "place"),
    [
        ("yuv444p10le", "ffv1", "left"),
        ("yuv420p10le", "libx265", "left"),
        ("yuv420p10le", "libx265", "topleft"),
        ("yuv422p10le", "libx265", "left"),
        ("yuv420p10le", "libvpx-vp9", ""),
    ],
)
@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_converted_as_ffmpeg_does(transfer: str, pixels: str, codec: str, place: str, tmp_path: Path) -> None:
    """By zimg and ffmpeg's tone map. No light has a code above 1, to which chroma that was halved may lead at edges."""
    path = wide_video(tmp_path / "v.mkv", "bt2020", pixels, transfer, codec, place)
    found = frames_of(path, "decord", VideoConfig(wide_colours="convert"))
    wanted = shown_by_ffmpeg(path, f"{TO_LIGHT}{HABLE},{FROM_LIGHT}")
    assert found.std() > 40 and found.shape == (2, 96, 128, 3)
    assert difference(found, wanted) <= 2


@needs_ffmpeg
@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hard_edges_of_hdr_differ_only_where_no_light_is(transfer: str, tmp_path: Path) -> None:
    """Blocks of the most extreme colours: between them some pixels have codes up to 1.9, where zimg rounds."""
    path = wide_video(tmp_path / "v.mkv", "bt2020", "yuv420p10le", transfer, "libx265", "left", cv2.INTER_NEAREST)
    found = frames_of(path, "decord", VideoConfig(wide_colours="convert")).astype(int)
    apart = np.abs(found - shown_by_ffmpeg(path, f"{TO_LIGHT}{HABLE},{FROM_LIGHT}")).max(axis=-1)
    assert (apart > 2).mean() < 1e-3 and apart.max() < 16


@needs_ffmpeg
@pytest.mark.parametrize(
    ("primaries", "pixels"), [("smpte432", "yuv444p"), ("smpte432", "yuv420p"), ("bt2020", "yuv420p10le")]
)
def test_wide_primaries_are_converted_as_ffmpeg_does(primaries: str, pixels: str, tmp_path: Path) -> None:
    path = wide_video(tmp_path / "v.mkv", primaries, pixels, "bt709", "ffv1", "left")
    found = frames_of(path, "decord", VideoConfig(wide_colours="convert"))
    assert found.std() > 40
    assert difference(found, shown_by_ffmpeg(path, f"{TO_LIGHT},{FROM_LIGHT}")) <= 2


def wide_video(
    path: Path, primaries: str, pixels: str, transfer: str, codec: str, place: str, blend: int = cv2.INTER_LINEAR
) -> Path:
    """Two frames of many colours that go into each other, chroma sampled at `place`."""
    matrix, named = ("bt2020", "bt2020nc") if primaries == "bt2020" else ("bt709", "bt709")
    grid = np.random.default_rng(0).integers(0, 1 << 16, (6, 8, 3)).astype(np.uint16)
    colours = cv2.resize(grid, (128, 96), interpolation=blend)
    words = (
        f"-v error -f rawvideo -pix_fmt rgb48le -s 128x96 -r 25 -i - -vf scale=out_color_matrix={matrix}:out_range=tv"
    )
    words += f",format={pixels} -c:v {codec} -color_trc {transfer} -color_primaries {primaries} -color_range tv"
    words += f" -colorspace {named}" + f" -chroma_sample_location {place}" * bool(place)
    words += " -x265-params log-level=error" + ":chromaloc=2" * (place == "topleft")
    run_ffmpeg(*words.split()[: None if codec == "libx265" else -2], str(path), content=2 * colours.tobytes())
    return path


def test_the_tone_map_of_known_lights() -> None:
    """PQ's table (ST 2084): code 0.5081 is 100 cd/m², 0.7518 is 1,000; HLG's 0.5 is a twelfth of its scene."""
    coded = np.array([[0.5081] * 3, [0.7518] * 3, [0.0] * 3], np.float32)
    assert np.allclose(to_light(coded, 16), [[1.0] * 3, [10.0] * 3, [0.0] * 3], rtol=2e-3)
    assert np.allclose(to_light(np.array([[1.0, 0.5, 0.0]], np.float32), 18), [[10, 10 / 12**1.2, 0]], rtol=1e-4)


def test_dci_white_is_not_converted(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", scene(3), color_trc=1, color_primaries=11)
    with pytest.raises(Unwanted, match="DCI-P3 primaries"):
        frames_of(path, "decord", VideoConfig(wide_colours="convert"))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("codec", ["libvpx", "libx264"])
def test_a_matroska_without_a_duration_is_read_whole(codec: str, decoder: str, tmp_path: Path) -> None:
    name = "v.webm" if codec == "libvpx" else "v.mkv"
    frames = scene(30)
    options = {"crf": "4", "b": "4M"} if codec == "libvpx" else {"crf": "4"}
    path = write(tmp_path / name, frames, codec=codec, options=options)
    data = path.read_bytes()
    at = data.index(b"\x44\x89")  # Duration, 8 bytes of a float
    assert data[at + 2] == 0x88
    path.write_bytes(data[:at] + b"\xec\x89" + bytes(9) + data[at + 11 :])  # a Void element of the same length
    video = open_video(str(path), decoder)  # type: ignore[arg-type]
    assert not video.table.timed and video.decoder == ("pyav-planes" if decoder == "pyav-planes" else "pyav")
    assert np.abs(frames_of(path, decoder).astype(int) - frames).mean() < 6


@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-planes"])
def test_packets_of_vp8_that_show_nothing_are_no_frames(decoder: DecoderName, tmp_path: Path) -> None:
    """Alternative references, as two-pass encoders make them: here the header of every seventh frame says so."""
    whole = write(tmp_path / "whole.webm", scene(40), "libvpx")
    with av.open(str(whole)) as source, av.open(str(tmp_path / "a.webm"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            content = bytearray(bytes(packet))
            content[0] &= 0xFF if number % 7 != 3 else 0b11101111
            altered = av.Packet(bytes(content))
            altered.pts, altered.dts, altered.time_base = packet.pts, packet.dts, packet.time_base
            altered.is_keyframe, altered.stream = packet.is_keyframe, stream
            target.mux(altered)
    with av.open(str(tmp_path / "a.webm")) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(frames) == 34
    video = open_video(str(tmp_path / "a.webm"), decoder)
    assert video.table.times_s.tolist() == pytest.approx([at for at, _ in frames])
    wanted = np.asarray([2, 3, 17, 33])
    for number, found in zip(wanted, video.read(wanted), strict=True):
        assert np.abs(found.rgb.astype(int) - frames[number][1]).max() <= 2


@pytest.mark.parametrize("decoder", ["pyav", "pyav-planes"])
def test_frames_that_a_decoder_has_filled_up_are_damage(decoder: DecoderName, tmp_path: Path) -> None:
    (content,) = (path.read_bytes() for path in packaged_videos() if path.name == "bikes.mp4")
    for seed in range(6):
        random, damaged = np.random.default_rng(seed), bytearray(content)
        at = len(content) // 2 + int(random.integers(-20_000, 20_000))
        damaged[at : at + 64] = random.bytes(64)
        (tmp_path / "a.mp4").write_bytes(damaged)
        video = open_video(str(tmp_path / "a.mp4"), decoder)
        with pytest.raises(DecodeFailure, match=r"^damaged at frame \d+ of 250"):
            deque(video.read(np.arange(video.frame_count)), maxlen=0)

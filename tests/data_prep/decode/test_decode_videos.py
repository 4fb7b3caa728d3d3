"""Which frame is which: every decoder gives the same frames at the same times, upright; cut off files are refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mcjepa.data_prep.corpora.image_files import decode_rgb
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.decode.client import DecodeClient
from mcjepa.data_prep.decode.cutter import CutSample
from mcjepa.data_prep.decode.encoders import encode
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.decode.video.decoders import decode_by_decord, decode_by_pyav
from mcjepa.data_prep.decode.videos import decoder_version, open_video
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, DecoderName
from tests.data_prep.small_corpora import smooth_frames

DECODERS: tuple[DecoderName, ...] = ("decord", "pyav", "pyav-planes", "torchcodec")
EXACT = DatasetConfig(
    kind="image",
    corpora=(CorpusConfig(reader="videos", path="unused"),),
    encoding="png",
    short_side=4096,
    clip_stride=1,
    timeout_s=60,
)
TIME_TOLERANCE_S = 1e-3
PIXEL_TOLERANCE = 0.5  # mean of absolute differences, of 255
PIXEL_TOLERANCE_10_BIT = 3.0
PLANES_TOLERANCE = 2.2  # of two JPEGs: that of planes, and that of RGB
MILLISECONDS = Fraction(1, 1000)
EVERY_40_MS = tuple(range(0, 2400, 40))
SIZE = (64, 96)

Frames = list[tuple[int, float, np.ndarray]]


def write_video(
    path: Path, times: Sequence[int], codec: str = "libx264", size: tuple[int, int] = SIZE, **settings: object
) -> None:
    """Encode smooth frames shown at `times` (ms, or frames of 1/25 s)."""
    options = {k: str(v) for k, v in settings.items() if k not in ("tick", "pix_fmt", "container")}
    tick = settings.get("tick", MILLISECONDS)
    with av.open(str(path), "w", options=settings.get("container", {})) as container:  # type: ignore[arg-type]
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = str(settings.get("pix_fmt", "yuv420p"))
        stream.time_base = stream.codec_context.time_base = tick
        for rgb, time in zip(smooth_frames(1, len(times), *size), times, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut_from_third_key_frame(source: Path, target: Path) -> None:
    """Copy a stream from its third key frame on, without its first references: as a careless editor does."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(video=0) if p.size]
        third = [n for n, p in enumerate(packets) if p.is_keyframe][2]
        for packet in packets[third:]:
            copy = av.Packet(bytes(packet))
            copy.pts, copy.dts = packet.pts - packets[third].dts, packet.dts - packets[third].dts
            copy.time_base, copy.is_keyframe, copy.duration = packet.time_base, packet.is_keyframe, packet.duration
            copy.stream = stream
            new.mux(copy)


def uneven_times() -> list[int]:
    """60 times, ms, from 0 on, 10 to 120 ms apart."""
    return np.cumsum([0, *np.random.default_rng(0).integers(10, 120, 59)]).tolist()


def turn_by_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b, c, d) into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (v * 65536 for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def hard_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short videos of what the sample data lacks."""
    folder = tmp_path_factory.mktemp("hard")
    uneven = uneven_times()
    numbers, frame = range(60), Fraction(1, 25)
    write_video(folder / "uneven.mp4", uneven)
    write_video(folder / "uneven.webm", uneven, "libvpx-vp9", deadline="realtime")
    write_video(folder / "late.mkv", [t + 2000 for t in EVERY_40_MS])
    write_video(folder / "late.mp4", [t + 2000 for t in EVERY_40_MS])
    write_video(folder / "edited.mp4", [t - 200 for t in EVERY_40_MS])  # an edit list hides what is before 0
    write_video(folder / "bframes.mp4", EVERY_40_MS, bf=3, container={"use_editlist": "0"})
    write_video(folder / "bframes.ts", EVERY_40_MS, bf=3)
    write_video(folder / "mpeg4.avi", numbers, "mpeg4", bf=2, tick=frame)
    write_video(folder / "mpeg2.mpg", numbers, "mpeg2video", bf=2, tick=frame)
    open_gop = "open-gop=1:keyint=12:min-keyint=12:bframes=4"
    write_video(folder / "open.mp4", numbers, "libx264", tick=frame, **{"x264-params": open_gop})
    write_video(folder / "open265.mp4", numbers, "libx265", tick=frame, **{"x265-params": f"{open_gop}:log-level=0"})
    for name in ("open", "open265"):
        cut_from_third_key_frame(folder / f"{name}.mp4", folder / f"{name}-cut.mp4")
        cut_from_third_key_frame(folder / f"{name}.mp4", folder / f"{name}-cut.mkv")
    write_video(folder / "odd.webm", EVERY_40_MS[:20], "libvpx-vp9", (67, 99), deadline="realtime")
    for turns, matrix in {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}.items():
        write_video(folder / f"turned{turns}.mp4", EVERY_40_MS[:20], "libx264", (67, 99), pix_fmt="yuv444p")
        turn_by_display_matrix(folder / f"turned{turns}.mp4", matrix)
    return folder


@pytest.fixture(scope="module", params=DECODERS)
def client(request: pytest.FixtureRequest) -> Iterator[DecodeClient]:
    """A client of each decoder, always in a child: decord and torchcodec crash in one process."""
    encoding = "jpeg" if request.param == "pyav-planes" else "png"
    with DecodeClient(replace(EXACT, decoder=request.param, encoding=encoding)) as client:
        try:
            list(client.cut(Input("x", "/nowhere", "video")))
        except DecodeFailure:
            yield client
        except DataError as error:
            pytest.skip(str(error))


def cut_frames(client: DecodeClient, path: Path) -> Frames:
    """Number, time and pixels of the frames that a client cuts from a video."""
    samples = [s for s in client.cut(Input(path.name, str(path), "video")) if isinstance(s, CutSample)]
    return [
        (s.meta["frame_index"][0], s.meta["pts_s"][0], decode_rgb(data, suffix))
        for s in samples
        for suffix, data in s.members.items()
    ]


def require_equal(found: Frames, expected: Frames, tolerance: float, name: str) -> None:
    assert [f[0] for f in found] == [f[0] for f in expected], name
    assert [f[1] for f in found] == pytest.approx([f[1] for f in expected], abs=TIME_TOLERANCE_S), name
    for (number, _, ours), (_, _, theirs) in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape, name
        assert np.abs(ours.astype(int) - theirs).mean() <= tolerance, (name, number)


def require_decoded(client: DecodeClient, path: Path, expected: Frames, tolerance: float) -> None:
    """What a client cuts from a video is what was expected; planes give JPEGs only, which are compared with JPEGs."""
    if client._config.decoder == "pyav-planes":
        expected = [(n, pts_s, decode_rgb(encode(rgb, "jpeg", 95), "jpg")) for n, pts_s, rgb in expected]
        tolerance = PLANES_TOLERANCE
    require_equal(cut_frames(client, path), expected, tolerance, path.name)


def read_by_pyav(path: Path, most: int = 0) -> Frames:
    """The frames of a video, by PyAV in this process."""
    video = open_video(str(path), "pyav")
    numbers = np.arange(video.frame_count)
    if most:
        numbers = np.rint(np.linspace(0, video.frame_count - 1, most)).astype(np.int64)
    return [(f.number, f.pts_s or 0.0, f.rgb) for f in video.read(numbers)]


HARD = {
    "uneven.mp4": 60,
    "uneven.webm": 60,
    "late.mkv": 60,
    "late.mp4": 60,
    "edited.mp4": 55,
    "bframes.mp4": 60,
    "bframes.ts": 60,
    "mpeg4.avi": 60,
    "mpeg2.mpg": 60,
    "open.mp4": 60,
    "open265.mp4": 60,
    "open-cut.mp4": 36,
    "open-cut.mkv": 36,
    "open265-cut.mp4": 36,
    "open265-cut.mkv": 36,
    "odd.webm": 20,
    "turned1.mp4": 20,
    "turned2.mp4": 20,
    "turned3.mp4": 20,
}


def test_every_decoder_gives_the_same_frames_of_hard_videos(client: DecodeClient, hard_videos: Path) -> None:
    for name, count in HARD.items():
        expected = read_by_pyav(hard_videos / name)
        assert len(expected) == count, name
        require_decoded(client, hard_videos / name, expected, PIXEL_TOLERANCE)


@pytest.mark.slow
def test_every_decoder_gives_the_same_frames_of_real_videos(client: DecodeClient, sample_data: Path) -> None:
    with DecodeClient(replace(client._config, max_samples_per_input=5)) as few:
        for path in sorted(p for p in (sample_data / "videos").iterdir() if p.is_file()):
            tolerance = PIXEL_TOLERANCE_10_BIT if "10bits" in path.name else PIXEL_TOLERANCE
            require_decoded(few, path, read_by_pyav(path, most=5), tolerance)


@pytest.mark.slow
def test_decord_itself_gives_the_frames_of_every_real_video(sample_data: Path) -> None:
    for path in sorted((sample_data / "videos").glob("*.m*")):
        table = open_video(str(path), "pyav").table
        numbers = np.unique(np.linspace(0, len(table.times_s) - 1, 5).astype(np.int64))
        tolerance = PIXEL_TOLERANCE_10_BIT if "10bits" in path.name else PIXEL_TOLERANCE
        pairs = zip(decode_by_decord(table, numbers), decode_by_pyav(table, numbers), strict=True)
        assert max(np.abs(ours.astype(int) - theirs).mean() for ours, theirs in pairs) <= tolerance, path.name


@pytest.mark.parametrize("width", [16, 24, 32, 40, 48, 64, 80, 96, 112, 144, 208])
def test_rows_that_decord_pads_in_memory_lose_the_padding(tmp_path: Path, width: int) -> None:
    write_video(tmp_path / "v.mp4", range(3), size=(32, width), tick=Fraction(1, 25))
    video = open_video(str(tmp_path / "v.mp4"), "decord")
    frames = list(decode_by_decord(video.table, np.arange(3)))
    assert [f.shape for f in frames] == [(32, width, 3)] * 3
    for ours, other in zip(frames, decode_by_pyav(video.table, np.arange(3)), strict=True):
        assert np.abs(ours.astype(int) - other).mean() < PIXEL_TOLERANCE


def test_frames_are_those_that_were_written_at_their_times(hard_videos: Path) -> None:
    uneven = uneven_times()
    truth = smooth_frames(1, 60, *SIZE).astype(int)
    for number, pts_s, rgb in read_by_pyav(hard_videos / "uneven.mp4"):
        assert int(np.argmin(np.abs(truth - rgb).mean(axis=(1, 2, 3)))) == number
        assert pts_s == pytest.approx(uneven[number] / 1000, abs=TIME_TOLERANCE_S)
    hidden = 5  # frames before time 0 are there to decode the others from
    for number, pts_s, rgb in read_by_pyav(hard_videos / "edited.mp4"):
        assert int(np.argmin(np.abs(truth - rgb).mean(axis=(1, 2, 3)))) == number + hidden
        assert pts_s == pytest.approx(number * 0.04, abs=TIME_TOLERANCE_S)


def test_turned_videos_come_upright(hard_videos: Path) -> None:
    truth = smooth_frames(1, 20, 67, 99)[0].astype(int)
    for turns in (1, 2, 3):
        rgb = read_by_pyav(hard_videos / f"turned{turns}.mp4")[0][2]
        expected = np.rot90(truth, turns)
        assert rgb.shape == expected.shape and np.abs(rgb - expected).mean() < 6


@pytest.mark.parametrize("name", ["open.mp4", "open265.mp4", "open265-cut.mkv", "bframes.mp4"])
def test_frames_between_may_be_left_out_anywhere(hard_videos: Path, name: str) -> None:
    every = {number: rgb.astype(int) for number, _, rgb in read_by_pyav(hard_videos / name)}
    random = np.random.default_rng(0)
    video = open_video(str(hard_videos / name), "decord")
    for few in (2, 3, 5, 9, 20):
        numbers = np.sort(random.choice(len(every), few, replace=False))
        for frame in video.read(numbers):
            assert np.abs(frame.rgb - every[frame.number]).mean() <= PIXEL_TOLERANCE, (few, frame.number)


def test_the_largest_video_stream_counts(sample_data: Path) -> None:
    table = open_video(str(sample_data / "videos" / "nasa_13013.mp4"), "decord").table
    assert (table.stream, table.width, table.height, len(table.times_s)) == (3, 480, 270, 390)


@pytest.mark.parametrize("suffix", ["mp4", "front.mp4", "mov", "mkv", "webm", "avi", "ts"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    container = {"movflags": "+faststart"} if suffix == "front.mp4" else {}
    write_video(path, range(60), codec, tick=Fraction(1, 25), container=container)
    assert open_video(str(path), "pyav").frame_count == 60
    data = path.read_bytes()
    for kept in (0.95, 0.5, 0.3):
        path.write_bytes(data[: int(len(data) * kept) // 188 * 188 + 100])
        with pytest.raises(DecodeFailure, match="cut off"):
            open_video(str(path), "pyav")


def test_a_matroska_file_without_a_length_is_refused_by_its_duration(tmp_path: Path) -> None:
    path = tmp_path / "live.mkv"
    write_video(path, EVERY_40_MS)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x18\x53\x80\x67") + 4
    data[at : at + 8] = b"\x01" + b"\xff" * 7  # the length is unknown
    path.write_bytes(bytes(data))
    assert open_video(str(path), "pyav").frame_count == 60
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(DecodeFailure, match=r"cut off: it ends at \d\.\d\d s of 2\.40 s"):
        open_video(str(path), "pyav")


def test_sound_that_outlasts_the_pictures_is_no_cut_off_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, EVERY_40_MS)
    longer = tmp_path / "b.mkv"
    with av.open(str(path)) as old, av.open(str(longer), "w") as new:
        pictures, sound = new.add_stream_from_template(old.streams.video[0]), new.add_stream("aac", rate=16000)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = pictures
                new.mux(packet)
        write_silence(new, sound, seconds=6)
    assert open_video(str(longer), "pyav").frame_count == 60


def write_silence(container: object, stream: object, seconds: int) -> None:
    """Encode seconds of silence."""
    for start in range(0, seconds * 16000, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))  # type: ignore[attr-defined]
    container.mux(stream.encode(None))  # type: ignore[attr-defined]


def test_files_without_pictures_say_so(client: DecodeClient, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        write_silence(container, container.add_stream("aac", rate=16000), seconds=1)
    (tmp_path / "random.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n")
    reasons = {}
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DecodeFailure) as failure:
            cut_frames(client, path)
        reasons[path.name] = str(failure.value)
    assert reasons["sound.mp4"] == "no video stream"
    for name in ("random.mp4", "list.mp4"):
        assert reasons[name].startswith("FFmpeg cannot read it (Invalid data found when processing input): it holds")


def test_large_frames_are_refused_by_the_container(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", smooth_frames(0, 3, 200, 300), 10, 20)
    with pytest.raises(DecodeFailure, match=r"300x200 px are 0\.1 megapixels; at most 0\.05 allowed"):
        open_video(str(tmp_path / "a.mp4"), "decord", max_megapixels=0.05)


def test_a_decoder_that_does_not_load_stops_the_job_not_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise OSError('libavutil.so.59: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with DecodeClient(replace(EXACT, decoder="torchcodec")) as client, pytest.raises(DataError) as refusal:
        list(client.cut(Input("a.mp4", str(tmp_path / "a.mp4"), "video")))
    assert "libavutil.so.59" in str(refusal.value) and "mcjepa[torchcodec]" in str(refusal.value)
    assert "apt install ffmpeg" in str(refusal.value)


def test_versions_name_the_decoder_and_what_reads_containers() -> None:
    assert decoder_version("decord").startswith("decord2 3.") and ", av " in decoder_version("decord")
    assert decoder_version("pyav").startswith("av ") and decoder_version("pyav-planes") == decoder_version("pyav")
    assert decoder_version("torchcodec").startswith("torchcodec ")

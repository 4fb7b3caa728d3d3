"""Decoding in a child: right frames at right times, and hangs, crashes and floods that stay in the child."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest

from mcjepa.data_prep.corpora.image_files import decode_rgb, write_png
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.decode.child import describe_error
from mcjepa.data_prep.decode.client import DecodeClient
from mcjepa.data_prep.decode.cutter import CutSample, DroppedSample, cut_input
from mcjepa.data_prep.decode.encoders import encode, shrink
from mcjepa.data_prep.decode.messages import (
    ChildTimeout,
    DecodeFailure,
    MessageReader,
    PipeClosed,
    Unwanted,
    decode_config,
    encode_config,
    input_from_message,
    message_pieces,
    write_message,
)
from mcjepa.data_prep.decode.selection import choose_starts, frames_at_rate, needed_frames
from mcjepa.data_prep.decode.videos import open_video
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import (
    CorpusConfig,
    DarkFilter,
    DatasetConfig,
    DecoderName,
    FiltersConfig,
    LeakageFilter,
    MotionFilter,
)
from tests.data_prep.small_corpora import smooth_frames

MIB = 1 << 20
CORPORA = (CorpusConfig(reader="videos", path="unused"),)
CLIPS = DatasetConfig(kind="clip", corpora=CORPORA, clip_stride=1, short_side=32, timeout_s=20)


def video(path: Path) -> Input:
    return Input(path.name, str(path), "video")


def numbers(samples: Sequence[CutSample | DroppedSample]) -> list[list[int]]:
    assert all(isinstance(s, CutSample) for s in samples)
    return [s.meta["frame_index"] for s in samples]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "starts"),
    [
        ((5, 2, 1, 1, 0), [0, 1, 2, 3]),
        ((5, 2, 1, 2, 0), [0, 2]),
        ((5, 3, 2, 1, 0), [0]),
        ((4, 3, 2, 1, 0), []),
        ((0, 1, 1, 1, 0), []),
        ((9, 1, 1, 1, 3), [0, 4, 8]),
        ((9, 1, 1, 1, 1), [4]),
        ((3, 1, 1, 1, 7), [0, 1, 2]),
    ],
)
def test_starts_are_chosen_evenly(arguments: tuple[int, ...], starts: list[int]) -> None:
    count, *others = arguments
    assert choose_starts(np.zeros(count, np.int64), *others).tolist() == starts


def test_needed_frames_are_listed_once() -> None:
    assert needed_frames(np.array([0, 2]), frames=3, step=1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-planes"])
def test_frames_come_at_their_numbers_and_times(videos: Path, decoder: str) -> None:
    config = replace(CLIPS, decoder=decoder, frames=2, frame_step=2, clip_stride=3)
    samples = list(cut_input(video(videos / "b.mp4"), config))
    assert numbers(samples) == [[0, 2], [3, 5], [6, 8]]
    assert samples[1].meta["pts_s"] == [0.3, 0.5] and samples[1].meta["fps_hz"] == 10
    truth = smooth_frames(1, 9, 64, 96)
    stored = decode_rgb(samples[1].members["01.jpg"], "jpg")
    assert stored.shape == (32, 48, 3)
    errors = [np.abs(stored.astype(float) - shrink(frame, 32)).mean() for frame in truth]
    assert int(np.argmin(errors)) == 5 and min(errors) < 6


def test_a_rate_selects_frames_by_their_times(videos: Path) -> None:
    config = replace(CLIPS, rate_hz=5.0, frame_step=2, clip_stride=1)  # of 10 frames a second, 12 frames
    samples = list(cut_input(video(videos / "deep" / "c.MP4"), config))
    assert numbers(samples) == [[0, 4], [2, 6], [4, 8], [6, 10]]
    with pytest.raises(Unwanted, match=r"1 frame\(s\); a sample spans 2"):
        list(cut_input(video(videos / "a.mp4"), replace(config, rate_hz=0.5, frame_step=1)))


@pytest.mark.parametrize(
    ("times_s", "rate_hz", "chosen"),
    [
        ([0, 0.04, 0.08, 0.12, 0.16], 12.5, [0, 2, 4]),
        ([0, 0.04, 0.08, 0.12, 0.16], 0, [0, 1, 2, 3, 4]),
        ([0, 0.04, 0.08, 0.12, 0.16], 100, [0, 1, 2, 3, 4]),
        ([7.0, 7.3, 7.35, 8.0, 9.9], 2, [0, 2, 3]),
        ([0, 0.033367, 0.066733, 0.1001, 0.133467, 0.166833], 30000 / 1001 / 2, [0, 2, 4]),
        ([3.0], 5, [0]),
        ([], 5, []),
    ],
)
def test_the_frame_shown_at_a_time_is_taken(times_s: list[float], rate_hz: float, chosen: list[int]) -> None:
    assert frames_at_rate(np.array(times_s, np.float64), rate_hz).tolist() == chosen


def test_frame_sequences_and_images_have_no_clock(images: Path) -> None:
    names = ("0.png", "2.png", "4.png")
    sequence = Input("class0", str(images / "class0"), "frames", names)
    samples = list(cut_input(sequence, CLIPS))
    assert numbers(samples) == [[0, 1], [1, 2]] and samples[0].meta["pts_s"] == [None, None]
    single = Input("0.png", str(images / "class0" / "0.png"), "image")
    assert len(list(cut_input(single, replace(CLIPS, kind="image")))) == 1
    with pytest.raises(Unwanted, match="a sample spans 2"):
        list(cut_input(single, CLIPS))


def test_small_inputs_are_unwanted(videos: Path) -> None:
    with pytest.raises(Unwanted, match="96x64 px; the short side must be at least 100"):
        list(cut_input(video(videos / "a.mp4"), replace(CLIPS, min_size=100)))


def test_bad_files_fail_with_a_reason_and_the_child_goes_on(
    videos: Path, add_bad_videos: Callable[[Path], set[str]]
) -> None:
    bad = add_bad_videos(videos)
    with DecodeClient(CLIPS) as client:
        first = len(list(client.cut(video(videos / "a.mp4"))))
        child = client._child.pid
        reasons = {}
        for name in sorted(bad):
            with pytest.raises(DecodeFailure) as failure:
                list(client.cut(video(videos / name)))
            reasons[name] = str(failure.value)
        assert reasons["empty.mp4"] == "the file is empty"
        assert reasons["photo.mp4"] == "holds a JPEG image, not a video"
        assert len(list(client.cut(video(videos / "a.mp4")))) == first == 5
        assert client._child.pid == child


def test_a_hanging_decoder_is_killed_and_replaced(videos: Path) -> None:
    pipe = videos / "hang.mp4"
    os.mkfifo(pipe)  # opening it waits for a writer that never comes
    with DecodeClient(replace(CLIPS, timeout_s=0.7)) as client:
        assert len(list(client.cut(video(videos / "a.mp4")))) == 5
        child = client._child.pid
        started = time.monotonic()
        with pytest.raises(DecodeFailure, match=r"silent for 0\.7 s \(timeout_s\) 2 times and was killed"):
            list(client.cut(video(pipe)))
        assert time.monotonic() - started < 20  # it was started once more
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert len(list(client.cut(video(videos / "a.mp4")))) == 5


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_decoder_is_replaced_and_nothing_comes_twice(videos: Path, seed: int) -> None:
    with DecodeClient(CLIPS) as client:
        undisturbed = list(client.cut(video(videos / "b.mp4")))
        chance = random.Random(seed)
        kills = sorted(chance.sample(range(len(undisturbed)), 2))
        pieces = []
        for number, piece in enumerate(client.cut(video(videos / "b.mp4"))):
            pieces.append(piece)
            if number in kills:
                os.kill(client._child.pid, chance.choice([signal.SIGKILL, signal.SIGSEGV]))
        assert pieces == undisturbed


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", r"died 3 times \(SIGSEGV\)$"),
        ("one\\nlost sync\\n", r"died 3 times \(SIGSEGV: one \| lost sync\)$"),
        ("what(): std::bad_alloc\\n", r"\(SIGSEGV: what\(\): std::bad_alloc\); memory_cap_mib=4096 was its limit$"),
    ],
)
def test_a_decoder_that_always_dies_costs_one_input(
    said: str, reason: str, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def start_dying(config: DatasetConfig, leakage_index: str) -> subprocess.Popen[bytes]:
        """A child that says it is ready and dies of the first input."""
        starts.append(1)
        ready = b'{"type": "ready", "parts": []}'
        script = (
            f"import os, signal, sys; os.write(1, {len(ready).to_bytes(4, 'big') + ready!r}); os.read(0, 4); "
            f"os.write(2, b'{said}'); os.kill(os.getpid(), signal.SIGSEGV)"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", script], bufsize=0, **pipes)

    with DecodeClient(CLIPS) as client:
        monkeypatch.setattr("mcjepa.data_prep.decode.client._start_child", start_dying)
        with pytest.raises(DecodeFailure, match=reason):
            list(client.cut(video(videos / "a.mp4")))
        assert len(starts) == 3
        monkeypatch.undo()
        assert len(list(client.cut(video(videos / "a.mp4")))) == 5


def test_a_decoder_that_cannot_start_is_not_the_inputs_fault(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_broken(config: DatasetConfig, leakage_index: str) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", "import not_there"], bufsize=0, **pipes)

    monkeypatch.setattr("mcjepa.data_prep.decode.client._start_child", start_broken)
    with (
        DecodeClient(CLIPS) as client,
        pytest.raises(DataError, match=r"cannot start: it died 3 times \(exit code 1: .*No module named 'not_there'"),
    ):
        list(client.cut(video(videos / "a.mp4")))


def test_an_input_beyond_the_memory_cap_fails_and_the_next_is_fine(tmp_path: Path) -> None:
    config = replace(CLIPS, kind="image", memory_cap_mib=64)
    with (tmp_path / "huge.ppm").open("wb") as file:  # 192 MB of black, as a hole in the file
        file.write(b"P6\n8000 8000\n255\n")
        file.truncate(15 + 3 * 8000 * 8000)
    write_png(tmp_path / "fine.png", smooth_frames(0, 1, 64, 64)[0])
    with DecodeClient(config) as client:
        with pytest.raises(DecodeFailure):
            list(client.cut(Input("huge.ppm", str(tmp_path / "huge.ppm"), "image")))
        assert len(list(client.cut(Input("fine.png", str(tmp_path / "fine.png"), "image")))) == 1


def test_an_input_left_early_costs_the_child_but_not_the_next_input(videos: Path) -> None:
    with DecodeClient(CLIPS) as client:
        samples = client.cut(video(videos / "b.mp4"))
        next(samples)
        samples.close()
        assert numbers(list(client.cut(video(videos / "a.mp4"))))[0] == [0, 1]


def test_closing_leaves_no_process(videos: Path) -> None:
    client = DecodeClient(CLIPS)
    list(client.cut(video(videos / "a.mp4")))
    child = client._child.pid
    client.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_messages_survive_a_pipe_and_silence_is_noticed() -> None:
    read_end, write_end = os.pipe()
    reader = MessageReader(read_end)
    write_message(write_end, {"type": "sample"}, [b"abc", b"", bytes(1000)])
    assert reader.read(1.0) == ({"type": "sample"}, [b"abc", b"", bytes(1000)])
    with pytest.raises(ChildTimeout):
        reader.read(0.05)
    os.close(write_end)
    with pytest.raises(PipeClosed):
        reader.read(1.0)
    os.close(read_end)


def test_messages_of_any_size_and_in_any_pieces_come_whole() -> None:
    numbers = np.random.default_rng(0)
    sent = [[numbers.bytes(int(size)) for size in numbers.integers(0, most, 3)] for most in (9, 70_000, 3 << 20, 50)]
    sent *= 3
    stream = b"".join(piece for n, parts in enumerate(sent) for piece in message_pieces({"n": n}, parts))
    read_end, write_end = os.pipe()

    def write() -> None:
        at = 0
        while at < len(stream):
            at += os.write(write_end, stream[at : at + int(numbers.integers(1, 200_000))])
        os.close(write_end)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(write)
        reader = MessageReader(read_end)
        assert [reader.read(5.0) for _ in sent] == [({"n": n}, parts) for n, parts in enumerate(sent)]
        with pytest.raises(PipeClosed):
            reader.read(5.0)
    os.close(read_end)


def test_reasons_are_the_same_on_every_run() -> None:
    error = RuntimeError("[18:31:05] /project/src/video/reader.cc:285: [x.mp4] no\n  frames")
    assert describe_error(error) == "RuntimeError: [x.mp4] no frames"


def test_the_child_gets_the_very_settings() -> None:
    guard = LeakageFilter(mode="drop", sets=(CorpusConfig(reader="davis", members=("jpg",)), CORPORA[0]))
    for config in (CLIPS, replace(CLIPS, filters=FiltersConfig(dark=DarkFilter(mode="drop"), leakage=guard))):
        assert decode_config(encode_config(config)) == config
    item = Input("a.jpg", "/data/b.tar", "pair", ("a", "b"), roles=("0", "1"), span=(512, 99), label="x")
    assert input_from_message(json.loads(json.dumps(vars(item)))) == item


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    assert shrink(np.zeros((100, 200, 3), np.uint8), 50).shape == (50, 100, 3)
    assert shrink(np.zeros((300, 200, 3), np.uint8), 50).shape == (75, 50, 3)
    assert shrink(np.zeros((40, 60, 3), np.uint8), 50).shape == (40, 60, 3)


def test_stored_jpegs_are_close_to_the_frame_and_the_same_every_time() -> None:
    frame = smooth_frames(0, 1, 64, 96)[0]
    data = encode(frame, "jpeg", 95)
    assert data == encode(frame, "jpeg", 95) and data[:2] == b"\xff\xd8"
    assert np.abs(cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1].astype(int) - frame).mean() < 4


@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-planes"])
def test_a_video_with_a_hole_is_no_partial_success(tmp_path: Path, decoder: DecoderName) -> None:
    """The reason names the first frame whose packet lies in the hole, whatever the decoder's threads meet first."""
    start, end = punch_hole(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    shown = sorted(p.pts for p in packets)
    hit = next(p for p in packets if start <= p.pos < end)
    with (
        DecodeClient(replace(CLIPS, decoder=decoder)) as client,
        pytest.raises(DecodeFailure, match=rf"^damaged at frame {shown.index(hit.pts)} of 40 \(Invalid data found"),
    ):
        list(client.cut(video(tmp_path / "a.mp4")))


@pytest.mark.parametrize("said", ["Check failed: run_.load()", "[01:02:03] /x/y.cc:285: Error sending packet"])
def test_what_a_decoder_says_of_damage_is_put_into_our_words(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import decord

    class Failing(decord.VideoReader):  # type: ignore[misc]
        def next(self) -> object:
            raise decord.DECORDError(said)

    monkeypatch.setattr(decord, "VideoReader", Failing)
    punch_hole(tmp_path / "hole.mp4")
    write_mp4(tmp_path / "whole.mp4", smooth_frames(0, 5, 64, 96), 10, 20)
    with pytest.raises(DecodeFailure, match=r"^damaged at frame \d+ of 40 \("):
        list(open_video(str(tmp_path / "hole.mp4"), "decord").read(np.arange(40)))
    with pytest.raises(DecodeFailure, match=r"^decord cannot decode it \(DECORDError: .*decoder=pyav$") as caught:
        list(open_video(str(tmp_path / "whole.mp4"), "decord").read(np.arange(5)))
    assert "01:02:03" not in describe_error(caught.value)


@pytest.mark.parametrize("decoder", ["decord", "pyav-planes"])
def test_a_hole_after_the_last_wanted_frame_counts_every_time(tmp_path: Path, decoder: DecoderName) -> None:
    punch_hole(tmp_path / "a.mp4")
    with DecodeClient(replace(CLIPS, clip_stride=40, decoder=decoder)) as client:
        for _ in range(5):
            with pytest.raises(DecodeFailure, match=r"^damaged at frame \d+ of 40"):
                list(client.cut(video(tmp_path / "a.mp4")))


def punch_hole(path: Path) -> tuple[int, int]:
    """Write a video of 40 frames whose bytes are zero from a third of them on; returns from where to where."""
    write_mp4(path, smooth_frames(0, 40, 64, 96), 10, 20)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (data.index(b"moov") - start) // 3
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(bytes(data))
    return middle, middle + 1500


def repeat_packets(source: Path, target: Path, times: int) -> None:
    """A video whose packets are those of another, again and again."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(video=0) if p.size]
        span = sum(p.duration for p in packets)
        for repetition in range(times):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = (t + repetition * span for t in (packet.pts, packet.dts))
                copy.time_base, copy.is_keyframe, copy.duration = packet.time_base, packet.is_keyframe, packet.duration
                copy.stream = stream
                new.mux(copy)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-planes"])
def test_a_longer_video_costs_no_more_memory(tmp_path: Path, decoder: DecoderName) -> None:
    """The short one is long enough to have filled the allocator's pools, which takes 10 MiB."""
    write_mp4(tmp_path / "300.mp4", smooth_frames(0, 300, 192, 256), 30, 30)
    for repeats in (5, 15):
        repeat_packets(tmp_path / "300.mp4", tmp_path / f"{300 * repeats}.mp4", repeats)
    peaks = []
    for frames in (1500, 4500):
        with DecodeClient(replace(CLIPS, clip_stride=2, decoder=decoder)) as client:
            before = psutil.Process().memory_info().rss
            samples = 0
            for _ in client.cut(video(tmp_path / f"{frames}.mp4")):
                samples += 1
                time.sleep(0.002 if samples < 300 else 0)  # the decoder is faster than its user
            assert samples == frames // 2
            status = Path(f"/proc/{client._child.pid}/status").read_text()
            child_kib = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
            peaks.append((child_kib / 1024, (psutil.Process().memory_info().rss - before) / MIB))
    (child_short, _), (child_long, parent_grew) = peaks
    assert child_long < child_short + 16 and parent_grew < 16, peaks


def test_scores_and_labels_are_stored_and_dropped_samples_reported(videos: Path) -> None:
    settings = FiltersConfig(motion=MotionFilter(mode="drop", max_px=0.5), dark=DarkFilter(mode="score"))
    item = replace(video(videos / "a.mp4"), label="walk")
    with DecodeClient(replace(CLIPS, filters=settings)) as client:
        pieces = list(client.cut(item))
    assert len(pieces) == 5 and all(isinstance(p, DroppedSample) for p in pieces)
    assert pieces[1].frame_index == (1, 2) and pieces[1].filter == "fast" and "above 0.5" in pieces[1].reason
    with DecodeClient(replace(CLIPS, filters=replace(settings, motion=MotionFilter(mode="score")))) as client:
        (first, *_) = client.cut(item)
    assert isinstance(first, CutSample) and first.meta["label"] == "walk"
    assert set(first.meta["scores"]) == {"motion_px", "luma"} and first.meta["scores"]["motion_px"] > 0.5
    with DecodeClient(CLIPS) as client:
        (first, *_) = client.cut(video(videos / "a.mp4"))
    assert isinstance(first, CutSample) and set(first.meta) == {"fps_hz", "pts_s", "frame_index"}

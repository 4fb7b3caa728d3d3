"""Decoding in a child: right frames at right times, and hangs, crashes and floods that stay in the child."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import smooth_frames

from data_prep.config import CorpusConfig, DatasetConfig
from data_prep.corpora.image_files import decode_rgb, write_png
from data_prep.corpora.items import Input
from data_prep.corpora.video_files import write_mp4
from data_prep.decode.child import decode_config, describe_error, encode_config
from data_prep.decode.client import DecodeClient
from data_prep.decode.cutter import CutSample, cut_input
from data_prep.decode.failures import DecodeFailure, Unwanted
from data_prep.decode.jpeg import encode_jpeg, shrink
from data_prep.decode.messages import Closed, MessageReader, Silence, write_message
from data_prep.decode.selection import choose_starts, needed_frames
from data_prep.decode.videos import open_video

CORPORA = (CorpusConfig(reader="videos", path="unused"),)
CLIPS = DatasetConfig(kind="clip", corpora=CORPORA, clip_stride=1, short_side=32, timeout_s=20)


def video(path: Path) -> Input:
    return Input(path.name, str(path), "video")


def numbers(samples: list[CutSample]) -> list[list[int]]:
    return [s.meta["frame_index"] for s in samples]


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
    assert choose_starts(*arguments).tolist() == starts


def test_needed_frames_are_listed_once() -> None:
    assert needed_frames(np.array([0, 2]), frames=3, step=1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_frames_come_at_their_numbers_and_times(videos: Path, decoder: str) -> None:
    config = replace(CLIPS, decoder=decoder, frames=2, frame_step=2, clip_stride=3)
    samples = list(cut_input(video(videos / "b.mp4"), config))
    assert numbers(samples) == [[0, 2], [3, 5], [6, 8]]
    assert samples[1].meta["pts_s"] == [0.3, 0.5] and samples[1].meta["fps_hz"] == 10
    truth = smooth_frames(1, 9, 64, 96)
    stored = decode_rgb(samples[1].frames[1], "jpg")
    assert stored.shape == (32, 48, 3)
    errors = [np.abs(stored.astype(float) - shrink(frame, 32)).mean() for frame in truth]
    assert int(np.argmin(errors)) == 5 and min(errors) < 6


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_every_real_video_decodes_and_both_decoders_agree(sample_data: Path, decoder: str) -> None:
    config = replace(CLIPS, max_samples_per_input=2, decoder=decoder, short_side=64)
    with DecodeClient(config) as client:
        for path in sorted((sample_data / "videos").iterdir()):
            if path.is_file() and path.stat().st_size < 600_000:
                samples = list(client.cut(video(path)))
                assert len(samples) == 2, path.name
                other = "pyav" if decoder == "decord" else "decord"
                frame_count = open_video(str(path), other).frame_count
                assert samples[1].meta["frame_index"] == [frame_count - 2, frame_count - 1], path.name
                assert samples[1].meta["pts_s"][0] > samples[0].meta["pts_s"][0] >= 0


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
        with pytest.raises(DecodeFailure, match=r"silent for 0\.7 s"):
            list(client.cut(video(pipe)))
        assert time.monotonic() - started < 5
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert len(list(client.cut(video(videos / "a.mp4")))) == 5


def test_a_killed_decoder_fails_its_input_only(videos: Path) -> None:
    with DecodeClient(CLIPS) as client:
        samples = client.cut(video(videos / "b.mp4"))
        next(samples)
        os.kill(client._child.pid, signal.SIGSTOP)
        os.kill(client._child.pid, signal.SIGKILL)
        with pytest.raises(DecodeFailure, match="SIGKILL"):
            for _ in range(100):
                next(samples)
        assert len(list(client.cut(video(videos / "b.mp4")))) == 8


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
    with pytest.raises(Silence):
        reader.read(0.05)
    os.close(write_end)
    with pytest.raises(Closed):
        reader.read(1.0)
    os.close(read_end)


def test_reasons_are_the_same_on_every_run() -> None:
    error = RuntimeError("[18:31:05] /project/src/video/reader.cc:285: [x.mp4] no\n  frames")
    assert describe_error(error) == "RuntimeError: [x.mp4] no frames"


def test_the_child_gets_the_very_settings() -> None:
    assert decode_config(encode_config(CLIPS)) == CLIPS


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    assert shrink(np.zeros((100, 200, 3), np.uint8), 50).shape == (50, 100, 3)
    assert shrink(np.zeros((300, 200, 3), np.uint8), 50).shape == (75, 50, 3)
    assert shrink(np.zeros((40, 60, 3), np.uint8), 50).shape == (40, 60, 3)


def test_stored_jpegs_are_close_to_the_frame_and_the_same_every_time() -> None:
    frame = smooth_frames(0, 1, 64, 96)[0]
    data = encode_jpeg(frame, 95)
    assert data == encode_jpeg(frame, 95) and data[:2] == b"\xff\xd8"
    assert np.abs(cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1].astype(int) - frame).mean() < 4


def test_a_video_that_ends_early_is_no_partial_success(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", smooth_frames(0, 40, 64, 96), 10, 20)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (data.index(b"moov") - start) // 3 if data.find(b"moov") > start else start + 2000
    data[middle : middle + 1500] = bytes(1500)
    (tmp_path / "a.mp4").write_bytes(bytes(data))
    with DecodeClient(CLIPS) as client, pytest.raises(DecodeFailure):
        list(client.cut(video(tmp_path / "a.mp4")))

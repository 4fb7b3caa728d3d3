"""H.264 without key frames (intra refresh), cut between packets: no frame is taken for another one's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import scene, write

from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.decode.videos import open_video
from mcjepa.data_prep.settings import DecoderName

FRAMES = scene(60)
WITHOUT_B = {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
WITH_B = {"x264-params": "intra-refresh=1:keyint=20:bframes=3"}


def cut(path: Path, lost: Collection[int], **options: str) -> Path:
    """The scene at 25 frames a second, without the packets of these numbers."""
    whole = write(path.with_name("whole.mp4"), FRAMES, options=options)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = (packet for packet in source.demux(source.streams.video[0]) if packet.size)
        for number, packet in enumerate(packets):
            if number not in lost:
                packet.stream = stream
                target.mux(packet)
    return path


def nearest(rgb: np.ndarray) -> int:
    """The number of the frame of the scene that this one is."""
    return int(np.abs(FRAMES.astype(np.int16) - rgb).mean((1, 2, 3)).argmin())


@pytest.mark.parametrize("decoder", ["decord", "pyav", "pyav-planes"])
@pytest.mark.parametrize(
    ("name", "options", "first"), [("v.mp4", WITHOUT_B, 26), ("v.mkv", WITH_B, 37), ("v.flv", WITHOUT_B, 26)]
)
def test_a_stream_cut_at_its_front_begins_with_the_first_picture_that_is_whole(
    name: str, options: dict[str, str], first: int, decoder: DecoderName, tmp_path: Path
) -> None:
    """decord fills up what is missing at the end with the last frame, again and again."""
    video = open_video(str(cut(tmp_path / name, range(7), **options)), decoder)
    frames = list(video.read(np.arange(video.frame_count)))
    assert [nearest(frame.rgb) for frame in frames] == list(range(first, 60))
    assert [round(frame.pts_s * 25) for frame in frames if frame.pts_s is not None] == list(range(first, 60))
    assert video.decoder == ("pyav" if decoder == "decord" else decoder)


@pytest.mark.parametrize("wanted", [range(52), range(40), range(51), range(0, 52, 10)])
def test_decord_does_not_pass_the_last_frame_for_missing_ones(wanted: range, tmp_path: Path) -> None:
    path = cut(tmp_path / "v.mp4", range(28, 36), **WITHOUT_B)
    video = open_video(str(path), "decord")
    assert video.decoder == "decord" and video.table.refreshed and not video.table.late
    with pytest.raises(DecodeFailure, match=r"pictures are missing before frame 28 of 52"):
        list(video.read(np.asarray(wanted)))


def test_a_still_end_is_no_damage(tmp_path: Path) -> None:
    """Frames that are equal, but all there."""
    frames = np.concatenate([FRAMES[:22], np.zeros_like(FRAMES[:20])])
    path = write(tmp_path / "v.mp4", frames, options=WITHOUT_B)
    video = open_video(str(path), "decord")
    found = [frame.rgb for frame in video.read(np.arange(42))]
    assert video.table.refreshed and video.decoder == "decord" and (found[-1] == found[-2]).all()
    assert [frame.number for frame in open_video(str(path), "decord").read(np.array([0, 7, 40]))] == [0, 7, 40]


@pytest.mark.parametrize("decoder", ["pyav", "pyav-planes"])
def test_pictures_that_are_missing_between_others_are_damage(decoder: DecoderName, tmp_path: Path) -> None:
    path = cut(tmp_path / "v.mp4", range(28, 36), **WITHOUT_B)
    with pytest.raises(DecodeFailure, match=r"pictures are missing before frame 28 of 52: .* 1\.720 s.* 1\.440 s"):
        list(open_video(str(path), decoder).read(np.arange(40)))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_stream_that_is_whole_stays_as_it_is(decoder: DecoderName, tmp_path: Path) -> None:
    video = open_video(str(cut(tmp_path / "v.mp4", (), **WITH_B)), decoder)
    assert video.decoder == decoder and not video.table.late
    assert [nearest(frame.rgb) for frame in video.read(np.arange(60))] == list(range(60))

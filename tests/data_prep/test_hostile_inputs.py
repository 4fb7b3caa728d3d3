"""A poisoned corpus: every input is accounted for, with its right reason, and nothing gets out of hand."""

from __future__ import annotations

import os
import pickle
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.dataset.inputs import InputRecord, read_inputs
from mcjepa.data_prep.decode.client import DecodeClient
from mcjepa.data_prep.decode.messages import DecodeFailure
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import open_store
from tests.data_prep.small_corpora import clip_settings, smooth_frames

FRAMES = smooth_frames(1, 8, 64, 96)
ODD_NAME = b"g\xf6\xe4.mp4"  # Latin-1, no UTF-8


class Touch:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.path, "loaded")


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that claims a size, with the pixels that are given."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def packed_zeros(count: int) -> bytes:
    """`count` zeros as a zlib stream, a thousandth of their size."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def hostile_videos(folder: Path, proof: Path) -> dict[str, str]:
    """A folder of videos and worse; returns what each name's reason must hold, empty for good ones."""
    (folder / "sub").mkdir(parents=True)
    write_mp4(folder / "good.mp4", FRAMES, 10, 20)
    good = (folder / "good.mp4").read_bytes()
    (folder / "sub" / "copy.mp4").write_bytes(good)
    Path(os.fsdecode(os.fsencode(folder) + b"/" + ODD_NAME)).write_bytes(good)
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "photo.mp4").write_bytes(cv2.imencode(".jpg", FRAMES[0])[1].tobytes())
    Image.fromarray(FRAMES[0]).save(folder / "moves.gif", save_all=True, append_images=[Image.fromarray(FRAMES[1])])
    (folder / "moves.gif").rename(folder / "moves.mp4")
    (folder / "secret.mp4").write_bytes(np.random.default_rng(5).bytes(30_000))
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    (folder / "pickle.mp4").write_bytes(pickle.dumps(Touch(proof)))
    write_sound(folder / "sound.mp4")
    write_mp4(folder / "large.mp4", np.zeros((2, 1600, 1600, 3), np.uint8), 10, 40)
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "sub" / "again").symlink_to(folder)
    return {
        "good.mp4": "",
        "sub/copy.mp4": "",
        os.fsdecode(ODD_NAME): "",
        "cut.mp4": "cut off",
        "empty.mp4": "the file is empty",
        "photo.mp4": "holds a JPEG image, not a video",
        "moves.mp4": "holds a GIF image, not a video",
        "secret.mp4": "FFmpeg cannot read it (Invalid data found when processing input): it holds nothing known",
        "list.mp4": "FFmpeg cannot read it",
        "pickle.mp4": "FFmpeg cannot read it",
        "sound.mp4": "no video stream",
        "large.mp4": "1600x1600 px are 2.6 megapixels; at most 2 allowed",
        "loop.mp4": "link",
        "sub/again": "link",
    }


def hostile_images(folder: Path, proof: Path) -> dict[str, str]:
    """A folder of pictures and worse; returns what each name's reason must hold, empty for good ones."""
    folder.mkdir()
    picture = Image.fromarray(FRAMES[0])
    picture.save(folder / "good.jpg", quality=95)
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    cv2.imwrite(str(folder / "deep.png"), FRAMES[0][:, :, ::-1].astype(np.uint16) * 256)
    picture.save(folder / "moves.gif", save_all=True, append_images=[Image.fromarray(f) for f in FRAMES[1:5]])
    (folder / "moves.gif").rename(folder / "moves.png")
    jpeg = (folder / "good.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png(30_000, 30_000, packed_zeros(16 << 20)))
    (folder / "wall.png").write_bytes(png(10_000, 10_000, packed_zeros(16 << 20)))
    (folder / "secret.jpg").write_bytes(np.random.default_rng(6).bytes(30_000))
    (folder / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")
    (folder / "pickle.jpg").write_bytes(pickle.dumps(Touch(proof)))
    write_mp4(folder / "film.mp4", FRAMES, 10, 20)
    (folder / "film.mp4").rename(folder / "film.jpg")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return {
        "good.jpg": "",
        "cmyk.jpg": "",
        "deep.png": "",
        "moves.png": "holds an animated image of 5 frames, not a still image",
        "cut.jpg": "cut off or damaged",
        "empty.png": "the file is empty",
        "bomb.png": "30000x30000 px are 900.0 megapixels; at most 64 allowed",
        "wall.png": "10000x10000 px are 100.0 megapixels; at most 64 allowed",
        "secret.jpg": "holds nothing known",
        "program.jpg": "holds nothing known",
        "pickle.jpg": "holds nothing known",
        "film.jpg": "holds an MP4 or QuickTime video, not an image",
        "loop.png": "link",
    }


def require_accounted_for(records: list[InputRecord], expected: dict[str, str]) -> None:
    """Every input has one record, with its outcome and reason, and no other input has one."""
    found = {re.sub(r"^[^/]*/", "", record.name): record for record in records}
    assert len(found) == len(records) and found.keys() == expected.keys()
    for name, words in expected.items():
        record = found[name]
        assert record.outcome == ("quarantined" if words else "ok"), (name, record)
        assert words in record.reason and bool(record.samples) == (not words), (name, record.reason)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are no UTF-8")
def test_every_hostile_video_is_accounted_for(tmp_path: Path, build: Callable[..., object]) -> None:
    proof = tmp_path / "proof"
    expected = hostile_videos(tmp_path / "videos", proof)
    build(tmp_path / "out", clip_settings(tmp_path / "videos", max_megapixels=2.0))
    require_accounted_for(list(read_inputs(open_store(str(tmp_path / "out")))), expected)
    assert not proof.exists(), "a pickle was loaded"


def test_every_hostile_image_is_accounted_for(tmp_path: Path, build: Callable[..., object]) -> None:
    proof = tmp_path / "proof"
    expected = hostile_images(tmp_path / "images", proof)
    corpora = (CorpusConfig(reader="images", path=str(tmp_path / "images")),)
    build(tmp_path / "out", DatasetConfig(kind="image", corpora=corpora, short_side=32, timeout_s=20))
    require_accounted_for(list(read_inputs(open_store(str(tmp_path / "out")))), expected)
    assert not proof.exists(), "a pickle was loaded"


def test_a_bomb_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000, packed_zeros(64 << 20)))
    Image.fromarray(FRAMES[0]).save(tmp_path / "good.png")
    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="x"),), timeout_s=20)
    with DecodeClient(config) as client:
        assert len(list(client.cut(Input("good.png", str(tmp_path / "good.png"), "image")))) == 1
        peaks = [peak_mib(client._child.pid)]
        with pytest.raises(DecodeFailure, match="30000x30000 px are 900"):
            list(client.cut(Input("bomb.png", str(tmp_path / "bomb.png"), "image")))
        peaks.append(peak_mib(client._child.pid))
    assert peaks[1] < peaks[0] + 8, f"the child's peak grew from {peaks[0]:.0f} to {peaks[1]:.0f} MiB"


def peak_mib(pid: int) -> float:
    """Greatest resident memory of a process so far (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024

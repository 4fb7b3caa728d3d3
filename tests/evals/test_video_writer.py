"""Videos that play everywhere: index at the head, even sides, size and level that decoders take; a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcjepa.evals.video_writer import MOST_BLOCKS_HZ, MOST_HEIGHT_PX, MOST_WIDTH_PX, VideoWriter, playable_size
from tests.evals.report.browser import Browser, require_chromium

PLAYED = """(async () => {
  const video = document.querySelector('video');
  await video.play();
  await new Promise((done, fail) => { video.onended = done; video.onerror = () => fail(video.error.message); });
  return [video.videoWidth, video.videoHeight, video.duration];
})()"""


def write(path: Path, height: int, width: int, frames: int, fps_hz: float = 24.0) -> Path:
    """A video of grey levels that rise."""
    with VideoWriter(path, fps_hz) as movie:
        for step in range(frames):
            movie.write(np.full((height, width, 3), 40 + 20 * step, np.uint8))
    return path


def probe(path: Path) -> dict[str, Any]:
    """What ffprobe says of the stream."""
    words = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    (stream,) = json.loads(answer.stdout)["streams"]
    return dict(stream)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe here (Debian: apt-get install ffmpeg)")
@pytest.mark.parametrize(
    ("size", "fps_hz", "written"),
    [((37, 51), 24.0, (38, 52)), ((2160, 7680), 24.0, (1080, 3840)), ((1080, 3840), 240.0, (528, 1920))],
)
def test_the_index_stands_first_and_size_and_level_are_bounded(
    tmp_path: Path, size: tuple[int, int], fps_hz: float, written: tuple[int, int]
) -> None:
    path = write(tmp_path / "a.mp4", *size, frames=2, fps_hz=fps_hz)
    content, found = path.read_bytes(), probe(path)
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert (found["height"], found["width"], found["pix_fmt"]) == (*written, "yuv420p")
    assert found["level"] <= 51 and found["nb_frames"] == "2"


@given(st.integers(2, 9000), st.integers(2, 9000), st.floats(1.0, 240.0))
def test_any_size_and_rate_becomes_playable_and_small_ones_stay(height: int, width: int, fps_hz: float) -> None:
    high, wide = playable_size((height, width), fps_hz)
    assert high <= MOST_HEIGHT_PX and wide <= MOST_WIDTH_PX
    assert -(-high // 16) * -(-wide // 16) * fps_hz <= MOST_BLOCKS_HZ
    assert (high, wide) == (height, width) or high % 2 == wide % 2 == 0
    if height <= 1080 and width <= 1920 and fps_hz <= 60:
        assert (high, wide) == (height, width)


def test_a_browser_plays_what_infer_and_vos_write(tmp_path: Path) -> None:
    """A side-by-side video of a 4K clip and one of odd sides, to their ends."""
    with Browser(require_chromium()) as browser:
        for name, (height, width), shown in (("odd", (37, 51), [52, 38]), ("wide", (2160, 7680), [3840, 1080])):
            write(tmp_path / f"{name}.mp4", height, width, frames=4)
            page = tmp_path / f"{name}.html"
            page.write_text(f'<!doctype html><video muted preload="auto" src="{name}.mp4"></video>')
            browser.open(page, 1280, 800)
            *size, duration = browser.run(PLAYED)
            assert size == shown and duration == pytest.approx(4 / 24, abs=0.02)

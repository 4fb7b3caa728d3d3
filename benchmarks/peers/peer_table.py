"""Peers that cannot share our environment, each in one of its own, on the same inputs as ours: one table.

    python -m benchmarks.peer_table [--of litdata_loader,...] [--rounds N] [--workers N] [--environments FOLDER]

Every peer is a file of this folder, which names its pinned packages as PEP 723 has it. An environment a peer is built
in a temporary folder (in FOLDER, where it is kept), by uv where our environment has it and by pip otherwise; then
nothing calls home: peers run with their switches for it off, and without a network where the system lets us.

Loaders: two views of 224 px, 64 a step, of 4,000 JPEGs 256 px high in 8 tars; decoding by simplejpeg, our augmentations
and uint8 between the processes on every side, so that what is compared is the loader. Sides take turns, each starting
its loader anew every round. Photos: the job of `prep_photos_vs_loop.py`, whole processes. Ratios are medians of the
rounds, above 1 where ours is quicker: `cpu` of processor time, `wall` of the clock; `memory` is ours over the peer's.
Not in CI, as it installs some gigabytes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loader_speed import Speed
from benchmarks.prep_photos_vs_loop import OURS, PHOTOS, gather_photos, run_side
from benchmarks.stream_corpus import packaged_samples, publish_copies

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
LOADERS = ("litdata_loader", "mds_loader", "datasets_loader")
PHOTO_JOBS = ("img2dataset_photos",)
SILENCE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Version checks, telemetry and look-ups of a cloud's metadata, off."""
METADATA = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)


def pins_of(peer: str) -> list[str]:
    """The packages that a peer's file names."""
    found = METADATA.search((HERE / f"{peer}.py").read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{peer}.py names no packages, expected a block '# /// script' at its head")
    pins: list[str] = tomllib.loads(re.sub(r"^# ?", "", found[1], flags=re.MULTILINE))["dependencies"]
    return pins


def build_environment(peer: str, folder: Path) -> Path:
    """A peer's Python; one that is there with the same packages is used again."""
    python, pins = folder / peer / "bin" / "python", pins_of(peer)
    done = folder / peer / "pins.json"
    if not done.is_file() or json.loads(done.read_text()) != pins:
        print(f"environment of {peer}: {', '.join(pins)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / peer)], check=True)
        uv = Path(sys.executable).with_name("uv")
        installer = [str(uv), "pip", "install", "--python", str(python)] if uv.is_file() else [
            str(python), "-m", "pip", "install"
        ]  # fmt: skip
        links = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
        ).stdout.strip()
        environment = os.environ | ({"UV_FIND_LINKS": links} if links else {})  # as install.sh does
        subprocess.run([*installer, "--quiet", *pins], check=True, env=environment)
        done.write_text(json.dumps(pins))
    return python


def without_network() -> list[str]:
    """Words before a command that leave it the loopback alone; none where the system does not allow it."""
    words = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    words += ["sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    return words if allowed else []


class PeerFailed(RuntimeError):
    """A side has ended; its message is on the standard error."""


class Side:
    """One loader in a process of its own."""

    def __init__(self, python: Path, name: str, shards: Path, folder: Path, workers: int) -> None:
        folder.mkdir()
        words = [str(python), "-m", f"benchmarks.{name}", str(shards), str(folder), str(workers)]
        environment = os.environ | SILENCE | {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(folder / "hf")}
        self.name = name
        self.process = subprocess.Popen(
            [*without_network(), *words], cwd=REPOSITORY, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def answer(self) -> dict[str, float]:
        """The next line of JSON; libraries' own words are passed over."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise PeerFailed(f"{self.name} ended with code {self.process.wait()}")

    def run_round(self, number: int) -> Speed:
        """What it took."""
        assert self.process.stdin
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        speed = Speed(**self.answer())
        print(f"round {number}: {self.name} {speed.processor:.0f} a CPU-s, {speed.wall:.0f} a second", flush=True)
        return speed


def compare_loaders(peers: Sequence[str], environments: Path, work: Path, rounds: int, workers: int) -> list[list[str]]:
    """A row a peer; one that fails has a row that says so, and the others go on."""
    images = publish_copies(str(work / "images"), "image", packaged_samples("image"), 8, 500)
    names = ["our_loader", *peers]
    pythons = [Path(sys.executable), *(build_environment(peer, environments) for peer in peers)]
    sides = {
        name: Side(python, name, Path(images, "shards"), work / name, workers)
        for name, python in zip(names, pythons, strict=True)
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(-1, rounds):  # before the first each says that it is ready
        for name in names[:: -1 if number % 2 else 1]:
            try:
                if number < 0:
                    sides[name].answer()
                elif name not in failed:
                    speeds[name].append(sides[name].run_round(number))
            except (PeerFailed, BrokenPipeError) as error:
                failed[name] = str(error)
    for side in sides.values():
        side.process.communicate()
    if "our_loader" in failed:
        raise SystemExit(f"{failed['our_loader']}; its message is above")
    ours = speeds["our_loader"]
    return [
        [pins_of(peer)[0], failed[peer], "", "", "", "", ""] if peer in failed else loader_row(peer, ours, speeds[peer])
        for peer in peers
    ]


def loader_row(peer: str, ours: Sequence[Speed], theirs: Sequence[Speed]) -> list[str]:
    """Medians over the rounds; memory of the first one, as a training has one loader."""
    cpu, wall = (
        statistics.median(getattr(a, key) / getattr(b, key) for a, b in zip(ours, theirs, strict=True))
        for key in ("processor", "wall")
    )
    mine, peers = (statistics.median(each.processor for each in them) for them in (ours, theirs))
    memory = ours[0].memory_mib / theirs[0].memory_mib
    figures = [f"{mine:.0f} a CPU-s", f"{peers:.0f} a CPU-s", f"{cpu:.2f}", f"{wall:.2f}", f"{memory:.2f}"]
    return [pins_of(peer)[0], "two views of 224 px", *figures]


def compare_photos(peer: str, environments: Path, work: Path, rounds: int) -> list[str]:
    """The whole job of 857 photos."""
    python = build_environment(peer, environments)
    gather_photos(work / "photos", PHOTOS)
    code = f"import runpy, sys; sys.path.insert(0, {str(HERE)!r}); runpy.run_module({peer!r}, run_name='__main__')"
    os.environ.update(SILENCE)
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(run_side(OURS, work / "photos", work / f"ours-{number}"))
        theirs.append(run_side(code, work / "photos", work / f"{peer}-{number}", [*without_network(), str(python)]))
    cpu, wall = (statistics.median(b[i] / a[i] for a, b in zip(ours, theirs, strict=True)) for i in (0, 1))
    mine, peers = (statistics.median(each[0] for each in them) for them in (ours, theirs))
    figures = [f"{mine:.1f} CPU-s", f"{peers:.1f} CPU-s", f"{cpu:.2f}", f"{wall:.2f}", ""]
    return [pins_of(peer)[0], f"{PHOTOS} photos to tars", *figures]


def main() -> None:
    """Build, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default=",".join((*LOADERS, *PHOTO_JOBS)), help="which peers, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    parser.add_argument("--workers", type=int, default=2, help="loading processes of each side")
    parser.add_argument("--environments", type=Path, help="where environments are kept (default: nowhere)")
    asked = parser.parse_args()
    chosen = asked.of.split(",")
    if unknown := set(chosen) - {*LOADERS, *PHOTO_JOBS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; expected of {', '.join((*LOADERS, *PHOTO_JOBS))}")
    with tempfile.TemporaryDirectory() as name:
        work, environments = Path(name), asked.environments or Path(name, "environments")
        rows = [["peer", "what", "ours", "peer's", "cpu", "wall", "memory"]]
        if loaders := [peer for peer in LOADERS if peer in chosen]:
            rows += compare_loaders(loaders, environments, work, asked.rounds, asked.workers)
        for peer in PHOTO_JOBS:
            if peer in chosen:
                rows.append(compare_photos(peer, environments, work, asked.rounds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores, {asked.workers} loading processes")


if __name__ == "__main__":
    main()

"""857 photos to shards by `run_prep`, beside twenty lines of cv2 and tarfile on the same files.

    python -m benchmarks.prep_photos_vs_loop [--full]

Both are processes of their own, from their start to their end: photos shrunk to 256 px, JPEG of quality 95, into tars.
The twenty lines hold no digests, no manifest and no child that a bad photo can kill. The photos are JPEGs of the sample
data, else crops of the packaged ones; `mcjepa prep run` adds its record in MLflow, which is not part of it. Rounds
alternate, with all photos and with an eighth of them, whose difference is what a photo costs without the start. The
last line is JSON: `ratio` is processor time of the loop over ours a photo (bar 0.9), `whole` that of the whole job
(bar 0.8), with one worker, as the loop is one; `all_cores` and `all_cores_whole` are the same with a worker a core,
which is the default: where busy cores take time from each other (here two do: 1.1 to 1.3 times the time a photo), that
counts as our own. `wall` is the whole job by the clock, a worker a core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2

from mcjepa.data_prep.corpora.image_files import read_rgb
from mcjepa.data_prep.corpora.samples import packaged_photos

PHOTOS, FEW = 857, 107
REPOSITORY = Path(__file__).resolve().parents[2]
LOOP = """
import io, json, pathlib, sys, tarfile
import cv2
cv2.setNumThreads(1)
with tarfile.open(sys.argv[2], "w") as tar:
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        scale = 256 / min(height, width)
        if scale < 1:
            size = round(width * scale), round(height * scale)
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        for suffix, data in ("jpg", jpeg), ("json", json.dumps({"input": path.name}).encode()):
            member = tarfile.TarInfo(f"{path.stem}.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
"""
OURS = """
import sys
from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, PrepConfig
corpora = (CorpusConfig(reader="images", path=sys.argv[1]),)
photos = DatasetConfig(kind="image", corpora=corpora, short_side=256, inputs_per_shard=256)
report = run_prep(PrepConfig(root=sys.argv[2], datasets={"photos": photos}, workers=0))
assert report.datasets[0].totals.samples == int(sys.argv[3])
"""
SIDES = {"loop": LOOP, "one": OURS.replace("workers=0", "workers=1"), "all": OURS}


def gather_photos(folder: Path, wanted: int) -> None:
    """JPEGs of the sample data as they are, else crops of the packaged photos of the size of DAVIS's."""
    base = Path(os.environ.get("MCJEPA_SAMPLE_DATA", REPOSITORY.parent / "shared" / "data"))
    found = sorted(path for path in base.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    folder.mkdir()
    for number, path in enumerate(found[:wanted]):
        shutil.copyfile(path, folder / f"{number:04d}.jpg")
    photos = [cv2.resize(read_rgb(path)[..., ::-1], (1024, 768)) for path in packaged_photos()]
    for number in range(len(found), wanted):
        y, x = number * 7 % 288, number * 13 % 170
        crop = photos[number % len(photos)][y : y + 480, x : x + 854]
        cv2.imwrite(str(folder / f"{number:04d}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, 90])


def run_side(code: str, folder: Path, out: Path, python: Sequence[str] = (sys.executable,)) -> tuple[float, float]:
    """Seconds of processors, children included, and of the clock, of one process by `python`."""
    count = str(sum(1 for _ in folder.iterdir()))
    started = time.perf_counter()
    process = subprocess.Popen(
        [*python, "-c", code, str(folder), str(out), count], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the job ended with code {process.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="five rounds instead of two")
    rounds = 5 if parser.parse_args().full else 2
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gather_photos(folder / "few", FEW)
        gather_photos(folder / "all", PHOTOS)
        for number in range(rounds):
            few = {s: run_side(code, folder / "few", folder / f"few-{s}-{number}") for s, code in SIDES.items()}
            full = {s: run_side(code, folder / "all", folder / f"all-{s}-{number}") for s, code in SIDES.items()}
            cost = {side: (full[side][0] - few[side][0]) / (PHOTOS - FEW) for side in SIDES}
            for side, name, whole in (("one", "ratio", "whole"), ("all", "all_cores", "all_cores_whole")):
                found[name].append(cost["loop"] / cost[side])
                found[whole].append(full["loop"][0] / full[side][0])
            found["wall"].append(full["loop"][1] / full["all"][1])
            found["ours_ms"].append(1000 * cost["one"])
    figures = {key: round(statistics.median(values), 3) for key, values in found.items()}
    print(json.dumps({"benchmark": "prep_photos_vs_loop", **figures}))


if __name__ == "__main__":
    main()

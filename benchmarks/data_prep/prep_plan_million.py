"""Planning a million inputs: time and peak memory against the limits of 2 minutes and 1.5 GiB.

    python -m benchmarks.prep_plan_million [--full]

Empty files in folders of 1,000 below a temporary folder stand for the corpus: listing, measuring, digest and
plan.jsonl.gz are the real thing, run by a process of its own. By default 100,000 inputs against a tenth of the
time and the whole memory limit; --full makes the million. The last line is JSON; `ratio` is the worse of used
over allowed (the bar is 1); `processor_s` tells how much of the time was waiting for a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S, LIMIT_MIB, MILLION = 120.0, 1536.0, 1_000_000
A_FOLDER = 1000


def make_files(root: Path, count: int) -> None:
    """`count` empty files with the names of images."""
    for number in range(count):
        if number % A_FOLDER == 0:
            folder = root / f"{number // A_FOLDER:04d}"
            folder.mkdir(parents=True)
            where = os.open(folder, os.O_RDONLY)
        os.close(os.open(f"{number:07d}.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=where))
        if number % A_FOLDER == A_FOLDER - 1:
            os.close(where)


def plan(corpus: str, root: str) -> None:
    """Plan a dataset of the corpus and print what it took."""
    from mcjepa.data_prep.plan.files import begin_plan
    from mcjepa.data_prep.plan.listing import list_inputs
    from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
    from mcjepa.data_prep.storage import open_store

    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=corpus),), inputs_per_shard=1000)
    started, worked = time.perf_counter(), time.process_time()
    summary = begin_plan(open_store(root), config, list_inputs(config))
    seconds, processor_s = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    used = {"inputs": summary.inputs, "seconds": seconds, "processor_s": processor_s, "peak_mib": peak}
    print(json.dumps(used))


def main() -> None:
    """Make the files, plan them in another process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million inputs")
    count = MILLION if parser.parse_args().full else MILLION // 10
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder) / "corpus", count)
        code = f"from benchmarks.prep_plan_million import plan; plan({folder + '/corpus'!r}, {folder + '/root'!r})"
        done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    used = json.loads(done.stdout)
    assert used["inputs"] == count
    time_ratio = used["seconds"] / (LIMIT_S * count / MILLION)
    memory_ratio = used["peak_mib"] / LIMIT_MIB
    print(f"{count} inputs in {used['seconds']:.1f} s, {used['peak_mib']:.0f} MiB at most")
    figures = {"time_ratio": round(time_ratio, 3), "memory_ratio": round(memory_ratio, 3), **used}
    print(json.dumps({"benchmark": "prep_plan_million", "ratio": round(max(time_ratio, memory_ratio), 3), **figures}))


if __name__ == "__main__":
    main()

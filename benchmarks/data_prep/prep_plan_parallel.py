"""Planning by two workers beside one: the same plan, and the time of the longest way through it.

    python -m benchmarks.prep_plan_parallel [--full]

Empty files in folders of 1,000 stand for the corpus, as in `prep_plan_million`; `plan_dataset` plans it in a process of
its own, by itself and by two processes that it starts (their start and imports, and what it lists before it asks for
them, count). The sides alternate. On two shared cores the clock tells how busy others are, so the time is the
processor's: of the one process, or of the planning process and the mean of its two workers. The plans must be equal.
600,000 inputs by default, a million with --full. The last line is JSON; `ratio` is one's time over two's (bar 1.7),
`wall_ratio` the same by the clock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.prep_plan_million import MILLION, make_files

BAR = 1.7
COUNT = 600_000


def plan(corpus: str, root: str, workers: int) -> None:
    """Plan a dataset of the corpus and print what it took."""
    from mcjepa.data_prep.plan.files import read_plan_inputs
    from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, PrepConfig
    from mcjepa.data_prep.storage import open_store
    from mcjepa.data_prep.workers.parallel_plan import plan_dataset

    config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=corpus),), inputs_per_shard=1000)
    job = PrepConfig(root=root, datasets={"d": config}, workers=workers, workers_by="processes")
    started, worked = time.perf_counter(), time.process_time()
    summary = plan_dataset(job, config, open_store(root), lambda listed: None)
    wall, own = time.perf_counter() - started, time.process_time() - worked
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    children = used.ru_utime + used.ru_stime
    order = hashlib.sha256()
    for planned in read_plan_inputs(open_store(root)):
        order.update(planned.name.encode())
    plans = [summary.plan_digest, summary.inputs, order.hexdigest()]
    peak = max(used.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
    print(json.dumps({"plan": plans, "wall": wall, "own": own, "longest": own + children / workers, "peak_mib": peak}))


def main() -> None:
    """Make the files, plan them by one and by two, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million inputs, three rounds")
    full = parser.parse_args().full
    spent: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    plans = set()
    with tempfile.TemporaryDirectory() as folder:
        corpus = f"{folder}/corpus"
        make_files(Path(corpus), MILLION if full else COUNT)
        for number in range(3 if full else 1):
            for workers, times in spent.items():
                words = (corpus, f"{folder}/{number}-{workers}", workers)
                code = f"from benchmarks.prep_plan_parallel import plan; plan(*{words!r})"
                done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
                used = json.loads(done.stdout)
                plans.add(json.dumps(used.pop("plan")))
                times.append(used)
    assert len(plans) == 1, "the plans differ"
    middle = {w: {k: statistics.median(each[k] for each in times) for k in times[0]} for w, times in spent.items()}
    one, two = middle[1], middle[2]
    figures = {
        "wall_ratio": round(one["wall"] / two["wall"], 2),
        "one_s": round(one["longest"], 2), "two_s": round(two["longest"], 2), "merging_s": round(two["own"], 2),
        "peak_mib": round(two["peak_mib"]),
    }  # fmt: skip
    ratio = round(one["longest"] / two["longest"], 2)
    print(json.dumps({"benchmark": "prep_plan_parallel", "ratio": ratio, "bar": BAR, **figures}))


if __name__ == "__main__":
    main()

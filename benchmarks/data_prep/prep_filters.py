"""What the filters cost: cutting real clips with each filter, with all of them, and with none.

    python -m benchmarks.prep_filters [--rounds 3]

The first pairs of frames of the packaged h264 clips are decoded, shrunk to 256 px, judged and encoded in this process,
as the decode child does, on one thread. Leakage compares every frame with 200,000 made-up hashes. All filters only
score, so every side encodes the same samples. The sides alternate; figures are medians of rounds, in processor time.
The last line is JSON; `ratio` is samples/s with all filters over samples/s with none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np

from mcjepa.data_prep.decode.cutter import cut_input
from mcjepa.data_prep.filters.judge import SampleJudge
from mcjepa.data_prep.filters.leakage import LeakageIndex
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.settings import (
    BorderFilter,
    CorpusConfig,
    CutFilter,
    DarkFilter,
    DatasetConfig,
    DuplicateFilter,
    FiltersConfig,
    LeakageFilter,
    MotionFilter,
)

GUARDED = 200_000
VIDEOS = CorpusConfig(reader="packaged-videos")
NONE = FiltersConfig()
FILTERS = {
    "cut": FiltersConfig(cut=CutFilter(mode="score")),
    "motion": FiltersConfig(motion=MotionFilter(mode="score")),
    "border": FiltersConfig(border=BorderFilter(mode="score")),
    "dark": FiltersConfig(dark=DarkFilter(mode="score")),
    "duplicates": FiltersConfig(duplicates=DuplicateFilter(mode="score")),
    "leakage": FiltersConfig(leakage=LeakageFilter(mode="score", sets=(VIDEOS,))),
}
ALL = replace(
    FILTERS["cut"],
    motion=FILTERS["motion"].motion,
    border=FILTERS["border"].border,
    dark=FILTERS["dark"].dark,
    duplicates=FILTERS["duplicates"].duplicates,
    leakage=FILTERS["leakage"].leakage,
)


def ms_per_sample(filters: FiltersConfig, index: LeakageIndex, samples_per_input: int) -> float:
    """Cut the first clips of every packaged video, and take the time of one."""
    config = DatasetConfig(kind="clip", corpora=(VIDEOS,), filters=filters)
    count = 0
    started = time.process_time()
    for planned in list_inputs(config):
        judge = None if filters == NONE else SampleJudge(filters, index)
        count += sum(1 for _ in islice(cut_input(planned.item, config, judge), samples_per_input))
    return (time.process_time() - started) / count * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=24, help="clips a video")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    hashes = np.random.default_rng(0).integers(0, 2**64, GUARDED, dtype=np.uint64)
    index = LeakageIndex([f"frame {n}" for n in range(GUARDED)], hashes)
    sides = {"none": NONE, **FILTERS, "all": ALL}
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, filters in sides.items():
            spent = ms_per_sample(filters, index, arguments.samples if number else 2)
            if number:  # the first round warms up
                took[name].append(spent)
    ms = {name: statistics.median(values) for name, values in took.items()}
    for name, value in ms.items():
        print(f"{name:<12} {value:7.2f} ms a clip, {value - ms['none']:+6.2f} against none")
    figures = {f"{name}_ms": round(value, 3) for name, value in ms.items()}
    print(json.dumps({"benchmark": "prep_filters", "ratio": round(ms["none"] / ms["all"], 3), **figures}))


if __name__ == "__main__":
    main()

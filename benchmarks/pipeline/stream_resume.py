"""Opening the stream at a late step beside opening it at the first: seconds until the first batch is there.

    python -m benchmarks.stream_resume [--full]

A dataset of 20 million images on paper (20,000 shards; `--full` 200 million in 200,000) whose samples all lie in eight
real shards: the order, the seek and the reads are those of the whole, with batch 384 and the paper's views. Each
opening builds the stream anew and reads one of 64 ranks' share of step 0 or of a step within the 90th epoch. The sides
alternate; the last line is JSON, `ratio` the late opening's time over the early one's, `late_s` its seconds.
Both must stay: late_s below 1, the ratio about 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import cv2
import torch

from benchmarks.stream_corpus import packaged_samples, publish_copies, stream_of
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.stream.catalogue import Catalogue, open_catalogue
from mcjepa.pipeline.stream.dataset_shards import DatasetShards
from mcjepa.pipeline.stream.order import SourceCounts
from mcjepa.pipeline.stream.samples import SampleStream, view_stream

REAL_SHARDS, SAMPLES_PER_SHARD, RANKS, BATCH = 8, 1000, 64, 384


def enlarged(catalogue: Catalogue, times: int) -> Catalogue:
    """The catalogue of a dataset that lists its shards `times` times."""
    (dataset,) = catalogue.datasets
    lists = {name: tuple(getattr(dataset, name)) * times for name in ("shards", "samples", "sha256", "bytes")}
    large = DatasetShards(location=dataset.location, dataset_id=dataset.dataset_id, kind=dataset.kind, **lists)
    return Catalogue([large], [SourceCounts(large.samples)])


def open_and_read(config: StreamConfig, times: int, step: int) -> float:
    """Seconds from nothing to the first batch of a rank."""
    started = time.perf_counter()
    catalogue = enlarged(open_catalogue(config.views), times)
    augmentation = view_stream(config, seed=0).augmentation
    stream = SampleStream("views", catalogue, config, augmentation, batch=config.view_batch, seed=0)
    stream.read(step, 5, RANKS, lambda: False)
    seconds = time.perf_counter() - started
    stream.close()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ten times the dataset, more openings")
    full = parser.parse_args().full
    times, openings = (25_000, 15) if full else (2_500, 9)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        images = publish_copies(f"{folder}/images", "image", packaged_samples("image"), REAL_SHARDS, SAMPLES_PER_SHARD)
        config = stream_of(images, view_batch=BATCH)
        epoch_steps = REAL_SHARDS * SAMPLES_PER_SHARD * times // BATCH
        late = 89 * epoch_steps + epoch_steps * 2 // 3
        seconds: dict[int, list[float]] = {0: [], late: []}
        open_and_read(config, times, 0)
        for _ in range(openings):
            for step in seconds:
                seconds[step].append(open_and_read(config, times, step))
    early_s, late_s = (statistics.median(each) for each in seconds.values())
    ratio = statistics.median(there / here for here, there in zip(*seconds.values(), strict=True))
    figures = {"early_s": round(early_s, 3), "late_s": round(late_s, 3), "late_step": late}
    print(json.dumps({"benchmark": "stream_resume", "ratio": round(ratio, 2), **figures}))


if __name__ == "__main__":
    main()

"""Making shards into S3 beside making them into a local folder: samples a second of one worker.

    python -m benchmarks.prep_store [--full]

The packaged clips are decoded, cut, encoded, written and stored with their sidecars by the same ShardMaker. The S3
server is a real one (SeaweedFS, of the test extra), started here on the loopback interface: it shares the
processor's cores with the worker, so its own work counts against S3. Both sides make the same shards in turn, each
first in every other pair. The last line is JSON; `ratio` is the median of the pairs' S3 over local. The bar is 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace

from benchmarks.prep_corpus import clip_dataset, plan_into
from mcjepa.data_prep.plan.plan import ShardPlan
from mcjepa.data_prep.workers.shard_maker import ShardMaker, ShardResult
from tests.servers.seaweed import BUCKET, running_seaweed

CLIPS_A_SHARD = 12
"""Each of 24 samples: shards of about 20 MB, which S3 takes in parts."""


def begin(root: str, shards: int) -> tuple[ShardMaker, list[ShardPlan]]:
    """A maker with a running decode child, and the shards that it is to make."""
    once = clip_dataset(1)
    repeat = shards * CLIPS_A_SHARD // once.inputs_per_shard
    work, plans, _ = plan_into(root, replace(clip_dataset(repeat), inputs_per_shard=CLIPS_A_SHARD))
    maker = ShardMaker(work)
    maker.make(plans[0])
    return maker, plans[1:]


def timed(maker: ShardMaker, plan: ShardPlan) -> tuple[float, ShardResult]:
    """Samples a second of one shard."""
    started = time.perf_counter()
    result = maker.make(plan)
    return result.samples / (time.perf_counter() - started), result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more pairs")
    pairs = 20 if parser.parse_args().full else 5
    speeds: dict[str, list[float]] = {"local": [], "s3": []}
    with tempfile.TemporaryDirectory() as folder, running_seaweed() as server:
        os.environ.update(server.variables)
        sides = {"local": begin(f"{folder}/d", pairs + 1), "s3": begin(f"s3://{BUCKET}/d", pairs + 1)}
        for number in range(pairs):
            for side in sorted(sides, reverse=bool(number % 2)):
                maker, plans = sides[side]
                speed, result = timed(maker, plans[number])
                speeds[side].append(speed)
        for maker, _ in sides.values():
            maker.close()
    local, s3 = (statistics.median(speeds[side]) for side in ("local", "s3"))
    ratios = [there / here for here, there in zip(*speeds.values(), strict=True)]
    print(f"local {local:.0f} samples/s, s3 {s3:.0f}, shards of {result.bytes / 1e6:.1f} MB")
    print("pairs: " + " ".join(f"{ratio:.2f}" for ratio in ratios))
    figures = {"local_samples_s": round(local, 1), "s3_samples_s": round(s3, 1)}
    print(json.dumps({"benchmark": "prep_store", "ratio": round(statistics.median(ratios), 3), **figures}))


if __name__ == "__main__":
    main()

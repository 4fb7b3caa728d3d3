"""How many of ImageNet's 1,000 classes 100 consecutive steps see: inputs in the plan's order, read as the stream does.

    python -m benchmarks.class_mix

1,281,167 names of 1,000 folders, shards of 1,000 inputs, the real permutation of the plan and the real order of the
stream (batch 384, window 4,096), by counting: nothing is decoded. The least over 20 places of an epoch is compared
with the order by name. The last line is JSON; `ratio` is that least over the bar of 980 classes.
"""

from __future__ import annotations

import json

import numpy as np

from mcjepa.data_prep.plan.order import place
from mcjepa.pipeline.stream.order import SampleOrder, SourceCounts

IMAGES, CLASSES, PER_SHARD = 1_281_167, 1_000, 1_000
BATCH, WINDOW, STEPS, PLACES, BAR = 384, 4096, 100, 20, 980


def least_classes(classes: np.ndarray) -> int:
    """Fewest different classes in any of some runs of 100 steps.

    Args:
        classes: Class of every sample, in the order of the shards, (samples,).
    """
    shards = tuple(np.bincount(np.arange(len(classes)) // PER_SHARD).tolist())
    order = SampleOrder([SourceCounts(shards)], batch=BATCH, window=WINDOW, seed=0)
    found = []
    for start in np.linspace(0, order.steps_per_epoch - STEPS, PLACES).astype(int).tolist():
        seen: set[int] = set()
        for step in range(start, start + STEPS):
            epoch, ids = order.step_samples(step)
            seen.update(classes[order.sample_indexes(epoch, ids)].tolist())
        found.append(len(seen))
    return min(found)


def main() -> None:
    """Count for both orders and print."""
    by_name = np.arange(IMAGES) * CLASSES // IMAGES
    keys = [place(f"0-imagenet/n{c:08d}/{n:07d}.JPEG", 0) for n, c in enumerate(by_name.tolist())]
    shuffled = by_name[np.array(sorted(range(IMAGES), key=keys.__getitem__))]
    listed, mixed = least_classes(by_name), least_classes(shuffled)
    print(f"classes in {STEPS} steps of {BATCH}: {listed} in the order of names, {mixed} in the plan's order")
    print(json.dumps({"benchmark": "class_mix", "ratio": round(mixed / BAR, 3), "listed": listed, "shuffled": mixed}))


if __name__ == "__main__":
    main()

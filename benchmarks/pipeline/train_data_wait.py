"""How much of a training step is spent waiting for data, in the sample recipe.

    python -m benchmarks.train_data_wait [--full]

Trains the recipe `sample` (its model, batch, augmentation and loading processes) as a user would, by the command line,
on one rank and datasets of the packaged clips at the recipe's size, and reads `data_wait_share` in its meters.
The first record, in which the loading processes start, is left out. The last line is JSON; `ratio` is the share of the
records after it over the 2 % that are allowed: the bar is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.stream_corpus import packaged_samples, publish_copies
from mcjepa.pipeline.run.folder import read_metrics

ALLOWED_SHARE = 0.02
SHORT_SIDE_PX = 160
"""Of the recipe's datasets."""


def train(folder: Path, steps: int) -> list[dict[str, float]]:
    """Runs the recipe; returns the records of its meters."""
    clips = publish_copies(f"{folder}/clips", "clip", packaged_samples("clip", SHORT_SIDE_PX), 4, 100)
    images = publish_copies(f"{folder}/images", "image", packaged_samples("image", SHORT_SIDE_PX), 4, 100)
    words = [
        *("train", "sample", "--ranks", "1", f"out={folder}/out", f"train.steps={steps}", "train.log_every=5"),
        f"train.stream.pairs=[{{location: {clips}}}]",
        f"train.stream.views=[{{location: {images}}}]",
    ]
    subprocess.run([sys.executable, "-m", "mcjepa", *words], check=True, stdout=subprocess.DEVNULL)
    return read_metrics(folder / "out" / "run" / "logs" / "metrics.jsonl")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more steps")
    steps = 200 if parser.parse_args().full else 15
    with tempfile.TemporaryDirectory() as folder:
        records = train(Path(folder), steps)[1:]
    shares = [record["data_wait_share"] for record in records]
    figures = {
        "data_wait_share": round(statistics.mean(shares), 4),
        "largest": round(max(shares), 4),
        "seconds_per_step": round(statistics.median(record["seconds_per_step"] for record in records), 3),
    }
    ratio = statistics.mean(shares) / ALLOWED_SHARE
    print(json.dumps({"benchmark": "train_data_wait", "ratio": round(ratio, 3), "bar": 1, **figures}))


if __name__ == "__main__":
    main()

"""How long `mcjepa --help` takes, against starting Python alone: python benchmarks/pipeline/help.py"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

RUNS = 9


def seconds(words: list[str]) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Alternates both commands and prints the medians."""
    pairs = [
        (seconds([sys.executable, "-m", "mcjepa", "--help"]), seconds([sys.executable, "-c", "pass"]))
        for _ in range(RUNS)
    ]
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        json.dumps(
            {"benchmark": "help", "ratio": round(ours / bare, 2), "help_s": round(ours, 3), "python_s": round(bare, 3)}
        )
    )


if __name__ == "__main__":
    main()

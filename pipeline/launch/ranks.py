"""This program as processes of this machine: the ranks of a command, and a few steps to measure."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcjepa.cluster.local import GRACE_S, run_ranks
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.recipe.short import write_short_recipe
from mcjepa.pipeline.run.folder import METRICS, read_metrics
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.tracking import quiet_environment

MODULE = ("-m", "mcjepa")
"""What Python is given to be this program."""


def program(*words: str) -> list[str]:
    """A command line of this program for the Python that runs now."""
    return [sys.executable, *MODULE, *words]


def start_ranks(argv: Sequence[str], ranks: int, grace_s: float = GRACE_S) -> int:
    """Runs the very command line that this process was given as several ranks; the exit code of the first that fails.

    Args:
        argv: this process's own words.
        ranks: how many.
        grace_s: seconds that they have to stop by themselves.
    """
    return run_ranks(program(*argv), ranks, grace_s=grace_s)


def fitting_ranks(config: TrainConfig, most: int = 0) -> int:
    """The most ranks that divide the run's batches.

    Args:
        config: the run's settings.
        most: at most so many; 0: one per GPU, or per core of ours without GPUs.
    """
    import torch

    from mcjepa.pipeline.stream.order import fitting_world_sizes

    most = most or torch.cuda.device_count() or len(os.sched_getaffinity(0))
    fitting = fitting_world_sizes(config.stream.batches, config.stream.order_version)
    return max(size for size in fitting if size <= most)


def measure_step_s(plain: Mapping[str, Any], ranks: int, steps: int) -> float:
    """Seconds per step, the median of some real steps of the recipe on this machine.

    Raises:
        UsageError: too few steps.
        RunError: the steps failed.
    """
    if steps < 2:
        raise UsageError(f"--measure {steps}, expected at least 2 steps: the first one is slower than the others")
    with tempfile.TemporaryDirectory(prefix="mcjepa-measure-") as folder:
        recipe = write_short_recipe(plain, Path(folder), steps, steps)
        log = Path(folder) / "train.log"
        words = program("train", str(recipe), "--json")
        code = run_ranks(words, ranks, environment=quiet_environment(), logs=lambda rank: log)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunError(f"--measure: training {steps} steps here ended with {code}: {(lines or [''])[-1]}")
        records = read_metrics(Path(folder) / "run" / METRICS)
    return statistics.median(record["seconds_per_step"] for record in records[1:])

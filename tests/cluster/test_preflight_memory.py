"""Estimated memory against the memory of real steps: bytes of tensors, and of processes on a CPU."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcjepa.cluster.local import run_ranks
from mcjepa.cluster.preflight.memory import CPU_LIBRARIES_BYTES, EngineFacts, MemoryEstimate, estimate_memory
from mcjepa.pipeline.launch.step_memory import model_size, step_memory
from mcjepa.pipeline.recipe.recipe import load_recipe
from tests.pipeline.small_recipe import write_small_recipe

DRIVER = Path(__file__).with_name("memory_driver.py")
REPOSITORY = DRIVER.parents[2]
WORDS = ["train.engine.threads=1", "model.expander.widths=[4096, 4096, 4096]"]
"""34 M parameters and 150 MiB of activations: neither is lost in the other."""


DRIVER_BYTES = 500 << 20
"""What the driver has before the model; it imports neither MLflow nor what reads shards."""


def estimate(stage: Any, ranks: int, on_gpu: bool, *words: str) -> MemoryEstimate:
    recipe, _ = load_recipe("quickstart", [*WORDS, *words])
    assert recipe.train
    step = step_memory(recipe.train, recipe.model, ranks)
    return estimate_memory(model_size(recipe.model), step, EngineFacts(stage, "fp32", ranks, on_gpu))


def measured(kind: str, stage: int, *words: str) -> int:
    argv = [sys.executable, str(DRIVER), kind, "quickstart", *WORDS, f"train.engine.zero_stage={stage}", *words]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    peak: int = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
    return peak


def test_counting_knows_micro_batches_and_what_checkpointing_saves() -> None:
    views = ["train.stream.pair_batch=0", "train.stream.view_batch=512", "train.stream.augment.view.size=128"]

    def kept(*words: str) -> int:
        recipe, _ = load_recipe("quickstart", [*views, *words])
        assert recipe.train
        return step_memory(recipe.train, recipe.model, 2).kept_bytes

    whole = kept()
    assert whole > 500 << 20  # far more than the test itself takes
    assert kept("train.stream.view_batch=256") == pytest.approx(whole / 2, rel=0.01)
    assert kept("model.encoder.activation_checkpointing=true") < 0.8 * whole


@pytest.mark.slow
def test_a_process_on_a_cpu_takes_what_was_estimated() -> None:
    """ZeRO-2; stages 0, 1 and 3 were within 12 % when the estimate was made (docs/plan.md)."""
    expected = estimate(2, 1, False).total + DRIVER_BYTES
    assert measured("rss", 2) == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_the_tensors_of_a_step_are_what_was_estimated_for_a_device(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks; a bucket of DeepSpeed's own size would hide the rest, so it is made small."""
    bucket = "train.engine.options={zero_optimization: {reduce_bucket_size: 40000000}}"
    words = [*WORDS, f"train.engine.zero_stage={stage}", bucket]
    recipe, _ = load_recipe("quickstart", words)
    assert recipe.train
    engine = EngineFacts(stage, "fp32", 2, True, bucket_elements=40_000_000)  # type: ignore[arg-type]
    expected = estimate_memory(model_size(recipe.model), step_memory(recipe.train, recipe.model, 2), engine)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    output: Callable[[int], Path] = lambda rank: tmp_path / f"rank{rank}"  # noqa: E731
    assert run_ranks([sys.executable, str(DRIVER), "tensors", "quickstart", *words], 2, logs=output) == 0
    found = json.loads((tmp_path / "rank0").read_text().strip().splitlines()[-1])["peak_bytes"]
    assert found == pytest.approx(expected.total, rel=0.15)


@pytest.mark.slow
def test_a_small_training_takes_no_more_than_was_said_and_nearly_as_much(tmp_path: Path) -> None:
    """What is said covers the most that one program took on one machine, and so is above the least: 509 and 633 MiB."""
    recipe = str(write_small_recipe(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-m", "mcjepa", "train", recipe, "train.steps=3"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(words, env=environment, stdout=log, stderr=log) as run:
        peak = 0
        while run.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, psutil.Process(run.pid).memory_info().rss)
            time.sleep(0.02)
    assert run.returncode == 0, (tmp_path / "log").read_text()
    settings, _ = load_recipe(recipe, [])
    assert settings.train
    step = step_memory(settings.train, settings.model, 1)
    said = estimate_memory(model_size(settings.model), step, EngineFacts(1, "fp32", 1, False)).total
    assert peak <= said + CPU_LIBRARIES_BYTES <= 1.3 * peak

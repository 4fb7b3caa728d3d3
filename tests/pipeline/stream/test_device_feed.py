"""The feed of an accelerator: the same steps as on the CPU, one ahead, faults handed on."""

from __future__ import annotations

import pytest
import torch
from small_datasets import assert_equal_steps, take

from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.stream.batches import StepBatch
from mcjepa.pipeline.stream.loader import build_loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_cpu(batch: StepBatch) -> StepBatch:
    """The batch with its tensors in host memory."""
    pairs, views = batch.pairs, batch.views
    assert pairs and views and pairs.frame0.is_cuda and views.view1.is_cuda
    return StepBatch(
        batch.step,
        type(pairs)(pairs.frame0.cpu(), pairs.frame1.cpu(), pairs.keys),
        type(views)(views.view0.cpu(), views.view1.cpu(), views.keys),
    )


def test_steps_on_the_device_are_those_of_the_host(small_stream: StreamConfig) -> None:
    kept = {"rank": 0, "world_size": 1, "start_step": 3, "seed": 11}
    expected = take(build_loader(small_stream, **kept), 6)
    with build_loader(small_stream, **kept, device="cuda") as loader:
        found = []
        for _ in range(6):
            batch = next(loader)
            torch.cuda._sleep(10_000_000)  # training is busy while the next step is copied
            found.append(on_cpu(batch))
            assert loader.next_step == batch.step + 1
    assert_equal_steps(found, expected)

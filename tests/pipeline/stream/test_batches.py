"""Where the floats of a step lie in host memory."""

from __future__ import annotations

import pytest
import torch

from mcjepa.pipeline.stream.batches import MOST_PLACES, FloatMemory, RawBatch

CPU = torch.device("cpu")


def stack(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_floats_in_memory_that_is_used_again_are_those_of_new_memory(memory_format: torch.memory_format) -> None:
    memory = FloatMemory()
    for seed in range(3):
        raw = RawBatch(stack(seed), stack(seed + 10), ("a", "b"))
        for kept, new in zip(raw.to_floats(CPU, memory_format, memory), raw.to_floats(CPU, memory_format), strict=True):
            assert torch.equal(kept, new) and kept.stride() == new.stride() and kept.data_ptr() % 64 == 0


def test_memory_is_given_again_when_no_tensor_lies_in_it_and_not_before() -> None:
    memory = FloatMemory()
    first = memory.widen(stack(0), torch.channels_last)
    part, place = first[0], first.data_ptr()
    content = part.clone()
    del first
    assert memory.widen(stack(1), torch.channels_last).data_ptr() != place and torch.equal(part, content)
    del part
    assert memory.widen(stack(2), torch.channels_last).data_ptr() == place


def test_who_keeps_many_steps_keeps_them_and_the_memory_holds_few() -> None:
    memory = FloatMemory()
    kept = [memory.widen(stack(seed), torch.contiguous_format) for seed in range(2 * MOST_PLACES)]
    for seed, floats in enumerate(kept):
        assert torch.equal(floats, stack(seed).permute(0, 3, 1, 2) / 255)
    assert len(memory._places) == MOST_PLACES

"""Operations of a step against counts by hand, groups and all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcjepa.pipeline.monitor.throughput import FlopCounter

BATCH, SIDE, KERNEL = 2, 12, 3


def counted(layer: nn.Module, channels: int, *, input_gradient: bool = True) -> int:
    """Operations of a forward and a backward pass over BATCH images of SIDE x SIDE."""
    images = torch.rand(BATCH, channels, SIDE, SIDE, requires_grad=input_gradient)
    counter = FlopCounter()
    with counter.forward():
        loss = layer(images).sum()
    counter.before_backward(loss)
    loss.backward()
    counter.after_backward()
    return counter.total


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 16, 1), (8, 16, 4), (48, 48, 48)])
def test_a_convolutions_backward_pass_costs_twice_its_forward_pass(inputs: int, outputs: int, groups: int) -> None:
    layer = nn.Conv2d(inputs, outputs, KERNEL, padding=1, groups=groups)
    forward = 2 * BATCH * SIDE * SIDE * outputs * (inputs // groups) * KERNEL * KERNEL
    assert counted(layer, inputs) == 3 * forward
    assert counted(layer, inputs, input_gradient=False) == 2 * forward


def test_a_transposed_convolution_is_counted_by_its_inputs() -> None:
    layer = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
    forward = 2 * BATCH * SIDE * SIDE * 8 * 2 * 2 * 2
    assert counted(layer, 8) == 3 * forward

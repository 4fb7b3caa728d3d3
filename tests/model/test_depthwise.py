"""Depthwise convolutions on CPUs: torch's numbers, and gradients of weights by another convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mcjepa.model.layers.depthwise import convolve_depthwise_on_cpu, depthwise_weight_gradient


@pytest.mark.parametrize(
    ("size", "reach"), [((9, 12), (3, 3)), ((4, 3), (3, 2)), ((1, 7), (0, 3)), ((2, 2), (1, 1)), ((1, 1), (0, 0))]
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_weights_gradient_is_that_of_the_convolution(
    size: tuple[int, int], reach: tuple[int, int], memory: torch.memory_format
) -> None:
    x, grad = torch.randn(2, 3, 5, *size, dtype=torch.float64).unbind()
    x, grad = x.contiguous(memory_format=memory), grad.contiguous(memory_format=memory)
    weight = torch.randn(5, 1, *(2 * r + 1 for r in reach), dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, weight, padding=reach, groups=5)
    (expected,) = torch.autograd.grad(out, weight, grad)
    torch.testing.assert_close(depthwise_weight_gradient(grad, x, reach), expected)


def test_one_weight_meets_one_shift_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0]]).view(1, 1, 1, 3)
    grad = torch.tensor([[10.0, 0.0, 100.0]]).view(1, 1, 1, 3)
    # Left tap: cells 1 and 2 see x0 and x1; middle: each its own; right: cells 0 and 1 see x1 and x2.
    assert depthwise_weight_gradient(grad, x, (0, 1)).flatten().tolist() == [200.0, 410.0, 20.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_outputs_and_gradients_are_near_those_of_fp32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 14, 14).bfloat16().to(dtype).requires_grad_()  # such numbers lose nothing in bf16
    weight, bias = torch.randn(6, 1, 7, 7, requires_grad=True), torch.randn(6, requires_grad=True)
    seed = torch.randn(4, 6, 14, 14)
    with torch.autocast("cpu", torch.bfloat16):
        out = convolve_depthwise_on_cpu(x, weight, bias)
    exact = F.conv2d(x.float(), weight, bias, padding=3, groups=6)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.01, atol=0.1)  # of a standard deviation of 7
    ours, theirs = (torch.autograd.grad((y * seed).sum(), (x, weight, bias)) for y in (out, exact))
    for gradient, expected in zip(ours, theirs, strict=True):
        assert gradient.dtype == expected.dtype
        scale = expected.float().square().mean().sqrt()
        assert (gradient.float() - expected.float()).square().mean().sqrt() < 0.01 * scale

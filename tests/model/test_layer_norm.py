"""LayerNorm over channels."""

from __future__ import annotations

import pytest
import torch

from mcjepa.model.layers.layer_norm import ChannelLayerNorm, layer_norm


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_position_has_zero_mean_and_unit_variance_over_channels(memory_format: torch.memory_format) -> None:
    x = (3 + 5 * torch.randn(2, 7, 3, 4)).to(memory_format=memory_format)
    out = ChannelLayerNorm(7)(x)
    expected = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, correction=0) + 1e-6)
    torch.testing.assert_close(out, expected)


def test_weight_and_bias_are_a_channel_s() -> None:
    norm = ChannelLayerNorm(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([10.0, 20.0]))
    out = norm(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))  # normalised: -1, 1
    torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 23.0]), rtol=1e-5, atol=1e-4)


def test_gradients_are_right(in_float64: None) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ChannelLayerNorm(3).double(), (x,))


def test_bf16_maps_are_normalised_in_fp32_and_come_back_in_bf16() -> None:
    x = (100 + torch.randn(1, 8, 2, 2)).bfloat16()
    out = ChannelLayerNorm(8)(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ChannelLayerNorm(8)(x.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_maps_are_summed_in_fp32(dtype: torch.dtype) -> None:
    """torch's own kernel sums those of weight and bias in the maps' type: 6 % off at this size."""
    x, grad = torch.randn(2, 6144, 64).to(dtype).unbind()
    weight, bias = torch.randn(2, 64).unbind()

    def gradients(exact: torch.dtype) -> tuple[torch.Tensor, ...]:
        wide = torch.promote_types(exact, torch.float32)
        leaves = [
            x.to(exact).requires_grad_(),
            *(tensor.to(wide, copy=True).requires_grad_() for tensor in (weight, bias)),
        ]
        return torch.autograd.grad(layer_norm(*leaves, 1e-6), leaves, grad.to(exact))

    for ours, true in zip(gradients(dtype)[1:], gradients(torch.float64)[1:], strict=True):
        assert (ours.double() - true).norm() < 1e-4 * true.norm()

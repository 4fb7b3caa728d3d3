"""The expander and its batch normalisation, on one rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcjepa.model.config import ExpanderConfig
from mcjepa.model.expander import Expander, GlobalBatchNorm


def paired_norms(width: int) -> tuple[GlobalBatchNorm, nn.BatchNorm1d]:
    ours, theirs = GlobalBatchNorm(width), nn.BatchNorm1d(width)
    with torch.no_grad():
        for mine, other in zip((ours.weight, ours.bias), (theirs.weight, theirs.bias), strict=True):
            mine.copy_(torch.randn(width))
            other.copy_(mine)
    return ours, theirs


def test_batch_norm_equals_torch_s_in_training_and_evaluation() -> None:
    ours, theirs = paired_norms(5)
    for _ in range(3):
        x = 2 + 3 * torch.randn(7, 5)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        weight = torch.randn(7, 5)
        outs = [norm(x) for norm, x in zip((ours, theirs), inputs, strict=True)]
        torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
        gradients = [
            torch.autograd.grad((out * weight).sum(), (x, norm.weight, norm.bias))
            for out, x, norm in zip(outs, inputs, (ours, theirs), strict=True)
        ]
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert (ours.running_mean - 2).abs().max() < 2 and ours.running_mean.abs().min() > 0
    ours.eval(), theirs.eval()
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(ours.running_mean, before)


def test_gradients_of_batch_norm_are_right(in_float64: None) -> None:
    norm = GlobalBatchNorm(3).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_a_constant_feature_normalises_to_its_bias() -> None:
    norm = GlobalBatchNorm(2)
    x = torch.full((4, 2), 7.0, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.abs().max() == 0
    assert x.grad is not None and x.grad.isfinite().all()


def test_batch_norm_refuses_one_sample_in_training_only() -> None:
    norm = GlobalBatchNorm(3)
    with pytest.raises(ValueError, match="one sample"):
        norm(torch.randn(1, 3))
    assert norm.eval()(torch.randn(1, 3)).shape == (1, 3)


def test_the_default_expander_is_the_paper_s() -> None:
    with torch.device("meta"):
        expander = Expander(ExpanderConfig(), 768)
    linear = [(layer.in_features, layer.out_features) for layer in expander if isinstance(layer, nn.Linear)]
    assert linear == [(768, 8192), (8192, 8192), (8192, 8192)]
    assert [type(layer) for layer in expander][:3] == [nn.Linear, GlobalBatchNorm, nn.ReLU]
    assert expander[-1].bias is None and expander[0].bias is not None


def test_layer_norm_makes_samples_independent_of_each_other() -> None:
    x = torch.randn(4, 6)
    for norm, independent in (("layer", True), ("batch", False)):
        expander = Expander(ExpanderConfig(widths=(8, 5), norm=norm), 6)  # type: ignore[arg-type]
        assert torch.allclose(expander(x)[:2], expander(x[:2]), atol=1e-6) is independent


def test_one_width_is_one_linear_layer() -> None:
    assert [type(layer) for layer in Expander(ExpanderConfig(widths=(5,)), 6)] == [nn.Linear]

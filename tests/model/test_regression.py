"""The regression term."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mcjepa.model.losses.regression import channel_variances, regression_errors


def regression_loss(maps: Sequence[Tensor], predicted: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """The levels' errors, added up."""
    return regression_errors(maps, predicted, masks).sum()


def test_two_levels_by_hand() -> None:
    maps = [torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)]
    predicted = [torch.tensor([1.5, 9.0]).view(1, 1, 1, 2), torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)]
    masks = [torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.ones(1, 1, 1, 1)]
    assert regression_loss(maps, predicted, masks).item() == pytest.approx(0.25 + (1 + 4) / 2)


def test_equal_maps_cost_nothing_and_the_order_does_not_matter() -> None:
    a, b, mask = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.ones(2, 1, 4, 5)
    assert regression_loss([a], [a.clone()], [mask]).item() == 0
    torch.testing.assert_close(regression_loss([a], [b], [mask]), regression_loss([b], [a], [mask]))


def test_hidden_cells_change_nothing() -> None:
    a, b, mask = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), (torch.rand(2, 1, 4, 5) > 0.5).float()
    changed = torch.where(mask > 0, b, torch.randn_like(b))
    torch.testing.assert_close(regression_loss([a], [b], [mask]), regression_loss([a], [changed], [mask]))


def test_gradients_agree_with_finite_differences(in_float64: None) -> None:
    maps = [torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mask = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: regression_loss([a], [b], [mask]), maps)


def test_nothing_visible_gives_zero_and_finite_gradients() -> None:
    a = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = regression_loss([a], [torch.randn(1, 3, 4, 4)], [torch.zeros(1, 1, 4, 4)])
    loss.backward()
    assert loss.item() == 0
    assert a.grad is not None and a.grad.abs().max() == 0


def test_bf16_maps_are_compared_in_fp32() -> None:
    a, b, mask = torch.randn(1, 3, 4, 4).bfloat16(), torch.randn(1, 3, 4, 4).bfloat16(), torch.ones(1, 1, 4, 4)
    loss = regression_loss([a], [b], [mask])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (a.float() - b.float()).square().mean())


def test_levels_that_do_not_match_up_are_refused() -> None:
    x, mask = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="shorter"):
        regression_loss([x, x], [x], [mask])


def test_every_level_has_an_error_of_its_own() -> None:
    maps, mask = [torch.tensor(3.0).view(1, 1, 1, 1), torch.tensor(5.0).view(1, 1, 1, 1)], torch.ones(1, 1, 1, 1)
    zeros = [torch.zeros(1, 1, 1, 1)] * 2
    assert regression_errors(maps, zeros, [mask, mask]).tolist() == [9, 25]


def test_channel_variances_are_those_over_all_positions() -> None:
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 2)]
    expected = [x.transpose(0, 1).flatten(1).var(1, correction=0).mean() for x in maps]
    torch.testing.assert_close(channel_variances(maps), torch.stack(expected))
    torch.testing.assert_close(
        channel_variances([3 * x + 7 for x in maps]), 9 * torch.stack(expected), rtol=1e-4, atol=0
    )


def test_gradients_of_channel_variances_agree_with_finite_differences(in_float64: None) -> None:
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: channel_variances([a, b]), (x, y), atol=1e-4, rtol=1e-3)


def test_constant_maps_have_no_variance() -> None:
    assert channel_variances([torch.full((1, 2, 1, 1), 3.0)]).tolist() == [0.0]

"""Masked means, and reductions on one rank."""

from __future__ import annotations

import torch

from mcjepa.model.reduction import gather_rows, global_sum, masked_mean, world_size


def test_the_mean_is_over_visible_elements_of_all_channels() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]).view(1, 2, 1, 3)
    mask = torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    assert masked_mean(values, mask).item() == (1 + 3 + 5 + 7) / 4


def test_a_share_of_a_cell_weighs_as_much() -> None:
    values = torch.tensor([[4.0, 8.0], [4.0, 8.0]]).view(1, 2, 1, 2)
    mask = torch.tensor([0.25, 0.75]).view(1, 1, 1, 2)
    assert masked_mean(values, mask).item() == 0.25 * 4 + 0.75 * 8


def test_a_mask_of_nothing_gives_zero_and_finite_gradients() -> None:
    values = torch.randn(2, 3, 4, 4, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 1, 4, 4))
    mean.backward()
    assert mean.item() == 0
    assert values.grad is not None and values.grad.abs().max() == 0


def test_one_rank_reduces_to_itself() -> None:
    x = torch.randn(3, 2)
    assert world_size() == 1
    assert global_sum(x) is x and gather_rows(x) is x

"""Masked means, and reductions on one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mcjepa.model.reduction import (
    Summing,
    alongside,
    gather_rows,
    global_moments,
    global_sums,
    masked_mean,
    over_ranks,
    run_summing,
    world_size,
)


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
    assert global_sums([x])[0] is x and torch.equal(gather_rows(x), x)


def test_gathered_rows_are_constants() -> None:
    assert not gather_rows(torch.randn(3, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 5)])
def test_moments_and_their_gradients_are_those_of_torch(in_float64: None, shape: tuple[int, ...]) -> None:
    x = (7 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
    mean, variance = global_moments(x)
    torch.testing.assert_close(mean, x.transpose(0, 1).flatten(1).mean(1))
    torch.testing.assert_close(variance, x.transpose(0, 1).flatten(1).var(1, correction=0))
    assert torch.autograd.gradcheck(global_moments, (x,))


@over_ranks
def rounds(count: int, start: float) -> Summing[float]:
    """Asks `count` times, at least once, for the sum of what it was told last and 1."""

    def go_on(sums: list[Tensor]) -> float | Summing[float]:
        told = sums[0].item()
        return told if count == 1 else rounds.begin(count - 1, told)

    return Summing([torch.tensor(start + 1)], go_on)


def test_losses_of_unequal_length_go_on_side_by_side() -> None:
    nothing: Summing[dict[str, Any]] = alongside({})
    found: Any = alongside(
        {"short": rounds.begin(1, 10.0), "plain": 5.0, "long": rounds.begin(3, 20.0), "nothing": nothing}
    )
    asked = []
    while isinstance(found, Summing):
        asked.append([part.item() for part in found.parts])
        found = found.finish([10 * part for part in found.parts])
    assert asked == [[11, 21], [211], [2111]]
    assert found == {"short": 110.0, "plain": 5.0, "long": 21_110.0, "nothing": {}}


def test_a_loss_that_is_called_runs_to_its_end_and_what_follows_it_too() -> None:
    assert rounds(3, 1.0) == 4.0
    assert run_summing(rounds.begin(2, 0.0).then(lambda told: rounds.begin(1, 10 * told))) == 21.0

"""The cycle term."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcjepa.model.losses.cycle import cycle_errors
from mcjepa.model.warp import warp


def cycle_loss(*stacks: list[Tensor]) -> Tensor:
    """The levels' errors, added up."""
    return cycle_errors(*stacks).sum()


def constant_flow(u: float, v: float, size: tuple[int, int]) -> Tensor:
    return torch.tensor([float(u), float(v)]).view(1, 2, 1, 1).expand(1, 2, *size).clone()


def inner_mask(border: int, size: tuple[int, int]) -> Tensor:
    mask = torch.zeros(1, 1, *size)
    mask[..., border:-border, border:-border] = 1
    return mask


def test_opposite_flows_bring_the_features_home() -> None:
    x, size = torch.randn(1, 3, 8, 10), (8, 10)
    there, back = constant_flow(2, -1, size), constant_flow(-2, 1, size)
    assert cycle_loss([x], [there], [back], [inner_mask(2, size)]).item() == pytest.approx(0, abs=1e-9)
    assert cycle_loss([x], [there], [there], [inner_mask(2, size)]).item() > 0.5


def test_a_ramp_by_hand() -> None:
    x, size = torch.arange(12.0).view(1, 1, 1, 12).expand(1, 1, 7, 12), (7, 12)
    loss = cycle_loss([x], [constant_flow(2, 0, size)], [constant_flow(-0.5, 0, size)], [inner_mask(3, size)])
    assert loss.item() == pytest.approx(1.5**2, rel=1e-4)


def test_levels_add_up() -> None:
    x, size = torch.randn(1, 2, 6, 6), (6, 6)
    one, two, mask = constant_flow(1, 0, size), constant_flow(0, 2, size), torch.ones(1, 1, 6, 6)
    both = cycle_loss([x, 2 * x], [one, two], [two, one], [mask, mask])
    apart = cycle_loss([x], [one], [two], [mask]) + cycle_loss([2 * x], [two], [one], [mask])
    torch.testing.assert_close(both, apart)


def test_hidden_cells_change_nothing() -> None:
    x, size = torch.randn(1, 2, 6, 8), (6, 8)
    flow, mask = constant_flow(0, 0, size), (torch.rand(1, 1, 6, 8) > 0.4).float()
    back = flow + 0.3
    wild = torch.where(mask > 0, flow, 3 * torch.randn_like(flow))
    torch.testing.assert_close(cycle_loss([x], [flow], [back], [mask]), cycle_loss([x], [wild], [back], [mask]))


def test_gradients_agree_with_finite_differences(in_float64: None) -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    there = (0.2 + 0.1 * torch.rand(1, 2, 4, 4, dtype=torch.float64)).requires_grad_()
    back = (-0.4 + 0.1 * torch.rand(1, 2, 4, 4, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, ab, ba: cycle_loss([x], [ab], [ba], [mask]), (x, there, back))


def test_nothing_visible_gives_zero_and_finite_gradients() -> None:
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = cycle_loss([torch.randn(1, 3, 4, 4)], [flow], [flow], [torch.zeros(1, 1, 4, 4)])
    loss.backward()
    assert loss.item() == 0
    assert flow.grad is not None and flow.grad.abs().max() == 0


def test_features_that_the_caller_has_moved_give_the_same() -> None:
    x, ab, ba, mask = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8), torch.ones(1, 1, 6, 8)
    plain = cycle_loss([x], [ab], [ba], [mask])
    assert torch.equal(cycle_loss([x], [ab], [ba], [mask], [warp(x, ba)]), plain)

"""The smoothness term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mcjepa.model.losses.smoothness import smoothness_loss


def affine_flow(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack((1 + 0.5 * x - 0.25 * y, -2 + 0.1 * x + y)).unsqueeze(0)


@pytest.mark.parametrize("order", [1, 2])
def test_constant_flow_costs_nothing(order: int) -> None:
    flow = torch.tensor([3.0, -5.0]).view(1, 2, 1, 1).expand(1, 2, 6, 7)
    assert smoothness_loss(flow, torch.rand(1, 3, 6, 7), 10.0, order).item() == 0


def test_affine_flow_costs_nothing_at_second_order_only() -> None:
    flow, image = affine_flow(6, 8), torch.rand(1, 3, 6, 8)
    assert smoothness_loss(flow, image, 10.0, 2).item() == pytest.approx(0, abs=1e-6)
    assert smoothness_loss(flow, image, 10.0, 1).item() > 0.001


def test_affine_flow_on_a_flat_image_by_hand() -> None:
    loss = smoothness_loss(affine_flow(6, 8), torch.full((1, 3, 6, 8), 0.5), 10.0, 1)
    along_x, along_y = (0.5 + 0.1) / 2, (0.25 + 1) / 2  # means over u and v
    assert loss.item() == pytest.approx((along_x + along_y) / 2 / 6 / 2)  # first differences are halved


def test_an_edge_of_the_image_lets_the_flow_jump() -> None:
    flow, image = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    flow[:, 0, :, 2:] = 8.0
    without = smoothness_loss(flow, image, 10.0, 1)
    assert without.item() == pytest.approx(
        8 / 4 * (1 / 3) / 2 / 2 / 2
    )  # one of 3 steps, one of 2 components, x of x, y; halved
    image[..., 2:] = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    with_edge = smoothness_loss(flow, image, 10.0, 1)
    assert with_edge.item() == pytest.approx(without.item() * math.exp(-10 * 0.2), rel=1e-5)
    assert smoothness_loss(flow, image, 0.0, 1).item() == pytest.approx(without.item())


def test_a_bend_at_second_order_by_hand() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 1] = torch.tensor([0.0, 0.0, 2.0, 4.0]).view(4, 1)  # second differences along y: 2, 0
    loss = smoothness_loss(flow, torch.zeros(1, 3, 4, 4), 10.0, 2)
    assert loss.item() == pytest.approx(2 / 4 * (1 / 2) / 2 / 2)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_picture_and_its_motion_enlarged_cost_as_much_less_as_the_picture_is_wider(factor: int) -> None:
    """In pixels the slope of an enlarged motion is the same, and it is divided by a longer side."""
    small = smoothness_loss(affine_flow(6, 8), torch.zeros(1, 3, 6, 8), 10.0, 1)
    height, width = 6 * factor, 8 * factor
    large = smoothness_loss(affine_flow(height, width), torch.zeros(1, 3, height, width), 10.0, 1)
    assert large.item() == pytest.approx(small.item() / factor, rel=1e-5)


def test_mirroring_changes_nothing() -> None:
    flow, image = torch.randn(2, 2, 6, 7), torch.rand(2, 3, 6, 7)
    loss = smoothness_loss(flow, image, 10.0, 1)
    torch.testing.assert_close(smoothness_loss(flow.flip(-1), image.flip(-1), 10.0, 1), loss)
    torch.testing.assert_close(smoothness_loss(flow.transpose(2, 3), image.transpose(2, 3), 10.0, 1), loss)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_agree_with_finite_differences(in_float64: None, order: int) -> None:
    flow = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    image = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: smoothness_loss(f, image, 10.0, order), (flow,))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (5, 1)])
@pytest.mark.parametrize("order", [1, 2])
def test_maps_of_one_or_two_cells_are_finite(size: tuple[int, int], order: int) -> None:
    flow = torch.randn(1, 2, *size, requires_grad=True)
    loss = smoothness_loss(flow, torch.rand(1, 3, *size), 10.0, order)
    (loss + 0 * flow.sum()).backward()
    assert loss.isfinite() and flow.grad is not None and flow.grad.isfinite().all()
    if size == (1, 1):
        assert loss.item() == 0

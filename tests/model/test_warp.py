"""Direction and size of flow: warping, upsampling, the two-way test; and the examples in the model's docstrings."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mcjepa.model
from mcjepa.model.warp import inside, range_map, reached, upsample_flow, visible, warp

REPOSITORY = Path(__file__).resolve().parents[2]


def constant_flow(u: float, v: float, size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.tensor([float(u), float(v)]).view(1, 2, 1, 1).expand(batch, 2, *size).clone()


@pytest.mark.parametrize(("u", "v"), [(2, 0), (-2, 0), (0, 3), (0, -3), (1, -2)])
def test_warping_the_target_by_the_flow_looks_like_the_source(u: int, v: int) -> None:
    a = torch.rand(2, 3, 12, 16)
    b = torch.roll(a, (v, u), dims=(2, 3))  # everything moves by u to the right and v down
    out = warp(b, constant_flow(u, v, (12, 16), batch=2))
    torch.testing.assert_close(out[..., 3:-3, 3:-3], a[..., 3:-3, 3:-3], rtol=0, atol=1e-5)


def test_zero_flow_is_the_identity() -> None:
    x = torch.rand(1, 2, 5, 9)
    torch.testing.assert_close(warp(x, torch.zeros(1, 2, 5, 9)), x, rtol=0, atol=1e-6)


def test_values_between_cells_are_bilinear() -> None:
    x = torch.tensor([[0.0, 10.0], [100.0, 110.0]]).view(1, 1, 2, 2)
    assert warp(x, constant_flow(0.25, 0.5, (2, 2))).flatten()[0].item() == pytest.approx(52.5, abs=1e-3)


def test_the_border_repeats_outside_of_the_map() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert warp(x, constant_flow(2.5, 7.0, (1, 4))).flatten().tolist() == pytest.approx([2.5, 3, 3, 3], abs=1e-5)


def test_a_margin_is_where_the_map_goes_on_beyond_the_flow() -> None:
    wide = torch.rand(1, 2, 9, 12)
    flow = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 5, 8)
    rows, left = wide[:, :, 0:5], wide[..., 3:11]
    torch.testing.assert_close(warp(wide, flow, 2), (rows[..., 3:11] + rows[..., 4:12]) / 2)
    assert not torch.allclose(warp(left[:, :, 2:7], flow), warp(wide, flow, 2))
    assert inside(flow, 2).all() and not inside(flow, 1).any(dim=-1).all() and inside(flow)[..., 2:, :6].all()


def test_each_sample_moves_by_its_own_flow() -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(2, 1, 1, 8)
    out = warp(x, torch.cat((constant_flow(1, 0, (1, 8)), constant_flow(-1, 0, (1, 8)))))
    assert out[:, 0, 0, 3].tolist() == pytest.approx([4, 2], abs=1e-5)


def test_warp_computes_in_fp32_under_autocast_and_keeps_the_type() -> None:
    x = torch.arange(256.0).view(1, 1, 1, 256).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = warp(x, constant_flow(1, 0, (1, 256)))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[..., :-1], x[..., 1:])


def test_gradients_of_warp_agree_with_finite_differences(in_float64: None) -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    flow = (0.3 + 0.1 * torch.rand(1, 2, 4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (x, flow))


def test_a_flow_that_is_not_a_number_gives_no_number_and_lets_the_process_live() -> None:
    """grid_sample's own border padding crashed here: its backward writes outside of memory on CPUs (torch 2.13)."""
    code = """if True:
        import torch
        from mcjepa.model.warp import warp
        flow = torch.zeros(2, 2, 16, 16)
        flow[:, :, 3] = float("nan")
        flow.requires_grad_()
        image = torch.rand(2, 3, 16, 16, requires_grad=True)
        out = warp(image, flow)
        out.sum().backward()
        print(out[:, :, 3].isnan().all().item(), out[:, :, 4:].isfinite().all().item())
    """
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-500:]
    assert answer.stdout.split() == ["True", "True"]


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_multiplies_the_values_and_crops(factor: int) -> None:
    size = (3 * factor - 1, 5 * factor)
    up = upsample_flow(constant_flow(1.5, -2, (3, 5)), size, factor)
    torch.testing.assert_close(up, constant_flow(1.5 * factor, -2 * factor, size))


def test_upsampled_cells_stay_where_they_were() -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 2, 4, 8)  # a ramp of one per cell
    up = upsample_flow(x, (14, 31), 4) / 4
    centres = (torch.arange(31.0) + 0.5) / 4 - 0.5  # pixel centres in cells
    torch.testing.assert_close(up[0, 0, 7, 2:29], centres[2:29])


def test_inside_takes_the_last_pixel_and_nothing_beyond() -> None:
    flow = torch.zeros(1, 2, 2, 3)
    flow[0, 0, 0] = torch.tensor([2.0, 1.001, 0.0])
    flow[0, 1, 1] = torch.tensor([-1.0, -1.1, 0.5])
    assert inside(flow)[0, 0].tolist() == [[True, False, True], [True, False, False]]


def test_consistent_flows_are_visible_where_they_stay_in_the_frame() -> None:
    mask = visible(constant_flow(2, 0, (3, 6)), constant_flow(-2, 0, (3, 6)), scale=0.01, offset=0.5)
    assert mask.shape == (1, 1, 3, 6) and mask.dtype == torch.float32
    assert mask[0, 0].tolist() == [[1, 1, 1, 1, 0, 0]] * 3


def test_a_covered_pixel_is_not_visible() -> None:
    there = torch.zeros(1, 2, 1, 8)
    there[0, 0, 0, :2] = 3  # a thing at 0 and 1 moves on top of 3 and 4
    back = torch.zeros(1, 2, 1, 8)
    back[0, 0, 0, 3:5] = -3
    assert visible(there, back, scale=0.01, offset=0.5).flatten().tolist() == [1, 1, 1, 0, 0, 1, 1, 1]


def test_the_tolerance_of_the_two_way_test_is_the_documented_one() -> None:
    there = constant_flow(3, 4, (9, 9))  # |f|^2 = 25
    for error, seen in ((0.97, 1), (0.98, 0)):  # 0.01 (25 + 20.1) + 0.5 = 0.951 lies between their squares
        back = constant_flow(-3 + error, -4, (9, 9))
        assert visible(there, back, scale=0.01, offset=0.5)[0, 0, 0, 0] == seen
    small = constant_flow(0, 0, (9, 9))
    assert visible(small, constant_flow(0.70, 0, (9, 9)), scale=0.01, offset=0.5).min() == 1
    assert visible(small, constant_flow(0.72, 0, (9, 9)), scale=0.01, offset=0.5).max() == 0


def test_no_gradient_passes_the_two_way_test() -> None:
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    assert not visible(flow, flow, scale=0.01, offset=0.5).requires_grad


def test_a_range_map_counts_what_lands_on_each_cell() -> None:
    assert torch.equal(range_map(torch.zeros(2, 2, 3, 5)), torch.ones(2, 1, 3, 5))
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0] = torch.tensor([0.0, 1.0, -0.25, 9.0])  # the second lands on the third cell, the third beside it
    assert range_map(flow).flatten().tolist() == pytest.approx([1.0, 0.25, 1.75, 0.0])


def test_a_range_map_keeps_samples_apart_and_loses_what_leaves() -> None:
    flow = torch.cat((constant_flow(1, 0, (4, 4)), constant_flow(0, -1.5, (4, 4))))
    counts = range_map(flow)
    assert counts[0].sum().item() == 12 and counts[0, 0, :, 0].tolist() == [0, 0, 0, 0]
    assert counts[1, 0, :, 0].tolist() == pytest.approx([1, 1, 0.5, 0])


def test_reached_is_what_the_other_frame_lands_on_and_stays_inside() -> None:
    there, back = constant_flow(2, 0, (4, 8)), constant_flow(-2, 0, (4, 8))
    there.requires_grad_()
    mask = reached(there, back, 0.2)
    assert mask[0, 0, 0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0] and not mask.requires_grad
    cover = torch.zeros(1, 2, 1, 4)
    cover[0, 0, 0, 3] = -1.0  # the last pixel of b belongs to the third of a, so nothing of b is the last of a
    assert reached(torch.zeros(1, 2, 1, 4), cover, 0.2).flatten().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_flow_that_is_no_number_lands_nowhere_else(wrong: float) -> None:
    flow = constant_flow(0, 0, (2, 3))
    flow[0, :, 0, 0] = wrong
    assert range_map(flow).flatten().tolist() == [1.0] * 6


def test_examples_in_the_docstrings_of_the_model_hold() -> None:
    names = [module.name for module in pkgutil.walk_packages(mcjepa.model.__path__, "mcjepa.model.")]
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert {name for name, result in results.items() if result.failed} == set()
    assert {name for name, result in results.items() if result.attempted} >= {
        "mcjepa.model.warp",
        "mcjepa.model.mcjepa",
    }

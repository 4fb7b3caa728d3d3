"""The banded correlation against the loop that defines it: values, gradients, sizes, and which way is which."""

from __future__ import annotations

import pytest
import torch

from mcjepa.model.correlation import correlate, correlate_loop

SIZES = [(2, 3, 5, 7, 2), (1, 4, 9, 3, 4), (2, 2, 3, 9, 4), (1, 1, 1, 1, 1), (1, 5, 2, 2, 3), (3, 8, 16, 12, 4)]
# Longer rows are cut into stretches: 104 into fours of 26, 67 (a prime) with surplus cells, 70 with a wide window.
SIZES += [(2, 3, 3, 104, 4), (1, 3, 2, 67, 4), (1, 2, 2, 70, 12), (1, 2, 3, 67, 1)]
# Maps are worked on in blocks: of rows where one image is large, of images where they are small.
SIZES += [(2, 96, 20, 70, 4), (5, 64, 8, 20, 4)]


@pytest.mark.parametrize(("batch", "channels", "height", "width", "search_range"), SIZES)
def test_banded_equals_the_loop_in_values_and_gradients(
    batch: int, channels: int, height: int, width: int, search_range: int
) -> None:
    shape = (batch, channels, height, width)
    left, right = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(batch, (2 * search_range + 1) ** 2, height, width, dtype=torch.float64)
    results = []
    for function in (correlate, correlate_loop):
        out = function(left, right, search_range)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (left, right))))
    assert results[0][0].shape == weight.shape
    for banded, looped in zip(*results, strict=True):
        torch.testing.assert_close(banded, looped, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (1, 2)])
def test_gradients_agree_with_finite_differences(height: int, width: int) -> None:
    left, right = (torch.randn(2, 2, height, width, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: correlate(a, b, 2), (left, right))


def test_any_memory_layout_gives_the_same() -> None:
    left, right = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    strided = torch.randn(2, 3, 6, 10)[..., ::2].copy_(left)
    out = correlate(strided, right.to(memory_format=torch.channels_last), 2)
    torch.testing.assert_close(out, correlate_loop(left, right, 2))


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (-3, 0), (0, 2), (0, -2), (1, -3)])
def test_a_known_shift_peaks_at_its_channel(dx: int, dy: int) -> None:
    left = torch.randn(1, 32, 12, 14)
    right = torch.roll(left, (dy, dx), dims=(2, 3))  # what is at (x, y) on the left is at (x + dx, y + dy) on the right
    best = correlate(left, right, 3)[:, :, 3:-3, 3:-3].argmax(1)
    assert best.unique().tolist() == [(dy + 3) * 7 + dx + 3]


def test_two_columns_by_hand() -> None:
    left = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)  # columns (1, 3) and (2, 4)
    right = torch.tensor([[5.0, 6.0], [7.0, 8.0]]).view(1, 2, 1, 2)  # columns (5, 7) and (6, 8)
    out = correlate(left, right, 1)[0, :, 0]
    still, to_the_right, to_the_left = 4, 5, 3
    assert out[still].tolist() == [(1 * 5 + 3 * 7) / 2, (2 * 6 + 4 * 8) / 2]
    assert out[to_the_right].tolist() == [(1 * 6 + 3 * 8) / 2, 0]
    assert out[to_the_left].tolist() == [0, (2 * 5 + 4 * 7) / 2]
    assert out[:3].abs().max() == 0 and out[6:].abs().max() == 0


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\) and \(1, 2, 3, 5\)"):
        correlate(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), 1)


def test_bf16_maps_correlate_in_bf16() -> None:
    left, right = torch.randn(1, 16, 6, 6), torch.randn(1, 16, 6, 6)
    out = correlate(left.bfloat16(), right.bfloat16(), 2)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), correlate_loop(left, right, 2), rtol=0.05, atol=0.05)


def test_gradients_of_autocast_training_come_in_the_maps_types() -> None:
    left = torch.randn(1, 4, 5, 5, requires_grad=True)
    right = torch.randn(1, 4, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = correlate(left.bfloat16(), right.bfloat16(), 2)
    out.float().square().sum().backward()
    reference = torch.autograd.grad(correlate_loop(left, right, 2).square().sum(), (left, right))
    assert left.grad is not None and right.grad is not None
    torch.testing.assert_close(left.grad, reference[0], rtol=0.1, atol=0.1)
    torch.testing.assert_close(right.grad, reference[1], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("channels", [768, 1])
def test_fp16_maps_correlate_where_the_sum_over_channels_is_beyond_fp16(channels: int) -> None:
    """Features of 10: the sum over 768 channels is 76,800, the largest number of fp16 is 65,504."""
    generator = torch.Generator().manual_seed(0)
    exact = [
        (10 + torch.randn(1, channels, 6, 5, generator=generator, dtype=torch.float64)).half().double() for _ in "ab"
    ]
    weight = (1000 + 100 * torch.randn(1, 81, 6, 5, generator=generator, dtype=torch.float64)).half().double()
    weight = weight if channels > 1 else weight / 100  # of few channels the gradient itself would be beyond fp16
    found = []
    for function, dtype in ((correlate, torch.float16), (correlate_loop, torch.float64)):
        left, right = (x.to(dtype).requires_grad_() for x in exact)
        out = function(left, right, 4)
        found.append((out, *torch.autograd.grad(out, (left, right), weight.to(dtype))))
    for half, double in zip(*found, strict=True):
        assert half.dtype == torch.float16 and half.isfinite().all()
        torch.testing.assert_close(half.double(), double, rtol=4e-3, atol=4e-3 * double.abs().max().item())

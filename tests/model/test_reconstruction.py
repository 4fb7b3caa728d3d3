"""The reconstruction term, its SSIM and its census distance."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcjepa.model.config import LossConfig
from mcjepa.model.losses.reconstruction import census_distance, reconstruction_loss, ssim

NOTHING = LossConfig(photometric_l1=0.0, photometric_l2=0.0, photometric_ssim=0.0, photometric_census=0.0)
PARTS = ("photometric_l1", "photometric_l2", "photometric_ssim", "photometric_census")


def only(part: str, weight: float = 1.0) -> LossConfig:
    return replace(NOTHING, **{part: weight})  # type: ignore[arg-type]


def left_half(size: int) -> Tensor:
    mask = torch.ones(1, 1, size, size)
    mask[..., size // 2 :] = 0
    return mask


def test_ssim_of_equal_images_is_one() -> None:
    image = torch.rand(2, 3, 6, 7)
    torch.testing.assert_close(ssim(image, image), torch.ones(2, 3, 6, 7))


def test_ssim_of_flat_images_by_hand() -> None:
    a, b = torch.full((1, 3, 5, 5), 0.2), torch.full((1, 3, 5, 5), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)  # no variance: only the luminance is left
    torch.testing.assert_close(ssim(a, b), torch.full((1, 3, 5, 5), expected), rtol=1e-3, atol=0)


def test_ssim_of_one_window_by_hand() -> None:
    a, b = torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3, 3)
    a[..., 1, 1], b[..., 1, 1], b[..., 0, 0] = 0.9, 0.9, 0.9
    mean_a, mean_b, square = 0.1, 0.2, 0.81
    var_a, var_b = square / 9 - mean_a**2, 2 * square / 9 - mean_b**2
    cov = square / 9 - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
    bottom = (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert ssim(a, b)[0, 0, 1, 1].item() == pytest.approx(top / bottom, rel=1e-4)


def test_ssim_is_symmetric_and_lower_for_noisier_images() -> None:
    image, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    little, much = ssim(image, image + 0.05 * noise), ssim(image, image + 0.4 * noise)
    torch.testing.assert_close(little, ssim(image + 0.05 * noise, image))
    assert 1 > little.mean() > much.mean()


def test_census_of_a_brightened_image_is_nothing() -> None:
    image = 0.8 * torch.rand(1, 3, 16, 16)
    assert census_distance(image, image + 0.15).max() < 1e-4
    assert census_distance(image, torch.rand(1, 3, 16, 16))[..., 3:-3, 3:-3].mean() > 0.3


def test_census_of_random_images_equals_a_plain_loop() -> None:
    """Grey by luma, nothing within 3 px of the border: UFlow's and ARFlow's form."""
    a, b = torch.rand(2, 1, 3, 11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(11, 13, dtype=torch.float64)

    def step(image: torch.Tensor, y: int, x: int, dy: int, dx: int) -> float:
        red, green, blue = image[0, :, y + dy, x + dx] - image[0, :, y, x]
        difference = 255 * float(0.299 * red + 0.587 * green + 0.114 * blue)
        return difference / (0.81 + difference**2) ** 0.5

    window = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    for y, x in itertools.product(range(3, 8), range(3, 10)):
        apart = [(step(a, y, x, *d) - step(b, y, x, *d)) ** 2 for d in window]
        expected[y, x] = sum(q / (0.1 + q) for q in apart) / 49
    torch.testing.assert_close(census_distance(a, b)[0, 0], expected)
    assert census_distance(a[..., :6], b[..., :6]).abs().max() == 0  # smaller than a window


def test_census_of_one_bright_pixel_by_hand() -> None:
    flat, spot = torch.zeros(1, 3, 15, 15), torch.zeros(1, 3, 15, 15)
    spot[..., 7, 7] = 0.01  # 2.55 grey levels
    ternary = 2.55 / (0.81 + 2.55**2) ** 0.5
    differs = ternary**2 / (0.1 + ternary**2)
    distance = census_distance(flat, spot)[0, 0]
    assert distance[7, 7].item() == pytest.approx(differs * 48 / 49, rel=1e-4)  # all but itself differ
    assert distance[7, 9].item() == pytest.approx(differs / 49, rel=1e-4)  # one neighbour differs
    assert distance[7, 11].item() == 0  # outside of the 7x7 window


def test_a_constant_difference_by_hand() -> None:
    image = torch.full((1, 3, 4, 4), 0.5)
    guess, mask = image + torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.ones(1, 1, 4, 4)
    l1, l2 = 0.2, (0.01 + 0.04 + 0.09) / 3
    assert reconstruction_loss(image, guess, mask, only("photometric_l1")).item() == pytest.approx(l1)
    assert reconstruction_loss(image, guess, mask, only("photometric_l2", 2.0)).item() == pytest.approx(2 * l2)
    similar = [(2 * 0.5 * x + 1e-4) / (0.25 + x * x + 1e-4) for x in (0.6, 0.7, 0.8)]
    dissimilarity = sum((1 - s) / 2 for s in similar) / 3
    whole = reconstruction_loss(image, guess, mask, LossConfig())
    assert whole.item() == pytest.approx(l1 + l2 + dissimilarity, rel=1e-3)


@pytest.mark.parametrize("part", PARTS)
def test_equal_images_cost_nothing(part: str) -> None:
    image = torch.rand(2, 3, 9, 9)
    loss = reconstruction_loss(image, image.clone(), torch.ones(2, 1, 9, 9), only(part))
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("part", "reach_px"), zip(PARTS, (0, 0, 1, 3), strict=True))
def test_hidden_pixels_beyond_a_window_s_reach_change_nothing(part: str, reach_px: int) -> None:
    image, guess, mask = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), left_half(16)
    changed = guess.clone()
    changed[..., 8 + reach_px :] = torch.rand(1, 3, 16, 8 - reach_px)
    before, after = (reconstruction_loss(image, x, mask, only(part)) for x in (guess, changed))
    assert before > 0
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("part", PARTS)
def test_gradients_agree_with_finite_differences(in_float64: None, part: str) -> None:
    image = torch.rand(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    scale = 0.01 if part == "photometric_census" else 1.0  # at 255 grey levels its steps are too steep to difference
    guess = (image.detach() + scale * (0.2 + 0.5 * torch.rand_like(image))).requires_grad_()
    mask = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: reconstruction_loss(a, b, mask, only(part)), (image, guess))


def test_census_is_a_mean_of_the_pixels_whose_window_is_whole() -> None:
    image, guess = torch.rand(2, 1, 3, 12, 10)
    mask = (torch.rand(1, 1, 12, 10) < 0.7).float()
    distance = census_distance(image, guess)[..., 3:-3, 3:-3]
    expected = (distance * mask[..., 3:-3, 3:-3]).sum() / mask[..., 3:-3, 3:-3].sum()
    found = reconstruction_loss(image, guess, mask, only("photometric_census"))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6) and found.item() > 0.3
    tiny = torch.rand(2, 1, 3, 5, 20)
    assert reconstruction_loss(*tiny, torch.ones(1, 1, 5, 20), only("photometric_census")).item() == 0


@pytest.mark.parametrize("part", PARTS)
def test_nothing_visible_gives_zero_and_finite_gradients(part: str) -> None:
    guess = torch.rand(1, 3, 8, 8, requires_grad=True)
    loss = reconstruction_loss(torch.rand(1, 3, 8, 8), guess, torch.zeros(1, 1, 8, 8), only(part))
    loss.backward()
    assert loss.item() == 0
    assert guess.grad is not None and guess.grad.abs().max() == 0


def test_flat_and_equal_images_have_finite_gradients() -> None:
    guess = torch.zeros(1, 3, 8, 8, requires_grad=True)
    config = replace(LossConfig(), photometric_census=1.0)
    reconstruction_loss(torch.zeros(1, 3, 8, 8), guess, torch.ones(1, 1, 8, 8), config).backward()
    assert guess.grad is not None and guess.grad.isfinite().all()

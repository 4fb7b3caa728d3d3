"""Reconstruction term (method section 2.2): one image predicted by warping the other.

    d(I, J) = w1 |I - J| + w2 (I - J)^2 + ws (1 - SSIM(I, J)) / 2 + wc census(I, J),   mean over visible pixels

SSIM over 3x3 windows by a mean filter (Wang et al. 2004, as in ARFlow); the census distance is the soft Hamming
distance of 7x7 ternary census transforms (Meister et al. 2018, as in UFlow: grey by luma, and nothing where the window
leaves the image), off by default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.model.config import LossConfig
from mcjepa.model.reduction import Summing, alongside, masked_mean, over_ranks

CENSUS_REACH = 3
"""Pixels that a census window reaches from its middle."""
LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601), as UFlow and ARFlow take it."""


def _mean_3x3(x: Tensor) -> Tensor:
    """Mean over 3x3 windows, (B, C, H, W) to the same, the border reflected; sums of shifted views, which on CPUs
    take a fifth of `avg_pool2d`'s time."""
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def ssim(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Structural similarity over 3x3 windows for images in [0, 1], (B, 3, H, W); 1 where equal."""
    c1, c2 = 0.01**2, 0.03**2
    maps = (a_B3HW, b_B3HW, a_B3HW.square() + b_B3HW.square(), a_B3HW * b_B3HW)
    mean_a, mean_b, mean_squares, mean_product = _mean_3x3(torch.cat(maps, dim=1)).chunk(4, dim=1)
    squares, product = mean_a.square() + mean_b.square(), mean_a * mean_b
    variances, covariance = mean_squares - squares, mean_product - product
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def census_distance(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Soft Hamming distance of the census transforms of the grey images.

    Returns:
        (B, 1, H, W) in [0, 1); 0 within `CENSUS_REACH` of the border, where a window would see padding (images smaller
        than a window have nothing else).
    """
    reach, window = CENSUS_REACH, 2 * CENSUS_REACH + 1

    def transform(image: Tensor) -> Tensor:
        grey = 255 * sum(weight * colour for weight, colour in zip(LUMA, image.split(1, dim=1), strict=True))
        inner = (grey.shape[-2] - 2 * reach, grey.shape[-1] - 2 * reach)
        middle = grey[..., reach : reach + inner[0], reach : reach + inner[1]]
        difference = F.unfold(grey, window).view(grey.shape[0], window * window, *inner) - middle
        return difference / torch.sqrt(0.81 + difference.square())

    if min(a_B3HW.shape[-2:]) < window:
        return torch.zeros_like(a_B3HW[:, :1])
    squared = (transform(a_B3HW) - transform(b_B3HW)).square()
    return F.pad((squared / (0.1 + squared)).mean(1, keepdim=True), (reach,) * 4)


@over_ranks
def reconstruction_loss(
    image_B3HW: Tensor, guess_B3HW: Tensor, mask_B1HW: Tensor, config: LossConfig
) -> Summing[Tensor]:
    """Photometric distance of an image and its reconstruction over the visible pixels.

    Args:
        image_B3HW: RGB in [0, 1].
        guess_B3HW: the other frame, warped, same shape.
        mask_B1HW: 1 where visible, without gradient.
        config: the weights of its parts.

    Returns:
        Scalar, fp32.
    """
    image, guess = image_B3HW.float(), guess_B3HW.float()
    difference = image - guess
    distance = torch.zeros_like(difference[:, :1])
    if config.photometric_l1:
        distance = distance + config.photometric_l1 * difference.abs().mean(1, keepdim=True)
    if config.photometric_l2:
        distance = distance + config.photometric_l2 * difference.square().mean(1, keepdim=True)
    if config.photometric_ssim:
        dissimilarity = ((1 - ssim(image, guess)) / 2).clamp(0, 1)
        distance = distance + config.photometric_ssim * dissimilarity.mean(1, keepdim=True)
    means = {"distance": masked_mean.begin(distance, mask_B1HW)}
    if config.photometric_census:  # a mean of its own: the border, where it says nothing, does not count as equal
        inner, within = torch.zeros_like(mask_B1HW), slice(CENSUS_REACH, -CENSUS_REACH)
        inner[..., within, within] = mask_B1HW[..., within, within]
        means["census"] = masked_mean.begin(census_distance(image, guess), inner)

    def add_up(found: dict[str, Tensor]) -> Tensor:
        census = config.photometric_census * found["census"] if "census" in found else 0.0
        return found["distance"] + census

    return alongside(means).then(add_up)

"""Self-supervision term (method section 2.12): a student that sees less of a pair learns the flow of the whole pair.

    mean over visible p and both components of (|f_student(p) - T f(p)| + 0.01)^q

The teacher is the same network on the whole pair, without gradient; T cuts a window out of its flow and enlarges it, as
the student's pictures are cut. Liu et al. 2020 (ARFlow) and Stone et al. 2021 (SMURF).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.model.config import LossConfig
from mcjepa.model.losses.reconstruction import LUMA

EPSILON_PX = 0.01
"""Keeps the slope of exponents below 1 finite [D: ARFlow]."""


def draw_windows(pairs: int, size: tuple[int, int], form: LossConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where a student looks, drawn for every pair.

    Args:
        pairs: B.
        size: height and width of the pair, px.
        form: its `student_window` and `student_size`.
        device: of the result.

    Returns:
        The grid of `cut`, (B, h, w, 2), h and w the pair's times `student_size`; and the enlargement of the pictures
        along the width and along the height, (B, 2, 1, 1).
    """
    low, high = form.student_window
    wanted, pairs = pairs, max(pairs, 1)  # `affine_grid` takes no empty batch
    share = low + (high - low) * torch.rand(pairs, device=device)
    shift = (2 * torch.rand(2, pairs, device=device) - 1) * (1 - share)
    height, width = (max(1, round(side * form.student_size)) for side in size)
    none = torch.zeros_like(share)
    window = torch.stack((share, none, shift[0], none, share, shift[1]), dim=1).view(pairs, 2, 3)
    grid = F.affine_grid(window, [pairs, 1, height, width], align_corners=False)
    zoom = share.new_tensor((width / size[1], height / size[0])) / share.view(-1, 1)
    return grid[:wanted], zoom[:wanted].view(-1, 2, 1, 1)


def cut(map_BCHW: Tensor, grid_Bhw2: Tensor) -> Tensor:
    """The windows of a map of any size, bilinear: (B, C, h, w)."""
    grid = grid_Bhw2.to(map_BCHW.dtype)
    return F.grid_sample(map_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter(images_B3HW: Tensor, factors_3B: Tensor) -> Tensor:
    """Images of changed brightness, contrast (around the mean grey) and saturation, one factor each an image."""
    brightness, contrast, saturation = factors_3B.view(3, -1, 1, 1, 1)
    luma = images_B3HW.new_tensor(LUMA).view(1, 3, 1, 1)
    images = images_B3HW * brightness
    grey = (images * luma).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return (mean + contrast * (grey + saturation * (images - grey) - mean)).clamp(0, 1)


def flow_distance(student_B2hw: Tensor, teacher_B2hw: Tensor, exponent: float) -> Tensor:
    """(|d| + 0.01)^q of both components of the difference of two flows in px: (B, 2, h, w), fp32."""
    distance: Tensor = ((student_B2hw.float() - teacher_B2hw.float()).abs() + EPSILON_PX) ** exponent
    return distance

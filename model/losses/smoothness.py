"""Smoothness term (method section 2.3): flow changes where the image does.

    mean over d in {x, y} and p of  exp(-edge * mean_c |d_d I(p)|) |d_d^k f(p)|,   k = 1 or 2

with the flow divided by min(h, w), the scale at which the default weight of 75 is meant (ARFlow).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcjepa.model.reduction import masked_means


def smoothness_loss(flow_B2hw: Tensor, image_B3hw: Tensor, edge: float, order: int) -> Tensor:
    """Edge-aware smoothness.

    Args:
        flow_B2hw: flow in cells of its own grid, (B, 2, h, w).
        image_B3hw: the image on the same grid, RGB in [0, 1].
        edge: weight of the image's gradient.
        order: 1 for first differences of the flow, 2 for second ones.

    Returns:
        Scalar, fp32; 0 for constant flow, and for order 2 for any affine flow.
    """
    flow = flow_B2hw.float() / min(flow_B2hw.shape[-2:])
    steps = []
    for axis in (-1, -2):
        image_step = image_B3hw.float().diff(dim=axis).abs().mean(1, keepdim=True)
        weight = (-edge * image_step).exp()
        flow_step = flow.diff(dim=axis, n=order)
        if flow_step.numel() == 0:
            continue
        if order == 2:
            weight = weight.narrow(axis, 1, weight.shape[axis] - 1)
        steps.append(weight * flow_step.abs())
    if not steps:
        return flow.sum() * 0.0
    return masked_means(steps, [torch.ones_like(step[:, :1]) for step in steps]).sum() / 2

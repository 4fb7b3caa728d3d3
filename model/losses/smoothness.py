"""Smoothness term (method section 2.3): flow changes where the image does.

    mean over d in {x, y} and p of  exp(-edge * mean_c |d_d I(p)|) |d_d^k f(p)| / k',   k = 1 or 2, k' = 2 or 1

with f the full-size flow over min(H, W), and first differences halved: ARFlow's form, in which the default weight of
75 is meant. The same weight on differences of the stride-4 grid is 4 to 8 times as strong at first order and 9 to 15
times at second order; there the true flow costs more than its mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcjepa.model.reduction import Summing, masked_means, over_ranks


@over_ranks
def smoothness_loss(flow_B2HW: Tensor, image_B3HW: Tensor, edge: float, order: int) -> Summing[Tensor]:
    """Edge-aware smoothness.

    Args:
        flow_B2HW: flow at the image's size, in pixels, (B, 2, H, W).
        image_B3HW: the image, RGB in [0, 1].
        edge: weight of the image's gradient.
        order: 1 for first differences of the flow, 2 for second ones.

    Returns:
        Scalar, fp32; 0 for constant flow, and for order 2 for any affine flow.
    """
    flow = flow_B2HW.float() / (min(flow_B2HW.shape[-2:]) * (2 if order == 1 else 1))
    steps = []
    for axis in (-1, -2):
        image_step = image_B3HW.float().diff(dim=axis).abs().mean(1, keepdim=True)
        weight = (-edge * image_step).exp()
        flow_step = flow.diff(dim=axis, n=order)
        if flow_step.shape[axis] == 0:
            continue
        if order == 2:
            weight = weight.narrow(axis, 1, weight.shape[axis] - 1)
        steps.append(weight * flow_step.abs())
    if not steps:
        return Summing([], lambda _: flow.sum() * 0.0)
    means = masked_means.begin(steps, [torch.ones_like(step[:, :1]) for step in steps])
    return means.then(lambda found: found.sum() / 2)

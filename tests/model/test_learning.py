"""A tiny model learns a translation from the losses alone, with the right sign and size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, LossConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA

CONFIG = ModelConfig(
    encoder=EncoderConfig(
        stem_channels=(8, 16),
        stem_activation="gelu",
        stage_channels=(16, 16, 16, 16),
        depths=(1, 1, 1, 1),
        drop_path=0.0,
        init_std=0.0,
    ),
    flow=FlowConfig(
        search_range=2,
        widths=(16, 16, 8),
        width_factor=1.0,
        context_widths=(8, 8, 8),
        context_dilations=(1, 2, 1),
        projected_channels=8,
        match="cosine",
        coarsest_stride=16,
    ),
    expander=ExpanderConfig(widths=(16, 16)),
    loss=LossConfig(
        photometric_l1=0.15, photometric_l2=0.0, photometric_ssim=0.85, photometric_scales=(1.0, 1.0, 1.0, 1.0)
    ),
)
WEIGHTS = {"reconstruction": 1.0, "regression": 0.1, "smoothness": 8.0, "cycle": 0.02, "vc": 1.0}


@pytest.mark.slow
def test_a_tiny_model_learns_the_flow_of_one_moving_scene() -> None:
    generator = torch.Generator().manual_seed(3)
    coarse = F.interpolate(torch.rand(1, 3, 20, 20, generator=generator), size=(120, 120), mode="bicubic")
    fine = F.interpolate(torch.rand(1, 3, 60, 60, generator=generator), size=(120, 120), mode="bicubic")
    scene = (0.6 * coarse + 0.4 * fine).clamp(0, 1)
    u, v = 5, -3  # frame 1 sees the scene from further left and below: things move right and up
    frame0, frame1 = scene[..., 12:108, 12:108], scene[..., 12 - v : 108 - v, 12 - u : 108 - u]
    model = MCJEPA(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for _ in range(90):
        loss = model((frame0, frame1), None, WEIGHTS).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        there, back = (model.eval().estimate_flow(*frames) for frames in ((frame0, frame1), (frame1, frame0)))
    truth = torch.tensor([float(u), float(v)]).view(1, 2, 1, 1)
    inner = (..., slice(12, -12), slice(12, -12))
    for flow, expected in ((there, truth), (back, -truth)):
        error = (flow - expected)[inner].square().sum(1).sqrt()
        assert error.mean().item() < 1.0  # of 5.8 px
        assert error.median().item() < 0.7

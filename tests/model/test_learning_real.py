"""From random weights, without labels, a small model learns the flow of one real pair; `tiny` stays finite in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.corpora.flow.files import read_flow
from mcjepa.data_prep.decode.images import read_image
from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, LossConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = ModelConfig(
    encoder=EncoderConfig(size="nano", stem_activation="gelu", drop_path=0.0, init_std=0.0),
    flow=FlowConfig(
        search_range=2,
        widths=(24, 24, 16, 16, 8),
        width_factor=1.0,
        context_widths=(16,) * 6,
        projected_channels=21,
        match="cosine",
        coarsest_stride=16,
    ),
    expander=ExpanderConfig(widths=(16, 16)),
    loss=LossConfig(
        photometric_l1=0.15,
        photometric_l2=0.0,
        photometric_ssim=0.85,
        photometric_scales=(1.0, 1.0, 1.0, 1.0),
        min_visible_share=0.7,
    ),
)
MOTION_WEIGHTS = {"regression": 0.1, "reconstruction": 1.0, "smoothness": 4.0, "cycle": 0.02, "vc": 1.0}
STEPS, LOOK_EVERY, PEAK_RATE = 300, 20, 1.5e-3
SINTEL, MIDDLEBURY = "flow/MPI-Sintel-complete/training", "flow/middlebury"
# Frames, flow, and how much smaller the frames are made.
SCENES = {
    "RubberWhale": (
        f"{MIDDLEBURY}/other-data/RubberWhale/frame10.png",
        f"{MIDDLEBURY}/other-data/RubberWhale/frame11.png",
        f"{MIDDLEBURY}/other-gt-flow/RubberWhale/flow10.flo",
        2,
    ),
    "alley_1": (
        f"{SINTEL}/clean/alley_1/frame_0002.png",
        f"{SINTEL}/clean/alley_1/frame_0003.png",
        f"{SINTEL}/flow/alley_1/frame_0002.flo",
        4,
    ),
}


def relative_error(model: MCJEPA, frames: list[Tensor], truth: Tensor, valid: Tensor, shrink: int) -> float:
    """EPE at the full size over the EPE of zero flow."""
    model.eval()
    with torch.no_grad():
        flow = model.estimate_flow(frames[0], frames[1])
    model.train()
    height, width = (shrink * side for side in flow.shape[-2:])
    flow = shrink * F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
    truth, valid = truth[..., :height, :width], valid[..., :height, :width]
    error, length = ((x.square().sum(1).sqrt() * valid).sum() for x in (flow - truth, truth))
    return float(error / length)


@pytest.mark.parametrize("name", list(SCENES))
def test_a_small_model_learns_the_flow_of_one_real_pair(name: str, sample_data: Path) -> None:
    first, second, flow_file, shrink = SCENES[name]
    images = [torch.from_numpy(read_image(sample_data / file, 10.0)) for file in (first, second)]
    frames = [F.avg_pool2d(image.permute(2, 0, 1).unsqueeze(0) / 255, shrink) for image in images]
    flow, known = read_flow(sample_data / flow_file)
    valid = torch.from_numpy(known).unsqueeze(0)
    truth = torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0).where(valid.unsqueeze(1), torch.zeros(()))
    model = MCJEPA(CONFIG)
    assert relative_error(model, frames, truth, valid, shrink) == pytest.approx(1.0)  # it starts at zero flow
    optimizer = torch.optim.AdamW(model.parameters())
    seen = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min((step + 1) / 60, (STEPS + 20 - step) / 160, 1.0)
        loss = model((frames[0], frames[1]), None, MOTION_WEIGHTS).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % LOOK_EVERY == 0:
            seen.append(round(relative_error(model, frames, truth, valid, shrink), 3))
            if seen[-1] < 0.6:
                return
    pytest.fail(f"EPE over zero flow's, every {LOOK_EVERY} steps: {seen}, expected below 0.6")


def test_fifty_joint_steps_of_tiny_at_batch_eight_stay_finite_in_bf16() -> None:
    """8 pairs and 8 images a step, the paper's encoder, estimator, weights and losses. A narrower expander and frames
    of 48 px keep it to a minute or two; so small, they are decoded from stride 32 on."""
    torch.set_num_threads(2)
    config = ModelConfig(flow=FlowConfig(coarsest_stride=32), expander=ExpanderConfig(widths=(1024, 1024, 1024)))
    model = MCJEPA(config)
    optimizer = torch.optim.AdamW(
        [
            {"params": [*model.encoder.parameters(), *model.expander.parameters()], "lr": 3e-4},
            {"params": model.flow_estimator.parameters(), "lr": 1e-4},
        ]
    )
    weights = {"regression": 0.1, "reconstruction": 0.1, "smoothness": 7.5, "cycle": 0.02, "vc": 0.1, "content": 1.0}
    scenes = F.interpolate(torch.rand(8, 3, 24, 24), size=(64, 64), mode="bicubic", align_corners=False).clamp(0, 1)
    losses = []
    for step in range(50):
        dx, dy = 1 + step % 7, step % 5
        pairs = scenes[..., 8:56, 8:56], scenes[..., 8 - dy : 56 - dy, 8 - dx : 56 - dx]
        views = scenes.flip(-1)[..., 8:56, 8:56], (scenes[..., 4:52, 4:52] * 0.9).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(pairs, views, weights)
        optimizer.zero_grad()
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert out.loss.isfinite() and norm.isfinite(), f"step {step}: {out.terms}"
        optimizer.step()
        losses.append(out.loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])

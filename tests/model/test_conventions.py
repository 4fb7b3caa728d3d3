"""Direction, sign and size of flow on a real photo moved by a known translation, rotation and zoom.

The flow points from t to t + 1 everywhere (`model.warp`). Every loss that compares frames must prefer the true flow
to no flow, to its negation and to the flow of the other direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.decode.images import read_image
from mcjepa.evals.flow.metrics import endpoint_error
from mcjepa.model.config import EncoderConfig, LossConfig
from mcjepa.model.encoder import Encoder
from mcjepa.model.losses.cycle import cycle_errors
from mcjepa.model.losses.reconstruction import reconstruction_loss
from mcjepa.model.losses.regression import regression_errors
from mcjepa.model.warp import upsample_flow, visible, warp

SIZE = 160
WRONG = ("zero", "negated", "swapped")


@dataclass(frozen=True)
class Motion:
    """A similarity about the frame's centre: p goes to zoom R p + shift."""

    shift_px: tuple[float, float] = (0.0, 0.0)
    turn_degrees: float = 0.0
    zoom: float = 1.0

    def matrix(self) -> Tensor:
        """2x3, for positions relative to the centre."""
        angle = math.radians(self.turn_degrees)
        cos, sin = self.zoom * math.cos(angle), self.zoom * math.sin(angle)
        return torch.tensor([[cos, -sin, self.shift_px[0]], [sin, cos, self.shift_px[1]]])

    def inverse(self) -> Tensor:
        """The way back, 2x3."""
        linear = torch.linalg.inv(self.matrix()[:, :2])
        return torch.cat((linear, -linear @ self.matrix()[:, 2:]), dim=1)


MOTIONS = {
    "translation": Motion(shift_px=(4.0, -2.5)),
    "rotation": Motion(turn_degrees=4.0),
    "zoom": Motion(zoom=1.06),
    "all": Motion(shift_px=(-3.0, 2.0), turn_degrees=-3.0, zoom=0.96),
}


@dataclass(frozen=True)
class Scene:
    """Two frames and both true flows, each (1, C, SIZE, SIZE)."""

    frame0: Tensor
    frame1: Tensor
    there: Tensor
    back: Tensor

    def flows(self, name: str) -> tuple[Tensor, Tensor]:
        """The true pair of flows, or a wrong one."""
        return {
            "true": (self.there, self.back),
            "zero": (torch.zeros_like(self.there), torch.zeros_like(self.back)),
            "negated": (-self.there, -self.back),
            "swapped": (self.back, self.there),
        }[name]


def flow_of(matrix: Tensor) -> Tensor:
    """(1, 2, SIZE, SIZE): where each pixel goes, minus where it is."""
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    moved = torch.einsum("ij,jhw->ihw", matrix, torch.stack((x, y, torch.ones_like(x))))
    return (moved - torch.stack((x, y))).unsqueeze(0)


@pytest.fixture(scope="module")
def photo(photos_of_packages: list[Path]) -> Tensor:
    """The middle of a photo that ships with scikit-image, (1, 3, 2 SIZE, 2 SIZE) in [0, 1]."""
    path = next(p for p in photos_of_packages if p.name == "coffee.png")
    pixels = torch.from_numpy(read_image(path, 10.0)).permute(2, 0, 1).unsqueeze(0) / 255
    top, left = ((side - 2 * SIZE) // 2 for side in pixels.shape[-2:])
    return pixels[..., top : top + 2 * SIZE, left : left + 2 * SIZE]


@pytest.fixture(params=list(MOTIONS))
def scene(request: pytest.FixtureRequest, photo: Tensor) -> Scene:
    """The photo's middle before and after a motion: what is at q in frame 1 was at the way back of q."""
    there, back = flow_of(MOTIONS[request.param].matrix()), flow_of(MOTIONS[request.param].inverse())
    margin = SIZE // 2
    whole = F.pad(back, (margin,) * 4)  # the flow on the photo's grid; what is cut away does not matter
    frame1 = warp(photo, whole)[..., margin:-margin, margin:-margin]
    return Scene(photo[..., margin:-margin, margin:-margin], frame1, there, back)


def true_mask(scene: Scene) -> Tensor:
    mask = visible(scene.there, scene.back, 0.01, 0.5)
    assert mask.mean() > 0.8
    return mask


@pytest.mark.parametrize(
    "form",
    [
        LossConfig(),
        LossConfig(photometric_l1=0.15, photometric_l2=0.0, photometric_ssim=0.85),
        LossConfig(photometric_l1=0.0, photometric_l2=0.0, photometric_ssim=0.0, photometric_census=1.0),
    ],
    ids=["paper", "arflow", "census"],
)
@pytest.mark.parametrize("scale", [1, 4])
def test_the_photometric_loss_is_lowest_at_the_true_flow(scene: Scene, form: LossConfig, scale: int) -> None:
    frame0, frame1, mask = (F.avg_pool2d(x, scale) for x in (scene.frame0, scene.frame1, true_mask(scene)))
    losses = {}
    for name in ("true", *WRONG):
        flow = F.avg_pool2d(scene.flows(name)[0], scale) / scale
        losses[name] = reconstruction_loss(frame0, warp(frame1, flow), mask, form).item()
    assert all(losses["true"] < 0.75 * losses[name] for name in WRONG), losses


def test_the_regression_and_cycle_terms_of_real_features_are_lowest_at_the_true_flow(scene: Scene) -> None:
    """The cycle term sees both flows: no flow at all comes home too, so one of the two is made wrong at a time."""
    encoder = Encoder(EncoderConfig(size="nano", init_std=0.0)).eval()
    with torch.no_grad():
        levels0, levels1 = (encoder(frame)[:3] for frame in (scene.frame0, scene.frame1))
    strides, mask = encoder.strides[:3], true_mask(scene)
    masks = [F.avg_pool2d(mask, stride) for stride in strides]

    def at_levels(flow: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(flow, stride) / stride for stride in strides]

    back = at_levels(scene.back)
    regression, cycle = {}, {}
    for name in ("true", *WRONG):
        there = at_levels(scene.flows(name)[0])
        guesses = [warp(x, flow) for x, flow in zip(levels1, there, strict=True)]
        regression[name] = regression_errors(levels0, guesses, masks).sum().item()
        cycle[name] = cycle_errors(levels0, there, back, masks).sum().item()
    assert all(regression["true"] < regression[name] for name in WRONG), regression
    assert all(cycle["true"] < 0.75 * cycle[name] for name in WRONG), cycle


def test_the_endpoint_error_of_the_true_flow_is_nothing_and_of_its_negation_twice_the_motion(scene: Scene) -> None:
    truth = scene.there[0].permute(1, 2, 0).numpy()
    length = float(((truth**2).sum(-1) ** 0.5).mean())
    assert endpoint_error(truth, truth).max() == 0
    assert endpoint_error(-truth, truth).mean() == pytest.approx(2 * length, rel=1e-5)
    assert endpoint_error(0 * truth, truth).mean() == pytest.approx(length, rel=1e-5)


def test_coarse_flow_brought_to_full_size_is_in_pixels_of_the_full_size(scene: Scene) -> None:
    coarse = F.avg_pool2d(scene.there, 4) / 4
    fine = upsample_flow(coarse, (SIZE, SIZE), 4)
    inner = (..., slice(8, -8), slice(8, -8))  # bilinear upsampling is exact for affine flow away from the border
    torch.testing.assert_close(fine[inner], scene.there[inner], rtol=1e-3, atol=1e-3)

"""The self-supervision term: the student's window, the flow that is seen in it, and what of it teaches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mcjepa.model.config import LossConfig, ModelConfig
from mcjepa.model.inputs import InputError
from mcjepa.model.losses.self_supervision import cut, draw_windows, flow_distance, jitter
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.warp import upsample_flow, visible, warp

CPU = torch.device("cpu")


def ramps(height: int, width: int) -> Tensor:
    """A map of every pixel's own position: x and y, (1, 2, H, W)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y)).unsqueeze(0).float()


def bilinear(map_CHW: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The map at positions x, y, each (h, w): four neighbours, the border repeated; plain numpy."""
    height, width = map_CHW.shape[1:]
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    a, b = x - left, y - top
    upper = (1 - a) * map_CHW[:, top, left] + a * map_CHW[:, top, right]
    return (1 - b) * upper + b * ((1 - a) * map_CHW[:, bottom, left] + a * map_CHW[:, bottom, right])


def test_the_whole_window_is_the_pair_itself() -> None:
    form = LossConfig(student_window=(1.0, 1.0))
    grid, zoom = draw_windows(2, (6, 9), form, CPU)
    images = torch.rand(2, 3, 6, 9)
    torch.testing.assert_close(cut(images, grid), images)
    assert zoom.tolist() == [[[[1.0]], [[1.0]]]] * 2


def test_a_window_lies_in_the_pair_and_its_cells_are_as_far_apart_as_the_zoom_says() -> None:
    form = LossConfig(student_window=(0.5, 0.9), student_size=0.75)
    grid, zoom = draw_windows(200, (40, 80), form, CPU)
    where = cut(ramps(40, 80).expand(200, 2, 40, 80), grid)
    assert where.shape == (200, 2, 30, 60)
    middle = where[..., 5:-5, 5:-5]  # the outermost may be repeated border
    torch.testing.assert_close(middle[:, :1].diff(dim=3) * zoom[:, :1], torch.ones(200, 1, 20, 49), atol=1e-4, rtol=0)
    torch.testing.assert_close(middle[:, 1:].diff(dim=2) * zoom[:, 1:], torch.ones(200, 1, 19, 50), atol=1e-4, rtol=0)
    assert 0.75 / 0.9 - 1e-5 <= zoom.min() < 0.86 and 1.45 < zoom.max() <= 1.5 + 1e-5
    assert where[:, 0, 0, 0].min() < 2 and where[:, 0, 0, -1].max() > 77  # they reach both sides
    assert where[:, 0].std((1, 2)).std() > 1  # of different sizes


def test_an_enlarged_window_of_a_moving_picture_moves_by_the_enlarged_flow() -> None:
    """Both frames are drawn as functions of the place, so nothing but the window's own arithmetic is at work."""
    place = ramps(48, 64)
    first, second = (torch.sin((place - shift) / 5).sum(1, keepdim=True) for shift in (0.0, 2.0))
    grid, zoom = draw_windows(1, (48, 64), LossConfig(student_window=(0.6, 0.6)), CPU)
    flow = zoom * cut(torch.full((1, 2, 48, 64), 2.0), grid)
    assert flow[0, :, 0, 0].tolist() == pytest.approx([2 / 0.6, 2 / 0.6])
    guess = warp(cut(second, grid), flow)
    error = (guess - cut(first, grid))[..., :-6, :-6].abs()
    assert error.max() < 0.02 < 0.2 < (warp(cut(second, grid), flow / 0.6) - cut(first, grid)).abs().max()


def test_jitter_by_hand() -> None:
    image = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1) * torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    bright = 1.1 * image
    grey = 0.299 * bright[:, 0] + 0.587 * bright[:, 1] + 0.114 * bright[:, 2]
    expected = torch.empty_like(image)
    for c in range(3):
        expected[:, c] = grey.mean() + 0.8 * (grey + 1.3 * (bright[:, c] - grey) - grey.mean())
    torch.testing.assert_close(jitter(image, torch.tensor([[1.1], [0.8], [1.3]])), expected)
    assert jitter(image, torch.tensor([[9.0], [1.0], [1.0]])).max() == 1


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, 2.01), (0.4, 2.01**0.4)])
def test_the_distance_by_hand(exponent: float, expected: float) -> None:
    distance = flow_distance(torch.tensor([[[[3.0]], [[-1.0]]]]), torch.ones(1, 2, 1, 1), exponent)
    assert distance.flatten().tolist() == pytest.approx([expected, expected])


@pytest.fixture
def student(tiny_config: ModelConfig) -> MCJEPA:
    """A tiny model with a flow of its own, and a student of an odd size."""
    torch.manual_seed(1)
    form = LossConfig(student_window=(0.7, 0.9), student_size=0.8, occlusion_offset=60.0, min_visible_share=0.0)
    model = MCJEPA(replace(tiny_config, loss=form))
    with torch.no_grad():
        for parameter in model.flow_estimator.residual.parameters():
            parameter.add_(0.005 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("where", "exponent"), [("visible", 0.4), ("lost", 1.0)])
def test_the_term_and_its_gradient_are_those_of_the_published_formula(
    student: MCJEPA, where: str, exponent: float
) -> None:
    form = replace(student.config.loss, student_where=where, student_exponent=exponent)  # type: ignore[arg-type]
    student.config = replace(student.config, loss=form)
    frames = tuple(torch.rand(2, 2, 3, 88, 96))
    torch.manual_seed(5)
    out = student(frames, None, {"self_supervision": 2.0})
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()

    torch.manual_seed(5)
    grid, zoom = draw_windows(2, (88, 96), form, CPU)
    scale, offset = form.occlusion_scale, form.occlusion_offset
    with torch.no_grad():
        flows = [student.estimate_flow(a, b) for a, b in (frames, frames[::-1])]
        masks = [visible(a, b, scale, offset) for a, b in (flows, flows[::-1])]
    x, y = (((grid[..., k] + 1) * side - 1).numpy() / 2 for k, side in ((0, 96), (1, 88)))
    cuts = [
        torch.stack([torch.from_numpy(bilinear(image.numpy(), x[i], y[i])).float() for i, image in enumerate(stack)])
        for stack in (*frames, *flows, *masks)
    ]
    small = torch.cat(cuts[:2])
    pyramid = student.forward_pyramid(small)
    swapped = [torch.cat((level[2:], level[:2])) for level in pyramid]
    guess = upsample_flow(student.flow_estimator(pyramid, swapped)[0], (70, 77), 4)
    difference = (guess - torch.cat(cuts[2:4]) * torch.cat((zoom, zoom))).abs()
    mask = torch.cat(cuts[4:])
    assert 0.05 < mask.mean() < 0.95
    count = 2 * float(mask.sum())
    if where == "lost":
        mask, count = mask * (1 - visible(guess, torch.cat((guess[2:], guess[:2])), scale, offset)), 2.0 * mask.numel()
        assert mask.mean() > 0.01
    expected = (mask * (difference + 0.01) ** exponent).sum() / count
    (2 * expected).backward()
    torch.testing.assert_close(out.terms["self_supervision"], expected.detach(), rtol=1e-4, atol=1e-6)
    assert {name.split(".")[0] for name, gradient in found.items() if gradient.abs().max() > 0} == {
        "encoder", "flow_estimator",
    }  # fmt: skip
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            assert (found[name] - parameter.grad).norm() <= 1e-3 * parameter.grad.norm(), name


def test_both_frames_of_a_pair_change_alike(student: MCJEPA) -> None:
    """A still pair stays still for the student: without a difference of the frames its two flows are one."""
    student.config = replace(student.config, loss=replace(student.config.loss, student_jitter=0.5))
    frame = torch.rand(2, 3, 88, 96)
    seen: list[Tensor] = []
    student.encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    student((frame, frame.clone()), None, {"self_supervision": 1.0})
    whole, pictures = seen
    assert torch.equal(pictures[:2], pictures[2:]) and pictures.shape == (4, 3, 70, 77)
    assert (pictures.mean((1, 2, 3)) - whole.mean((1, 2, 3))).abs().max() > 0.01


def test_a_student_below_a_cell_of_the_coarsest_level_is_refused(student: MCJEPA) -> None:
    with pytest.raises(InputError, match="the student's pictures are 51 x 51 px"):
        student(tuple(torch.rand(2, 1, 3, 64, 64)), None, {"self_supervision": 1.0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"student_window": (0.0, 0.5)},
        {"student_window": (0.9, 0.5)},
        {"student_window": (0.5, 1.5)},
        {"student_size": 0.0},
        {"student_jitter": 1.0},
        {"student_exponent": 0.0},
    ],
)
def test_settings_of_no_student_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossConfig(**wrong)  # type: ignore[arg-type]

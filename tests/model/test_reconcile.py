"""Flow of both directions brought together: scenes whose true flow is known, and a loop over cells in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.warp import pool, reconcile, upsample_flow

SIDE = 96
Array = NDArray[np.float64]


def scene(shift: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A red square on a grey ground moves to the right: frame a, both true flows, where a is occluded in b."""
    generator = torch.Generator().manual_seed(0)
    image = 0.5 + 0.01 * torch.rand(1, 3, SIDE, SIDE, generator=generator)
    forward, backward, covered = torch.zeros(1, 2, SIDE, SIDE), torch.zeros(1, 2, SIDE, SIDE), torch.zeros(SIDE, SIDE)
    rows, there, arrived = slice(32, 64), slice(24, 56), slice(24 + shift, 56 + shift)
    image[:, 0, rows, there] = 1.0
    forward[:, 0, rows, there] = shift
    backward[:, 0, rows, arrived] = -shift
    covered[rows, 56 : 56 + shift] = 1
    return image, forward, backward, covered.bool()


def error(flow: Tensor, truth: Tensor) -> Tensor:
    return (flow - truth).square().sum(1).sqrt()[0]


def test_flow_that_both_directions_agree_on_stays_as_it_is() -> None:
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 64, 80)
    inner = reconcile(flow, -flow, torch.rand(1, 3, 64, 80))
    torch.testing.assert_close(inner, flow.contiguous())


def test_ground_that_took_an_objects_flow_gets_its_own_back() -> None:
    """The estimate carries the square's flow 12 px into the ground, as a coarse level does; backward flow is true."""
    image, forward, backward, _ = scene(shift=16)
    estimate = forward.clone()
    estimate[:, 0, 20:76, 12:68] = 16.0
    beside = (estimate - forward)[0, 0] != 0
    before, after = error(estimate, forward), error(reconcile(estimate, backward, image), forward)
    assert before[beside].mean() == 16.0
    assert after[beside].mean() < 1.0
    assert after[36:60, 28:52].max() < 0.5  # the square keeps its own


def test_occluded_ground_takes_the_flow_of_the_ground_around_it() -> None:
    image, forward, backward, covered = scene(shift=16)
    estimate = forward.clone()
    estimate[:, :, covered] = torch.tensor([16.0, 0.0]).view(2, 1)  # nothing is seen of it: it got the square's
    after = error(reconcile(estimate, backward, image), forward)
    assert error(estimate, forward)[covered].mean() == 16.0
    assert after[covered].mean() < 1.5


def test_confirmed_flow_of_fine_texture_stays() -> None:
    """Noise on noise: no cell looks like its neighbours, and both directions say the truth."""
    generator = torch.Generator().manual_seed(0)
    image, forward, backward, covered = scene(shift=12)
    image = torch.rand(1, 3, SIDE // 4, SIDE // 4, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    after = error(reconcile(forward, backward, image), forward)
    assert not covered[32:64, 24:56].any()
    assert after[32:64, 24:56].mean() < 1.0


def test_samples_are_apart_and_mirrored_frames_give_mirrored_flow() -> None:
    torch.manual_seed(0)
    there, back, images = 4 * torch.randn(3, 2, 40, 56), 4 * torch.randn(3, 2, 40, 56), torch.rand(3, 3, 40, 56)
    together = reconcile(there, back, images)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], reconcile(*(x[k : k + 1] for x in (there, back, images))))
    sign = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    mirrored = reconcile(sign * there.flip(3), sign * back.flip(3), images.flip(3))
    torch.testing.assert_close(mirrored, sign * together.flip(3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (37, 50)])
def test_any_size_and_flow_that_nothing_confirms_give_finite_flow(size: tuple[int, int]) -> None:
    there = torch.full((1, 2, *size), 100.0)
    flow = reconcile(there, there, torch.rand(1, 3, *size))
    assert flow.shape == there.shape
    torch.testing.assert_close(flow, there)  # all that there is


def test_numbers_are_those_of_a_loop_over_cells() -> None:
    """One image whose sides are whole cells, every cell either trusted whole or not at all."""
    rng = np.random.default_rng(0)
    size = 32
    colours = np.repeat(np.repeat(rng.random((size // 8, size // 8, 3)) * 0.1, 8, 0), 8, 1)
    back = np.zeros((size, size, 2))
    there = np.zeros((size, size, 2))
    holes = np.zeros((size, size), bool)
    holes[8:16, 16:24] = True
    there[holes] = (5.0, 3.0)  # contradicted by the zero flow at its target
    there[~holes] = 0.0
    there[:, :8] = (0.5, 0.0)  # within the tolerance of 0.5 square pixels, and inside
    expected = by_loop(there, ~holes, colours)
    given = (torch.from_numpy(np.moveaxis(x, -1, 0)[None].astype(np.float32)) for x in (there, back, colours))
    found = reconcile(*given)
    cells = torch.from_numpy(np.moveaxis(expected, -1, 0)[None].astype(np.float32))
    torch.testing.assert_close(found, upsample_flow(cells, (size, size), 4) / 4, atol=1e-5, rtol=1e-4)


def by_loop(flow: Array, trusted: NDArray[np.bool_], colours: Array) -> Array:
    """What `reconcile` describes, cell by cell: (h / 4, w / 4, 2)."""
    coarse = settle(*in_cells(flow, trusted, colours, 8), None, rounds=12)
    return settle(*in_cells(flow, trusted, colours, 4), coarse, rounds=6)[0]


def in_cells(flow: Array, trusted: NDArray[np.bool_], colours: Array, stride: int) -> tuple[Array, Array, Array]:
    mean = lambda x: x.reshape(x.shape[0] // stride, stride, -1, stride, *x.shape[2:]).mean((1, 3))  # noqa: E731
    return mean(flow), mean(trusted.astype(float)), mean(colours)


def settle(
    measured: Array, weight: Array, colours: Array, coarse: tuple[Array, Array] | None, rounds: int
) -> tuple[Array, Array]:
    settled, known = measured.copy(), weight.copy()
    if coarse is not None:
        for (y, x), trust in np.ndenumerate(weight):
            value, certain = bilinear(coarse[0], y, x), bilinear(coarse[1][..., None], y, x)[0]
            settled[y, x] = measured[y, x] if trust > 0 else value
            known[y, x] = max(trust, 0.9 * certain)
    for _ in range(rounds):
        new, sure = settled.copy(), known.copy()
        for (y, x), trust in np.ndenumerate(weight):
            shares, total, support = 0.0, np.zeros(2), 0.0
            for dy in (-4, -2, 0, 2, 4):
                for dx in (-4, -2, 0, 2, 4):
                    v, u = y + dy, x + dx
                    if (dy, dx) == (0, 0) or not (0 <= v < weight.shape[0] and 0 <= u < weight.shape[1]):
                        continue
                    share = np.exp(-((colours[v, u] - colours[y, x]) ** 2).sum() / 0.05**2) + 1e-4
                    shares += share
                    total += share * known[v, u] * settled[v, u]
                    support += share * known[v, u]
            total, support = total / max(shares, 0.3), support / max(shares, 0.3)
            if trust + support > 0:
                new[y, x] = (trust * measured[y, x] + total) / (trust + support)
            sure[y, x] = max(trust, 0.95 * support)
        settled, known = new, sure
    return settled, known


def bilinear(coarse: Array, y: int, x: int) -> Array:
    """Value of the twice as coarse map at the centre of a fine cell, the border repeated."""
    result = np.zeros(coarse.shape[2])
    py, px = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5
    for v in (int(np.floor(py)), int(np.floor(py)) + 1):
        for u in (int(np.floor(px)), int(np.floor(px)) + 1):
            inner = coarse[min(max(v, 0), coarse.shape[0] - 1), min(max(u, 0), coarse.shape[1] - 1)]
            result += (1 - abs(py - v)) * (1 - abs(px - u)) * inner
    return result


@pytest.mark.parametrize("times", [1, 2])
def test_a_model_reconciles_as_often_as_it_says(tiny_config: ModelConfig, times: int) -> None:
    """The last level is decoded again from what the first time gave."""
    torch.manual_seed(0)
    model = MCJEPA(tiny_config).eval()
    for parameter in model.flow_estimator.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    a, b = torch.rand(2, 3, 70, 90), torch.rand(2, 3, 70, 90)
    with torch.no_grad():
        pyramids = model.forward_pyramid(a), model.forward_pyramid(b)
        cells = [model.flow_estimator(*order)[0] for order in (pyramids, pyramids[::-1])]
        for _ in range(1, times):
            full = [upsample_flow(x, (70, 90), 4) for x in cells]
            known = reconcile(full[0], full[1], a), reconcile(full[1], full[0], b)
            pairs = zip((pyramids, pyramids[::-1]), known, strict=True)
            cells = [model.flow_estimator.decode_finest(*order, pool(x, 4) / 4) for order, x in pairs]
        full = [upsample_flow(x, (70, 90), 4) for x in cells]
        model.config = replace(tiny_config, flow=replace(tiny_config.flow, reconcile=times))
        torch.testing.assert_close(model.estimate_flow(a, b), reconcile(*full, a), atol=1e-4, rtol=1e-4)


def test_flow_of_a_model_that_trains_has_its_gradient(tiny_config: ModelConfig) -> None:
    model = MCJEPA(replace(tiny_config, flow=replace(tiny_config.flow, reconcile=1)))
    frames = torch.rand(2, 1, 3, 64, 64)
    assert model.train().estimate_flow(*frames).requires_grad
    assert not model.eval().estimate_flow(*frames).requires_grad


def test_a_number_of_times_below_zero_is_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="reconcile is -1, expected at least 0"):
        replace(tiny_config.flow, reconcile=-1)

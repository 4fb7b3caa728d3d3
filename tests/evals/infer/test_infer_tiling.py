"""Tiles: where they begin, and that their blend is the whole frame's result where tiles hold the context."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.corpora.image_files import read_rgb
from mcjepa.evals.infer.tiling import blend_tiles, tile_starts, tiled_features, tiled_flow
from mcjepa.evals.models import EvalModel, image_tensor, load_model

CONTEXT_PX = 16


class LocalFlow:
    """A flow that depends on the 33x33 pixels around its own, the border repeated."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        self.sizes.append((frame0_B3HW.shape[2], frame0_B3HW.shape[3]))
        change = F.pad((frame1_B3HW - frame0_B3HW)[:, :2], [CONTEXT_PX] * 4, mode="replicate")
        side = 2 * CONTEXT_PX + 1
        return 10.0 * F.avg_pool2d(F.avg_pool2d(change, (side, 1), stride=1), (1, side), stride=1)


def _frames(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(batch, 3, height, width, generator=generator) for _ in range(2))
    return first, second


@pytest.mark.parametrize(("height", "width"), [(200, 300), (193, 577), (257, 129), (128, 128), (640, 64)])
def test_tiles_give_the_whole_frames_flow_where_they_hold_its_context(height: int, width: int) -> None:
    frames = _frames(height, width, batch=2)
    model = LocalFlow()
    tiled = tiled_flow(model, frames, tile_px=128, overlap_px=64)  # a quarter of the overlap is the context
    assert max(map(max, model.sizes)) <= 128
    torch.testing.assert_close(tiled, LocalFlow().flow(*frames), atol=1e-5, rtol=0)


def test_a_context_beyond_the_margin_shows_that_the_test_can_fail() -> None:
    frames = _frames(200, 300)
    part = tiled_flow(LocalFlow(), (frames[0], frames[1]), tile_px=128, overlap_px=64)
    hard = LocalFlow().flow(frames[0][..., :128], frames[1][..., :128])
    whole = LocalFlow().flow(*frames)
    assert (hard[..., 120:128] - whole[..., 120:128]).abs().max() > 0.05 > (part - whole).abs().max()


def test_tiles_that_disagree_fade_into_each_other() -> None:
    numbers = iter(range(100))
    blended = blend_tiles(lambda part: torch.full((1, 128, 128), float(next(numbers))), (128, 320), 1, 128, 64)
    assert blended.min() == 0.0 and blended.max() == 3.0
    assert blended.diff(dim=2).abs().max() < 0.06  # smoothstep over 32 px has a slope of at most 1.5 / 32


def test_frames_within_a_tile_and_no_tile_are_computed_at_once() -> None:
    for tile_px, size in ((512, (200, 512)), (0, (200, 900))):
        model = LocalFlow()
        tiled_flow(model, _frames(*size), tile_px, 128)
        assert model.sizes == [size]


@pytest.mark.parametrize("side_px", [512, 513, 640, 1000, 1025, 4096])
def test_tiles_cover_a_side_on_the_coarsest_grid_and_overlap(side_px: int) -> None:
    starts = tile_starts(side_px, 512, 128)
    assert starts[0] == 0 and starts[-1] + 512 >= side_px
    assert all(start % 64 == 0 and start < side_px for start in starts)
    assert all(0 < after - before <= 384 for before, after in itertools.pairwise(starts))


def test_tiled_features_are_the_whole_frames(foreign_model: Callable[..., EvalModel]) -> None:
    image = _frames(200, 330)[0]
    whole = tiled_features(foreign_model(), image, 8, 0, 0)
    tiled = tiled_features(foreign_model(), image, 8, 128, 64)
    assert whole.shape == (1, 6, 25, 42)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_our_models_fine_features_of_a_real_frame_have_no_seams(sample_data: Path, weights_folder: Path) -> None:
    frame = read_rgb(sample_data / "flow/MPI-Sintel-complete/training/clean/alley_1/frame_0002.png")
    image = image_tensor(cv2.resize(frame, (512, 218), interpolation=cv2.INTER_AREA))
    model = load_model(weights_folder, torch.device("cpu"))
    whole = tiled_features(model, image, 8, 0, 0)
    tiled = tiled_features(model, image, 8, 256, 128)
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)

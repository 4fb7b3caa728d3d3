"""Label propagation: equality with a dense rendering of DINO's code, tiles, and tracking a known motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.vos.config import VosConfig
from evals.vos.propagation import label_frame, labels_to_mask, one_hot_labels, propagate_labels

CONFIG = VosConfig(context_frames=2, top_k=5, radius_cells=3, temperature=0.1, stride=8, tile_cells=4)


def _dino_labels(query: Tensor, context: Sequence[tuple[Tensor, Tensor]], config: VosConfig) -> Tensor:
    """What eval_video_segmentation.py computes, written out densely: exp, square neighbourhood, top-k,
    normalise."""
    height, width = query.shape[1:]
    keys = torch.stack([features.flatten(1) for features, _ in context])
    affinity = torch.exp(torch.einsum("cq,nck->nqk", query.flatten(1), keys) / config.temperature)
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    near = (rows[:, None] - rows[None]).abs() <= config.radius_cells
    near &= (columns[:, None] - columns[None]).abs() <= config.radius_cells
    affinity = (affinity * near).transpose(2, 1).reshape(-1, height * width)
    least = affinity.topk(config.top_k, dim=0).values[-1]
    affinity[affinity < least] = 0
    affinity = affinity / affinity.sum(0, keepdim=True)
    labels = torch.cat([values.flatten(1) for _, values in context], dim=1)
    return (labels @ affinity).view(-1, height, width)


def _random_context(frames: int, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            F.normalize(torch.randn(16, height, width, generator=generator), dim=0),
            torch.rand(3, height, width, generator=generator).softmax(0),
        )
        for _ in range(frames)
    ]


@pytest.mark.parametrize("tile_cells", [1, 4, 64])
def test_tiles_of_any_size_give_what_dinos_dense_code_gives(tile_cells: int) -> None:
    *context, (query, _) = _random_context(4, 9, 11)
    config = dataclasses.replace(CONFIG, tile_cells=tile_cells)
    torch.testing.assert_close(label_frame(query, context, config), _dino_labels(query, context, config))


def test_radius_zero_means_everywhere() -> None:
    *context, (query, _) = _random_context(3, 5, 6)
    everywhere = dataclasses.replace(CONFIG, radius_cells=0)
    wide = dataclasses.replace(CONFIG, radius_cells=50)
    torch.testing.assert_close(label_frame(query, context, everywhere), _dino_labels(query, context, wide))


def test_more_votes_than_cells_uses_all_cells() -> None:
    *context, (query, _) = _random_context(2, 2, 2)
    labels = label_frame(query, context, dataclasses.replace(CONFIG, top_k=1000))
    torch.testing.assert_close(labels.sum(0), torch.ones(2, 2))


def test_context_is_the_first_frame_and_the_last_n() -> None:
    frames = [features for features, _ in _random_context(5, 4, 4)]
    first = one_hot_labels(np.eye(4, dtype=np.uint8), 1, 4, 4)
    results = [labels for _, labels in propagate_labels(frames, first, CONFIG)]
    assert len(results) == 4
    normal = [F.normalize(features, dim=0) for features in frames]
    context = [(normal[0], first), (normal[2], results[1]), (normal[3], results[2])]
    torch.testing.assert_close(results[3], _dino_labels(normal[4], context, CONFIG))


def test_without_recent_frames_only_the_first_one_votes() -> None:
    frames = [features for features, _ in _random_context(3, 4, 4)]
    first = one_hot_labels(np.eye(4, dtype=np.uint8), 1, 4, 4)
    config = dataclasses.replace(CONFIG, context_frames=0)
    *_, (query, labels) = propagate_labels(frames, first, config)
    torch.testing.assert_close(labels, _dino_labels(query, [(F.normalize(frames[0], dim=0), first)], config))


def test_object_with_distinct_features_is_followed_as_it_moves() -> None:
    generator = torch.Generator().manual_seed(5)
    background, thing = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
    frames, masks = [], []
    for step in range(6):
        mask = np.zeros((10, 16), np.uint8)
        mask[3:7, 1 + 2 * step : 5 + 2 * step] = 1
        noise = 0.05 * torch.randn(16, 10, 16, generator=generator)
        frames.append(
            torch.where(torch.from_numpy(mask).bool(), thing[:, None, None], background[:, None, None]) + noise
        )
        masks.append(mask)
    first = one_hot_labels(masks[0], 1, 10, 16)
    for (_, labels), mask in zip(propagate_labels(frames, first, CONFIG), masks[1:], strict=True):
        assert np.array_equal(labels.argmax(0).numpy(), mask)


def test_lost_object_does_not_swallow_the_background() -> None:
    labels = torch.zeros(3, 4, 4)
    labels[0], labels[1, 1:3, 1:3] = 1.0, 1.0
    labels[0, 1:3, 1:3] = 0.0
    mask = labels_to_mask(labels, 8, (32, 32), (32, 32))
    assert set(np.unique(mask)) == {0, 1}


def test_channels_are_stretched_to_the_full_range_before_they_are_compared() -> None:
    # The object's channel peaks at 0.4 against a background of 0.6 there: after min-max it wins its peak.
    labels = torch.tensor([[[1.0, 1.0, 0.6]], [[0.0, 0.0, 0.4]]]).expand(2, 3, 3)
    mask = labels_to_mask(labels.contiguous(), 1, (3, 3), (3, 3))
    assert mask[0].tolist() == [0, 0, 1]


def test_mask_on_the_grid_and_back_keeps_blocks_and_sizes() -> None:
    mask = np.kron(np.array([[0, 1, 2], [2, 0, 1]], np.uint8), np.ones((8, 8), np.uint8))
    grid = one_hot_labels(mask, 2, 2, 3)
    assert grid.argmax(0).tolist() == [[0, 1, 2], [2, 0, 1]]
    back = labels_to_mask(grid, 8, (14, 23), (28, 46))
    assert back.shape == (28, 46)
    assert back[4, 4] == 0 and back[8, 20] == 1 and back[20, 8] == 2

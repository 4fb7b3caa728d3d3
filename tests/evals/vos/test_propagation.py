"""Label propagation: equality with dense renderings of DINO's, CRW's and VFS' rules, and tracking a known motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.evals.vos.propagation import first_labels, label_frame, labels_to_mask, largest, propagate_labels
from mcjepa.evals.vos.settings import PRESETS, VosConfig

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


def _dense(frames: Sequence[Tensor], first: Tensor, config: VosConfig, rule: str) -> list[Tensor]:
    """Labels of all frames after the first by the loops of CRW's test.py or VFS' vanilla_tracker.py, without tiles."""
    feats = [F.normalize(frame, dim=0).flatten(1) for frame in frames]
    height, width = frames[0].shape[1:]
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    distance = ((rows[:, None] - rows[None]) ** 2 + (columns[:, None] - columns[None]) ** 2).float().sqrt()
    near = distance < config.radius_cells
    labels = [first.flatten(1)]
    for at in range(1, len(frames)):
        if rule == "crw":  # frame 0, then the last n, frame 0 standing for those before it
            context = [0] + [max(0, at - config.context_frames + i) for i in range(config.context_frames)]
        else:  # frame 0, then the last n there are
            context = [0, *range(max(0, at - config.context_frames), at)]
        blocks = []
        for place, index in enumerate(context):
            block = feats[at].T @ feats[index] / config.temperature
            limited = rule == "vfs" or place > 0
            blocks.append(block.masked_fill(~near, -1e10) if limited else block)
        best, chosen = torch.cat(blocks, 1).topk(config.top_k, dim=1)
        values = torch.cat([labels[index] for index in context], 1)
        labels.append((values[:, chosen] * best.softmax(1)).sum(-1))
    return [each.unflatten(1, (height, width)) for each in labels[1:]]


@pytest.mark.parametrize("rule", ["crw", "vfs"])
@pytest.mark.parametrize("tile_cells", [3, 64])
def test_presets_give_what_dense_code_of_their_origin_gives(rule: str, tile_cells: int) -> None:
    frames = [features for features, _ in _random_context(6, 7, 9)]
    mask = np.zeros((7, 9), np.uint8)
    mask[2:5, 1:4], mask[4:6, 5:8] = 1, 2
    first = first_labels(mask, 2, (7, 9), 1, bilinear=False)
    config = VosConfig(**PRESETS[rule] | {"context_frames": 3, "radius_cells": 3, "tile_cells": tile_cells})
    ours = [labels for _, labels in propagate_labels(frames, first, config)]
    torch.testing.assert_close(ours, _dense(frames, first, config, rule))


def test_presets_differ_in_the_published_numbers() -> None:
    numbers = {
        name: (config.context_frames, config.top_k, config.temperature, config.radius_cells, config.stride)
        for name, config in ((name, VosConfig(**fields)) for name, fields in PRESETS.items())
    }
    assert numbers == {"dino": (7, 5, 0.1, 12, 8), "crw": (20, 10, 0.05, 12, 8), "vfs": (20, 10, 0.07, 12, 8)}
    assert all(VosConfig(**fields).protocol == name for name, fields in PRESETS.items())
    assert VosConfig(top_k=6).protocol == "own" and VosConfig(tile_cells=3, pictures=0).protocol == "dino"


def test_features_that_are_not_normalised_vote_by_their_products() -> None:
    frames = [4.0 * features for features, _ in _random_context(2, 4, 4)]
    first = first_labels(np.eye(4, dtype=np.uint8), 1, (4, 4), 1, bilinear=False)
    config = dataclasses.replace(CONFIG, normalize=False, radius_cells=0, temperature=3.0)
    ((query, labels),) = propagate_labels(frames, first, config)
    torch.testing.assert_close(query, frames[1])
    torch.testing.assert_close(
        labels, _dino_labels(frames[1], [(frames[0], first)], dataclasses.replace(config, radius_cells=9))
    )


def test_a_large_affinity_is_made_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    *context, (query, _) = _random_context(4, 9, 11)
    whole = label_frame(query, context, CONFIG)
    monkeypatch.setattr("mcjepa.evals.vos.propagation.AFFINITY_BYTES", 4 * 300 * 3)
    torch.testing.assert_close(label_frame(query, context, CONFIG), whole)


@pytest.mark.parametrize(("keys", "count"), [(5, 5), (63, 3), (1000, 5), (1024, 10), (4097, 1)])
def test_largest_values_by_groups_are_those_of_topk(keys: int, count: int) -> None:
    values = torch.randn(7, keys, generator=torch.Generator().manual_seed(keys))
    values[2, : keys // 2] = float("-inf")
    best, place = largest(values, count, group=16)
    expected = values.topk(count, dim=1)
    assert torch.equal(best, expected.values) and torch.equal(values.gather(1, place), best)


def test_soft_labels_of_the_first_mask_are_opencvs_bilinear_ones() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[5:30, 11:40], mask[31:44, 20:50] = 1, 2
    soft = first_labels(mask, 2, (48, 64), 8, bilinear=True)
    for label in range(3):
        expected = cv2.resize((mask == label).astype(np.float32), (8, 6), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(soft[label].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("frame", [(481, 481), (473, 486), (480, 480)])
@pytest.mark.parametrize("finer", [1, 2])
def test_first_mask_lies_where_its_frame_was_encoded(bilinear: bool, frame: tuple[int, int], finer: int) -> None:
    """An object near the far corner comes back at its own centre, whatever the last cells have beyond the frame."""
    mask = np.zeros((frame[0] * finer, frame[1] * finer), np.uint8)
    mask[400 * finer : 464 * finer, 424 * finer : 464 * finer] = 1
    first = first_labels(mask, 1, frame, 8, bilinear)
    torch.testing.assert_close(first.sum(0), torch.ones(first.shape[1:]))
    back = labels_to_mask(first, 8, frame, mask.shape)
    centre = [float(axis.mean()) / finer for axis in np.nonzero(back == 1)]
    assert centre == pytest.approx([431.5, 443.5], abs=0.5)
    # The axes of the centre are the ranges' own: (400 + 463) / 2 and (424 + 463) / 2.


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
    first = first_labels(np.eye(4, dtype=np.uint8), 1, (4, 4), 1, bilinear=False)
    results = [labels for _, labels in propagate_labels(frames, first, CONFIG)]
    assert len(results) == 4
    normal = [F.normalize(features, dim=0) for features in frames]
    context = [(normal[0], first), (normal[2], results[1]), (normal[3], results[2])]
    torch.testing.assert_close(results[3], _dino_labels(normal[4], context, CONFIG))


def test_without_recent_frames_only_the_first_one_votes() -> None:
    frames = [features for features, _ in _random_context(3, 4, 4)]
    first = first_labels(np.eye(4, dtype=np.uint8), 1, (4, 4), 1, bilinear=False)
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
    first = first_labels(masks[0], 1, (10, 16), 1, bilinear=False)
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
    grid = first_labels(mask, 2, (16, 24), 8, bilinear=False)
    assert grid.argmax(0).tolist() == [[0, 1, 2], [2, 0, 1]]
    back = labels_to_mask(grid, 8, (14, 23), (28, 46))
    assert back.shape == (28, 46)
    assert back[4, 4] == 0 and back[8, 20] == 1 and back[20, 8] == 2


def test_maps_that_are_not_stretched_are_compared_as_they_are() -> None:
    labels = torch.tensor([[[1.0, 1.0, 0.6]], [[0.0, 0.0, 0.4]]]).expand(2, 3, 3).contiguous()
    assert not labels_to_mask(labels, 1, (3, 3), (3, 3), stretch=False).any()

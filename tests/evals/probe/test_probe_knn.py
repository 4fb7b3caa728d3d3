"""The nearest-neighbour probe: equality with scikit-learn, the bank's draw, memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.features import Statistics, measure_statistics
from mcjepa.evals.probe.knn import NearestCells, class_shares, collect_cells, normalised_cells
from tests.evals.labelled_sets import STRIDES, encoded_image

IMAGES = [encoded_image(seed, 64, 128) for seed in range(4)]
STATISTICS = measure_statistics([(image.tiles[0].maps, (64, 128)) for image in IMAGES], STRIDES)


def bank(most: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of the four images."""
    return collect_cells(IMAGES, STATISTICS, STRIDES, 5, most, seed)


def test_votes_equal_scikit_learns_weighted_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, shares = bank(200)
    hard = torch.nn.functional.one_hot(shares.argmax(1), 5).float()
    votes_of = NearestCells(cells, hard, STATISTICS, STRIDES, k=7, temperature=0.1)
    query = encoded_image(9, 64, 128)
    maps = [level[None] for level in query.tiles[0].maps]
    votes = votes_of(maps)
    assert votes.shape == (1, 5, 8, 16)
    theirs = KNeighborsClassifier(
        n_neighbors=7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(cells.numpy(), hard.argmax(1).numpy())
    flat = normalised_cells(maps, STATISTICS, STRIDES)[0].flatten(1).T.numpy()
    expected = theirs.predict_proba(flat)
    np.testing.assert_allclose(votes[0].flatten(1).T.numpy(), expected, atol=1e-4)
    monkeypatch.setattr("mcjepa.evals.probe.knn.MOST_SIMILARITIES", 1)  # one cell at a time
    torch.testing.assert_close(votes_of(maps), votes)


def test_a_training_cell_finds_itself() -> None:
    cells, shares = bank(4 * 128)
    nearest = NearestCells(cells, shares, STATISTICS, STRIDES, k=1, temperature=0.07)
    image = IMAGES[2]
    votes = nearest([level[None] for level in image.tiles[0].maps])[0]
    own, _ = class_shares(image.labels, 8, 5)
    torch.testing.assert_close(votes.permute(1, 2, 0), own)


def test_the_draw_is_even_bounded_and_seeded() -> None:
    assert [len(bank(most)[0]) for most in (3, 30, 10_000)] == [3, 30, 4 * 128]
    assert torch.equal(bank(30)[0], bank(30)[0]) and not torch.equal(bank(30)[0], bank(30, seed=1)[0])
    every, _ = bank(10_000)
    torch.testing.assert_close(every.norm(dim=1), torch.ones(4 * 128))


def test_shares_count_the_pixels_that_have_a_class_and_not_the_padding() -> None:
    labels = torch.full((8, 12), 255, dtype=torch.uint8)
    labels[:, :4], labels[:4, 4:8] = 1, 2
    shares, known = class_shares(labels, 8, 3)
    assert shares.shape == (1, 2, 3)
    torch.testing.assert_close(shares[0, 0], torch.tensor([0.0, 32 / 48, 16 / 48]))
    assert known.tolist() == [[0.75, 0.0]] and shares[0, 1].sum() == 0


def test_cells_without_a_class_are_not_drawn_and_nothing_else_is_an_error() -> None:
    labels = IMAGES[0].labels.clone()
    labels[:, 64:] = 255
    half = dataclasses.replace(IMAGES[0], labels=labels)
    assert len(collect_cells([half], STATISTICS, STRIDES, 5, 10_000, 0)[0]) == 64
    void = dataclasses.replace(IMAGES[0], labels=torch.full_like(labels, 255))
    with pytest.raises(DataError, match="no training cell has a class"):
        collect_cells([void], STATISTICS, STRIDES, 5, 10, 0)


def test_a_channel_that_does_not_vary_says_nothing() -> None:
    flat = Statistics(STATISTICS.mean, (torch.zeros(3), *STATISTICS.variance[1:]), STATISTICS.count)
    maps = [level[None] for level in IMAGES[0].tiles[0].maps]
    assert torch.isfinite(normalised_cells(maps, flat, STRIDES)).all()

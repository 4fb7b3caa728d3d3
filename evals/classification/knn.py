"""Weighted nearest neighbours, DINO's protocol (Caron et al. 2021, after Wu et al. 2018).

Features are brought to length 1; the k training images of the highest cosine similarity s vote for their class with
exp(s / temperature). Legend: N queries, K classes, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.evals.classification.features import PooledFeatures

QUERY_BLOCK, TRAIN_BLOCK = 2_048, 8_192
"""Rows compared at once: 64 MiB of similarities."""
TOP = 5
NOBODY = -1


def knn_predictions(
    train: PooledFeatures,
    val: PooledFeatures,
    classes: int,
    ks: Sequence[int],
    temperature: float,
    on_query: Callable[[int], None] = lambda done: None,
) -> dict[int, NDArray[np.int64]]:
    """Most voted classes of every validation image.

    Args:
        train: features that vote.
        val: features that are classified.
        classes: number of classes K.
        ks: numbers of neighbours, none above the number of training images.
        temperature: of the votes.
        on_query: called with the number of images done.

    Returns:
        k to classes (N, min(5, K)), most votes first; -1 where no further class got a vote.
    """
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for place, queries in val.blocks(QUERY_BLOCK):
        similarity, labels = nearest(train, queries, max(ks))
        for k in ks:
            found[k].append(vote(similarity[:, :k], labels[:, :k], classes, temperature))
        on_query(place.stop)
    return {k: torch.cat(parts).cpu().numpy() for k, parts in found.items()}


def nearest(train: PooledFeatures, queries_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and classes of the k nearest training images, (N, k) each, nearest first."""
    queries = F.normalize(queries_ND, dim=1)
    best = queries.new_empty(len(queries), 0)
    classes = torch.empty_like(best, dtype=torch.int64)
    labels = train.class_numbers()
    for place, block in train.blocks(TRAIN_BLOCK):
        similarity = queries @ F.normalize(block, dim=1).T
        near, index = similarity.topk(min(k, len(block)), dim=1)
        best = torch.cat([best, near], dim=1)
        classes = torch.cat([classes, labels[place][index]], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        classes = classes.gather(1, order)
    return best, classes


def vote(similarity_Nk: Tensor, labels_Nk: Tensor, classes: int, temperature: float) -> Tensor:
    """The most voted classes, (N, min(5, K)), -1 after the last one with a vote.

    >>> vote(torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[2, 0, 0]]), 3, 1.0).tolist()
    [[0, 2, -1]]
    """
    votes = similarity_Nk.new_zeros(len(similarity_Nk), classes)
    votes.scatter_add_(1, labels_Nk, (similarity_Nk / temperature).exp())
    most, order = votes.topk(min(TOP, classes), dim=1)
    return torch.where(most > 0, order, NOBODY)

"""The k-nearest-neighbour probe: every cell of a validation image is given the classes of similar training cells.

Nothing is trained: minutes instead of days. Levels are resized to the finest grid, concatenated, normalised by the
training features' statistics and brought to length 1. The k training cells with the largest cosine vote with
exp(cosine / temperature) for the classes of their pixels (Caron et al. 2021 for images; cells with the shares of
their pixels' classes as in Balazevic et al. 2023). Legend: M cells in the bank, D channels, K classes, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.probe.features import EncodedImage, Statistics, resize_map
from mcjepa.evals.probe.head import SMALLEST_DEVIATION
from mcjepa.evals.probe.metrics import VOID

MOST_SIMILARITIES = 2**24
"""Numbers of the similarity matrix that are in memory at once."""
LEAST_KNOWN_PART = 0.5
"""Of a cell's pixels have a class, or it is not drawn into the bank."""


class NearestCells:
    """Training cells with their classes; called with maps it gives the votes of the nearest."""

    def __init__(
        self,
        bank_MD: Tensor,
        shares_MK: Tensor,
        statistics: Statistics,
        strides: Sequence[int],
        *,
        k: int,
        temperature: float,
    ) -> None:
        """A bank of normalised cells (M, D) of length 1 and the shares of their pixels' classes (M, K)."""
        self.bank, self.shares = bank_MD, shares_MK
        self.strides = tuple(strides)
        self._statistics, self._k, self._temperature = statistics, min(k, len(bank_MD)), temperature

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Votes (B, K, h, w), which sum to 1 in every cell."""
        cells_BDhw = normalised_cells(maps, self._statistics, self.strides)
        batch, dimensions, height, width = cells_BDhw.shape
        queries = cells_BDhw.permute(0, 2, 3, 1).reshape(-1, dimensions)
        at_once = max(1, MOST_SIMILARITIES // len(self.bank))
        votes = torch.cat([self._votes(queries[n : n + at_once]) for n in range(0, len(queries), at_once)])
        return votes.reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def _votes(self, queries_ND: Tensor) -> Tensor:
        cosines, nearest = (queries_ND @ self.bank.T).topk(self._k, dim=1)
        weights = torch.softmax(cosines / self._temperature, dim=1)
        return torch.einsum("nk,nkc->nc", weights, self.shares[nearest])


def normalised_cells(maps: Sequence[Tensor], statistics: Statistics, strides: Sequence[int]) -> Tensor:
    """Cells (B, D, h, w) of length 1 on the finest grid from the levels' maps (B, C, h, w)."""
    levels = []
    for map_BChw, mean, variance, stride in zip(maps, statistics.mean, statistics.variance, strides, strict=True):
        steady = variance.sqrt().to(map_BChw.device)
        deviation = torch.where(steady > SMALLEST_DEVIATION, steady, torch.ones_like(steady))
        normal = (map_BChw.float() - mean.to(map_BChw.device)[:, None, None]) / deviation[:, None, None]
        levels.append(resize_map(normal, stride // strides[0]))
    return F.normalize(torch.cat(levels, dim=1), dim=1)


def class_shares(labels_HW: Tensor, stride: int, classes: int) -> tuple[Tensor, Tensor]:
    """Shares of the classes in every cell's pixels that have one, and the part of the pixels that do.

    Returns:
        (h, w, K) float32, 0 where no pixel has a class; (h, w) float32 in [0, 1].
    """
    height, width = labels_HW.shape
    padded = F.pad(labels_HW[None], (0, -width % stride, 0, -height % stride), value=VOID)[0].long()
    rows, columns = padded.shape[0] // stride, padded.shape[1] // stride
    cells = padded.reshape(rows, stride, columns, stride).permute(0, 2, 1, 3).reshape(rows * columns, -1)
    counts = torch.zeros(rows * columns, VOID + 1)
    counts.scatter_add_(1, cells, torch.ones(cells.shape))
    known = counts[:, :classes].sum(1, keepdim=True)
    shares = counts[:, :classes] / known.clamp_min(1.0)
    return shares.reshape(rows, columns, classes), (known[:, 0] / stride**2).reshape(rows, columns)


@torch.inference_mode()
def collect_cells(
    images: Sequence[EncodedImage], statistics: Statistics, strides: Sequence[int], classes: int, most: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws at most `most` cells, as evenly from the images as it goes; the same seed draws the same ones.

    Returns:
        Cells (M, D) float32 of length 1 and the shares of their pixels' classes (M, K).

    Raises:
        DataError: no cell has a class.
    """
    bank, shares = [], []
    chosen = np.random.default_rng((seed, 0)).permutation(len(images))[:most]
    for place, index in enumerate(sorted(chosen.tolist())):
        quota = most // len(chosen) + (place < most % len(chosen))
        image = images[index]
        maps = [some_map[None] for some_map in image.tiles[0].maps]
        cells = normalised_cells(maps, statistics, strides)[0]
        image_shares, known = class_shares(image.labels, strides[0], classes)
        rows, columns = torch.nonzero(known >= LEAST_KNOWN_PART, as_tuple=True)
        drawn = torch.from_numpy(np.random.default_rng((seed, 1, index)).permutation(len(rows))[:quota])
        bank.append(cells[:, rows[drawn], columns[drawn]].T)
        shares.append(image_shares[rows[drawn], columns[drawn]])
    if not sum(len(part) for part in bank):
        raise DataError("no training cell has a class: all labels are void; expected some; check the training labels")
    return torch.cat(bank), torch.cat(shares)

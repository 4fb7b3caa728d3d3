"""Two classifiers on pooled features: weighted nearest neighbours and a linear head.

The neighbours follow DINO's protocol (Caron et al. 2021, after Wu et al. 2018): features are brought to length 1; the k
training images of the highest cosine similarity s vote for their class with exp(s / temperature).

The linear head is trained on standardised features by SGD, all learning rates of the sweep at once. The rate is chosen
on a held-out part of the training images, then one head is trained on all of them. Memory is bound by the batch:
features stay in their file. Legend: N queries or images, K classes, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.classification.features import PooledFeatures
from mcjepa.evals.classification.settings import ClassifyConfig

QUERY_BLOCK, TRAIN_BLOCK = 2_048, 8_192
"""Rows compared at once: 64 MiB of similarities."""
TOP = 5
LEAST_POWER = -1e30
"""What a power of e is at least, so that a vote however small is one."""
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
    # Sums of exp(s / T) by their logarithms: the terms overflow from T = 0.011 on, or all but the nearest vanish.
    nearest = similarity_Nk.amax(1, keepdim=True)
    powers = ((similarity_Nk - nearest).double() / temperature).clamp_min(LEAST_POWER).float()
    largest = powers.new_full((len(powers), classes), -math.inf).scatter_reduce_(1, labels_Nk, powers, "amax")
    sums = torch.zeros_like(largest).scatter_add_(1, labels_Nk, (powers - largest.gather(1, labels_Nk)).exp())
    most, order = (largest + sums.log()).topk(min(TOP, classes), dim=1)
    return torch.where(most > -math.inf, order, NOBODY)


MOMENTUM = 0.9
WEIGHT_STD = 0.01
BLOCK = 8_192
ORDER, HOLDOUT = 0, 1


@dataclass(frozen=True, kw_only=True)
class LinearResult:
    """The head of the chosen rate and how it was chosen."""

    head: nn.Linear
    mean: Tensor
    std: Tensor
    lr: float
    chosen_on: int
    """Held-out images; 0 = no class has two images, so the rate is the one with the lowest training loss."""

    def predict(self, features: PooledFeatures) -> NDArray[np.int64]:
        """The most likely classes, (N, min(5, K)), most likely first."""
        return _predictions(self.head, features, self.mean, self.std)


def train_linear(
    train: PooledFeatures,
    classes: int,
    config: ClassifyConfig,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> LinearResult:
    """Chooses the learning rate and trains the head; the same features and seed give the same head on the CPU.

    Args:
        train: features of the training images.
        classes: number of classes K.
        config: epochs, batch, rates, held-out part.
        seed: of initial weights, order and held-out part.
        on_step: called with steps done and in all.

    Raises:
        DataError: no rate gives a finite loss, or the chosen one does not on all images.
    """
    mean, std = feature_statistics(train)
    fit_on, judge_on = hold_out(train.labels, config.linear_holdout, seed)
    first = _steps(len(fit_on), config)
    total = first + _steps(len(train), config)
    chosen = train if not len(judge_on) else train.part(fit_on)
    heads, losses = _fit(chosen, classes, config.linear_lrs, config, (mean, std, seed), lambda n: on_step(n, total))
    worth = [(0.0, -loss) for loss in losses]
    if len(judge_on):
        worth = [held_out_worth(head, train.part(judge_on), mean, std) for head in heads]
    usable = _finite(losses, config.linear_lrs)
    lr = config.linear_lrs[max(usable, key=lambda place: worth[place])]
    best, (loss,) = _fit(train, classes, (lr,), config, (mean, std, seed), lambda n: on_step(first + n, total))
    _finite([loss], (lr,))
    return LinearResult(head=best[0], mean=mean, std=std, lr=lr, chosen_on=len(judge_on))


def _finite(losses: Sequence[float], lrs: Sequence[float]) -> list[int]:
    """Places of the losses that are finite.

    Raises:
        DataError: there is none.
    """
    usable = [place for place, loss in enumerate(losses) if math.isfinite(loss)]
    if not usable:
        raise DataError(
            f"the head's loss is not finite at any of {tuple(lrs)}; expected one that is; lower classify.linear_lrs"
        )
    return usable


def hold_out(labels: NDArray[np.int64], part: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places to train on and places held out: of each class the part, at least one and not all; none of one image.

    >>> rest, held = hold_out(np.array([0, 0, 0, 0, 1]), 0.25, seed=0)
    >>> len(rest), len(held), 4 in rest
    (4, 1, True)
    """
    rng = np.random.default_rng((seed, HOLDOUT))
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    held: list[int] = []
    for places in np.split(order, ends):
        count = min(max(1, round(part * len(places))), len(places) - 1)
        held.extend(rng.permutation(places)[:count].tolist())
    chosen = np.zeros(len(labels), np.bool_)
    chosen[held] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def feature_statistics(features: PooledFeatures) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by channel, (D,) each; the deviation of a constant channel is 1."""
    total = torch.zeros(features.channels, dtype=torch.float64, device=features.device)
    squares = torch.zeros_like(total)
    for _, block in features.blocks(BLOCK):
        total += block.double().sum(0)
    mean = total / len(features)
    for _, block in features.blocks(BLOCK):
        squares += (block.double() - mean).square().sum(0)
    std = (squares / len(features)).sqrt()
    return mean.float(), torch.where(std > 1e-8, std, 1.0).float()


def _steps(images: int, config: ClassifyConfig) -> int:
    return config.linear_epochs * -(-images // config.linear_batch)


def _fit(
    features: PooledFeatures,
    classes: int,
    lrs: Sequence[float],
    config: ClassifyConfig,
    how: tuple[Tensor, Tensor, int],
    on_step: Callable[[int], None],
) -> tuple[list[nn.Linear], list[float]]:
    """One head a rate, on the same batches from the same initial weights, and the losses of the last epoch."""
    mean, std, seed = how
    heads = [_new_head(features.channels, classes, seed).to(features.device) for _ in lrs]
    groups = [{"params": head.parameters(), "lr": lr, "peak": lr} for head, lr in zip(heads, lrs, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    labels = features.class_numbers()
    steps, done = _steps(len(features), config), 0
    sums = [0.0 for _ in lrs]
    for epoch in range(config.linear_epochs):
        order = np.random.default_rng((seed, ORDER, epoch)).permutation(len(features))
        sums = [0.0 for _ in lrs]
        for start in range(0, len(order), config.linear_batch):
            places = np.sort(order[start : start + config.linear_batch])
            x = (features.take(places) - mean) / std
            losses = torch.stack([F.cross_entropy(head(x), labels[places]) for head in heads])
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1.0 + math.cos(math.pi * done / steps))
            optimizer.step()
            sums = [total + loss * len(places) for total, loss in zip(sums, losses.tolist(), strict=True)]
            done += 1
            on_step(done)
    return heads, [total / len(features) for total in sums]


def _new_head(channels: int, classes: int, seed: int) -> nn.Linear:
    head = nn.Linear(channels, classes)
    nn.init.normal_(head.weight, std=WEIGHT_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


@torch.inference_mode()
def held_out_worth(head: nn.Linear, features: PooledFeatures, mean: Tensor, std: Tensor) -> tuple[float, float]:
    """Top-1 accuracy, then the negative mean cross-entropy, which decides between equals."""
    labels, hits, loss = features.class_numbers(), 0.0, 0.0
    for place, block in features.blocks(BLOCK):
        logits = head((block - mean) / std)
        hits += float((logits.argmax(1) == labels[place]).sum())
        loss += float(F.cross_entropy(logits, labels[place], reduction="sum"))
    return hits / len(features), -loss / len(features)


@torch.inference_mode()
def _predictions(head: nn.Linear, features: PooledFeatures, mean: Tensor, std: Tensor) -> NDArray[np.int64]:
    count = min(TOP, head.out_features)
    parts = [head((block - mean) / std).topk(count, dim=1).indices for _, block in features.blocks(BLOCK)]
    return torch.cat(parts).cpu().numpy()

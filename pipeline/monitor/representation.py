"""Meters that look into a step: spread of embeddings and levels, gradients of the branches and of the two tasks.

The joint loss is (terms on pairs) + (content on views), each of an output of the encoder of its own. The two cut the
graph, so the tasks' gradients on the encoder's parameters come from the step's own graph, without a second forward:

    dL/dP = autograd(loss, P)         P the pyramid of the pairs, V that of the views
    g_flow = autograd(P, encoder, dL/dP)          g_content = autograd(V, encoder, dL/dV)

P and V are aliases of what the encoder gave: a level feeds the next one too, and the gradient of an alias is that of
the losses' own use of it, so that nothing is counted twice. Each is averaged over ranks as the engine does, and
g_flow + g_content is the encoder's gradient (a test checks it). It costs another backward pass. ZeRO-3 has only shares
of the parameters at that time: there it is left out.

How much of its room a representation uses is measured over the samples of all ranks:

deviation       of each dimension: 0 in a collapsed one
effective rank  exp of the entropy of the singular values' shares (Roy and Vetterli, 2007): 1 where all samples lie
                on a line, the number of dimensions where they fill it evenly
off-diagonal    sum of squared covariances between dimensions over the number of dimensions, VICReg's third term
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mcjepa.model.encoder import STRIDES
from mcjepa.pipeline.engine.parameters import branch_gradient_norms
from mcjepa.pipeline.settings.monitor import AlertConfig, MeterConfig

EPSILON = 1e-30


class PeriodicMeters:
    """Looks into one step; hand it to `run_step` and read `values` afterwards. The same on all ranks.

    Args:
        engine: the DeepSpeed engine.
        config: the recipe's meters.
    """

    def __init__(self, engine: Any, config: MeterConfig) -> None:
        self._engine, self._config = engine, config
        self._pyramids: dict[str, list[Tensor]] = {}
        self.values: dict[str, float] = {}

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Keeps the encoder's outputs of the forward pass inside."""

        def keep(stream: str, levels: list[Tensor]) -> list[Tensor]:
            self._pyramids[stream] = [level.view_as(level) for level in levels]
            return self._pyramids[stream]

        self._engine.module.look = keep
        try:
            yield
        finally:
            self._engine.module.look = None

    def before_backward(self, loss: Tensor) -> None:
        """Spread of the features; the tasks' gradients where both take part."""
        self._spreads()
        trained = all(levels[0].requires_grad for levels in self._pyramids.values())  # not frozen
        whole = self._engine.zero_optimization_stage() < 3
        if self._config.cosine and {"pairs", "views"} <= set(self._pyramids) and trained and whole:
            pairs = [*self._pyramids["pairs"], *self._pyramids.get("student", ())]
            self.values.update(task_gradients(self._engine, loss, pairs, self._pyramids["views"]))
        self._pyramids = {}

    def after_backward(self) -> None:
        """Norm of every branch's gradient."""
        norms = branch_gradient_norms(self._engine) or {}
        self.values.update({f"gradient_norm_{name}": norm for name, norm in norms.items()})

    @torch.no_grad()
    def _spreads(self) -> None:
        sets: dict[str, Tensor] = {}
        if "views" in self._pyramids:
            sets["embedding"] = self._pyramids["views"][-1].mean((2, 3))
        levels = next(iter(self._pyramids.values()), [])  # of the pairs where they take part
        for stride, level in zip(self._engine.module.encoder.strides, levels, strict=False):
            sets[f"stride{stride}"] = _cells(level, self._config.cells)
        if not sets:
            return
        covariances, rows = global_covariances(list(sets.values()))
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return  # eigenvalues are needed once only
        for name, covariance, count in zip(sets, covariances, rows, strict=True):
            self.values.update({f"{name}_{k}": v for k, v in asdict(spread_of(covariance, count)).items()})


def _cells(level_BChw: Tensor, most: int) -> Tensor:
    """Up to `most` cells of a level, evenly spaced: (N, C)."""
    cells = level_BChw.permute(0, 2, 3, 1).reshape(-1, level_BChw.shape[1])
    return cells[:: max(1, -(-cells.shape[0] // most))]


def task_gradients(engine: Any, loss: Tensor, pairs: list[Tensor], views: list[Tensor]) -> dict[str, float]:
    """Cosine and norms of the two tasks' weighted gradients on the encoder; the graph stays.

    Args:
        engine: the engine, with whole parameters on every rank (ZeRO 0 to 2).
        loss: the joint loss.
        pairs: the encoder's outputs for the pairs, a student's too.
        views: those for the views.
    """
    parameters = [p for p in engine.module.encoder.parameters() if p.requires_grad]
    flow, content = (_task_gradient(loss, levels, parameters) for levels in (pairs, views))
    flow_norm, content_norm = flow.norm(), content.norm()
    cosine = (flow @ content) / (flow_norm * content_norm).clamp_min(EPSILON)
    numbers = torch.stack((cosine, flow_norm, content_norm)).tolist()
    return dict(zip(("gradient_cosine", "encoder_gradient_flow", "encoder_gradient_content"), numbers, strict=True))


def _task_gradient(loss: Tensor, levels: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """One task's gradient as a flat vector, averaged over ranks."""
    upstream = torch.autograd.grad(loss, levels, retain_graph=True, allow_unused=True)
    used = [(level, gradient) for level, gradient in zip(levels, upstream, strict=True) if gradient is not None]
    found = torch.autograd.grad(
        [level for level, _ in used], parameters, [g for _, g in used], retain_graph=True, allow_unused=True
    )
    flat = torch.cat(
        [(torch.zeros_like(p) if g is None else g).float().reshape(-1) for p, g in zip(parameters, found, strict=True)]
    )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
    return flat


DEAD_STD = 1e-3
"""A dimension whose deviation is below this says nothing."""


@dataclass(frozen=True)
class Spread:
    """How a set of vectors is spread."""

    std_mean: float
    std_least: float
    dead_share: float
    """Share of dimensions with a deviation below `DEAD_STD`."""
    rank: float
    """Effective rank, 1 to the number of dimensions; 0 where all vectors are equal."""
    rank_share: float
    """The same over the most that so many samples and dimensions allow."""
    off_diagonal: float


def effective_rank(covariance_DD: Tensor) -> float:
    """Effective rank of centred vectors from their covariance, whose eigenvalues are squared singular values.

    >>> effective_rank(torch.eye(4))
    4.0
    """
    singular = torch.linalg.eigvalsh(covariance_DD.double()).clamp_min(0).sqrt()
    if float(singular.sum()) <= 0:
        return 0.0
    share = singular / singular.sum()
    return round(float(torch.exp(-torch.xlogy(share, share).sum())), 6)


def global_covariances(vectors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Covariances over the rows of all ranks; all ranks call it with as many sets of the same widths.

    Args:
        vectors: sets (N, D), each of any N.

    Returns:
        Covariances (D, D), fp32, and the numbers of rows of all ranks. Two sums over ranks serve all sets.
    """
    sums = [torch.cat((x.float().sum(0), x.new_full((1,), float(x.shape[0]), dtype=torch.float32))) for x in vectors]
    totals = _summed(sums)
    counts = [float(total[-1]) for total in totals]
    centred = [x.float() - total[:-1] / max(n, 1.0) for x, total, n in zip(vectors, totals, counts, strict=True)]
    products = _summed([x.T @ x for x in centred])
    return [p / max(n - 1, 1.0) for p, n in zip(products, counts, strict=True)], [int(n) for n in counts]


def _summed(parts: Sequence[Tensor]) -> list[Tensor]:
    """Sums over ranks of tensors of any shapes, by one collective."""
    flat = torch.cat([part.reshape(-1) for part in parts])
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(flat)
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def spread_of(covariance_DD: Tensor, rows: int) -> Spread:
    """The meters of one set of vectors."""
    width = covariance_DD.shape[0]
    std = covariance_DD.diagonal().clamp_min(0).sqrt()
    rank = effective_rank(covariance_DD.cpu())
    return Spread(
        float(std.mean()),
        float(std.min()),
        float((std < DEAD_STD).float().mean()),
        rank,
        rank / max(min(width, rows - 1), 1),
        float((covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / width),
    )


class Alerts:
    """Says when a meter leaves its limits, once until it is back, and when it is back."""

    def __init__(self, config: AlertConfig) -> None:
        self._below = {
            "embedding_std_mean": config.embedding_std,
            "embedding_rank_share": config.embedding_rank,
            "visible_share": config.visible_share,
            **{f"stride{stride}_std_mean": config.level_std for stride in STRIDES},
        }
        self._above = {"flow_px": config.flow_px}
        self.standing: set[str] = set()

    def look(self, values: Mapping[str, float]) -> list[str]:
        """New alerts, and those that are over, as lines for a person."""
        lines = []
        for limits, sign, word in ((self._below, -1.0, "below"), (self._above, 1.0, "above")):
            for name, limit in limits.items():
                if name not in values:
                    continue
                beyond = sign * (values[name] - limit) > 0
                if beyond and name not in self.standing:
                    lines.append(f"alert: {name} is {values[name]:.4g}, {word} its limit {limit:g}")
                elif not beyond and name in self.standing:
                    lines.append(f"alert cleared: {name} is {values[name]:.4g}, within its limit {limit:g}")
                self.standing = self.standing | {name} if beyond else self.standing - {name}
        return lines

"""The training loop of fine-tuning: AdamW, poly schedule, gradients added up over micro-batches and ranks.

Everything random in step k follows from the seed and k, so a resumed run needs no generator's state and ends with the
same weights, bit for bit on the CPU. Legend: B batch, 3 RGB, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.finetune.checkpoint import Keeper, TrainingProgress
from mcjepa.evals.finetune.data import Batch, TrainingSamples, training_batches
from mcjepa.evals.finetune.model import Segmenter, resize_to
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.probe.fitting import poly_schedule
from mcjepa.evals.probe.metrics import VOID
from mcjepa.model.reduction import world_size

CURVE_POINTS = 100
DROP = 2


def make_optimizer(groups: list[dict[str, object]]) -> torch.optim.AdamW:
    """AdamW of the groups, betas 0.9 and 0.999 [D]."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.999))


def train(
    network: Segmenter,
    optimizer: torch.optim.Optimizer,
    samples: TrainingSamples,
    keeper: Keeper,
    on_step: Callable[[int], None] = lambda step: None,
) -> TrainingProgress:
    """Trains to the last step, from the checkpoint if there is one, and writes the finished network.

    Args:
        network: on its device; all ranks hold the same.
        optimizer: of its parameters.
        samples: the training windows.
        keeper: where checkpoints go; all ranks must see the same folder, only rank 0 writes.
        on_step: called with the number of steps done.

    Raises:
        DataError: the loss is not finite, no image can be read, or the checkpoint is of another training.
    """
    config, rank = samples.config, dist.get_rank() if world_size() > 1 else 0
    progress = keeper.load_checkpoint(network, optimizer) or TrainingProgress()
    require_equal_on_ranks(progress.step, "steps in the checkpoint")
    on_step(progress.step)
    sums: list[float] = []
    network.train()
    for batch in training_batches(samples, progress.step, rank, world_size()):
        loss = train_step(network, optimizer, batch, config, (samples.seed, progress.step))
        progress.step += 1
        progress.note_failures(batch.failed)
        sums.append(loss)
        due = progress.step % config.checkpoint_every == 0
        if due or progress.step % max(1, config.steps // CURVE_POINTS) == 0 or progress.step == config.steps:
            progress.curve.append((progress.step, sum(sums) / len(sums)))
            sums.clear()
        if due and progress.step < config.steps:
            _gather_failures(progress)  # a resumed run does not meet the images of the steps before again
            if rank == 0:
                keeper.save_checkpoint(network, optimizer, progress)
        on_step(progress.step)
    _gather_failures(progress)
    if rank == 0:
        keeper.finish(network, progress)
    return progress


def _gather_failures(progress: TrainingProgress) -> None:
    """Adds the images that other ranks could not read."""
    if world_size() > 1:
        lists: list[list[str]] = [[] for _ in range(world_size())]
        dist.all_gather_object(lists, progress.failed)
        progress.note_failures(tuple(failure for failures in lists for failure in failures))


def train_step(
    network: Segmenter, optimizer: torch.optim.Optimizer, batch: Batch, config: FinetuneConfig, place: tuple[int, int]
) -> float:
    """One step on this rank's part of a batch; returns the loss, the mean over all pixels that are not void.

    Args:
        network: in training mode.
        optimizer: its groups have `peak_lr`.
        batch: windows.
        config: schedule, micro-batch, precision.
        place: seed and step.

    Raises:
        DataError: the loss is not finite.
    """
    seed, step = place
    device = next(network.parameters()).device
    factor = poly_schedule(step, config.steps, config.warmup_steps, config.poly_power)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    optimizer.zero_grad(set_to_none=True)
    counted = _over_ranks((batch.labels_BHW != VOID).sum().float().to(device)).clamp_min(1.0)
    total = torch.zeros((), device=device)
    with _seeded(seed, step, device):
        for images, labels in _micro_batches(batch, config):
            loss = pixel_loss(network, images.to(device), labels.to(device).long(), config) / counted
            loss.backward()
            total += loss.detach()
    for parameter in network.parameters():
        if parameter.grad is not None:
            _over_ranks(parameter.grad)
    value = float(_over_ranks(total))
    if not np.isfinite(value):
        raise DataError(
            f"the loss is {value} at step {step}; expected a finite one; lower finetune.lr or take "
            "finetune.precision=fp32, with another --out"
        )
    optimizer.step()
    return value


def pixel_loss(network: Segmenter, images_B3HW: Tensor, labels_BHW: Tensor, config: FinetuneConfig) -> Tensor:
    """Sum of cross-entropies over pixels that are not void, the auxiliary head's with its weight; scalar fp32."""
    with torch.autocast(images_B3HW.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits, auxiliary = network(images_B3HW.float() / 255.0)
    loss = _cross_entropy(logits, labels_BHW)
    if auxiliary is not None:
        loss = loss + config.auxiliary_weight * _cross_entropy(auxiliary, labels_BHW)
    return loss


def _cross_entropy(logits_BKhw: Tensor, labels_BHW: Tensor) -> Tensor:
    full = resize_to(logits_BKhw.float(), labels_BHW.shape[-2:])
    return F.cross_entropy(full, labels_BHW, ignore_index=VOID, reduction="sum")


def _micro_batches(batch: Batch, config: FinetuneConfig) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, config.micro_batch // world_size())
    yield from zip(batch.images_B3HW.split(size), batch.labels_BHW.split(size), strict=True)


def _over_ranks(value: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def require_equal_on_ranks(value: int, name: str) -> None:
    """Raises a `DataError` on all ranks where they do not have the same `value`."""
    if world_size() > 1:
        values: list[int] = [0] * world_size()
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise DataError(
                f"ranks found {values} {name}; expected the same; put --out on a disk that all of them share"
            )


@contextmanager
def _seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout and stochastic depth of a step follow from seed, step and rank; the global generators stay."""
    rank = dist.get_rank() if world_size() > 1 else 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.default_rng((seed, DROP, step, rank)).integers(2**63)))
        yield

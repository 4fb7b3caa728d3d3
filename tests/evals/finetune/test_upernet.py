"""UperNet's heads: shapes, size against the published one, pooling and pyramid by hand, statistics over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.evals.finetune.model import (
    FcnHead,
    PyramidPooling,
    RankBatchNorm,
    Segmenter,
    TrainableEncoder,
    UperNetHead,
    resize_to,
)
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.model.config import EncoderConfig
from mcjepa.model.encoder import Encoder


def test_logits_lie_on_the_finest_grid_whatever_the_sizes() -> None:
    head = UperNetHead((3, 4, 5), classes=7, channels=8, pool_scales=(1, 2, 3, 6))
    maps = [torch.randn(2, 3, 9, 14), torch.randn(2, 4, 5, 7), torch.randn(2, 5, 3, 4)]
    assert head(maps).shape == (2, 7, 9, 14)
    assert FcnHead(5, 7)(maps[2]).shape == (2, 7, 3, 4)


def test_every_parameter_gets_a_gradient() -> None:
    head = UperNetHead((3, 4, 5), classes=7, channels=8, pool_scales=(1, 2))
    head([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 5, 2, 2)]).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in head.parameters())


def test_the_network_has_the_published_60_million_parameters() -> None:
    """ConvNeXt's table: UperNet on ConvNeXt-T, 150 classes, 60 M."""
    network = Segmenter(TrainableEncoder(Encoder(EncoderConfig())), 150, FinetuneConfig())
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == 60


def test_pooling_puts_the_mean_of_every_part_beside_the_map() -> None:
    pooling = PyramidPooling(2, 2, (1, 2)).eval()
    for branch in pooling.branches:
        branch[0].weight.data = torch.eye(2)[:, :, None, None]  # type: ignore[index]
    pooling.bottleneck[0].weight.data.zero_()
    pooling.bottleneck[0].weight.data[:, :, 1, 1] = torch.eye(6)[[2, 4]]  # the first channel of each branch
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    scale = (1 + 1e-5) ** -0.5  # what a fresh batch normalisation does in evaluation, twice
    whole = x[:, :1].mean((2, 3), keepdim=True).expand(1, 1, 4, 4)
    parts = F.interpolate(F.avg_pool2d(x[:, :1], 2), size=(4, 4), mode="bilinear")
    torch.testing.assert_close(pooling(x), torch.cat([whole, parts], dim=1) * scale**2)


def test_coarse_content_reaches_the_finest_grid_and_fine_content_no_coarser_map() -> None:
    head = UperNetHead((3, 3, 3), classes=2, channels=4, pool_scales=(1,)).eval()
    maps = [torch.randn(1, 3, side, side, requires_grad=True) for side in (8, 4, 2)]
    head(maps).square().sum().backward()
    assert all(map_BChw.grad is not None and map_BChw.grad.abs().sum() > 0 for map_BChw in maps)
    with torch.no_grad():
        before = head.smoothers[1](head.laterals[1](maps[1]))
        maps[0].mul_(2.0)
        assert torch.equal(before, head.smoothers[1](head.laterals[1](maps[1])))


def test_resize_to_the_same_size_is_the_same_tensor() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert resize_to(x, (3, 4)) is x
    assert resize_to(x, (6, 8)).shape == (1, 2, 6, 8)


def _normalise_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    inputs = torch.load(f"{folder}/inputs.pt", weights_only=True)
    norm = RankBatchNorm(3)
    x = inputs[2 * rank : 2 * rank + 2].clone().requires_grad_()
    y = norm(x)
    (y * inputs[2 * rank : 2 * rank + 2].cos()).sum().backward()
    for parameter in norm.parameters():
        dist.all_reduce(parameter.grad)
    assert x.grad is not None and norm.running_var is not None
    grads = [parameter.grad for parameter in norm.parameters()]
    torch.save([y.detach(), x.grad, norm.running_var, *grads], f"{folder}/out{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_statistics_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    inputs = torch.randn(4, 3, 5, 6) * 2 + 1
    torch.save(inputs, tmp_path / "inputs.pt")
    mp.spawn(_normalise_half, args=(str(tmp_path),), nprocs=2)
    norm: nn.BatchNorm2d = RankBatchNorm(3)
    x = inputs.clone().requires_grad_()
    y: Tensor = norm(x)
    (y * inputs.cos()).sum().backward()
    halves = [torch.load(tmp_path / f"out{rank}.pt", weights_only=True) for rank in range(2)]
    for place, whole in enumerate((y.detach(), x.grad)):
        torch.testing.assert_close(torch.cat([half[place] for half in halves]), whole, atol=1e-5, rtol=1e-4)
    for half in halves:
        torch.testing.assert_close(half[2], norm.running_var)
        torch.testing.assert_close(half[3], norm.weight.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(half[4], norm.bias.grad, atol=1e-4, rtol=1e-4)

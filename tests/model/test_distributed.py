"""Two ranks with half a batch each do what one rank does with the whole of it."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mcjepa.model.config import LossConfig, ModelConfig
from mcjepa.model.expander import GlobalBatchNorm
from mcjepa.model.mcjepa import MCJEPA, TERMS
from mcjepa.model.reduction import gather_rows, global_moments, global_sums, masked_mean

RANKS = 2
PAIRS, VIEWS = 4, 6
WEIGHTS = {"regression": 1.0, "reconstruction": 2.0, "smoothness": 3.0, "cycle": 0.2, "vc": 5.0, "content": 0.1}
WEIGHTS |= {"self_supervision": 0.7}
Results = dict[str, Any]


def joint_step(rank: int | None, config: ModelConfig, pairs: int = PAIRS) -> Results:
    """Loss, terms, mean gradients and running statistics of one step on a rank's share (None: the whole batch)."""
    torch.manual_seed(1)
    model = MCJEPA(config).double()
    with torch.no_grad():
        for parameter in model.flow_estimator.residual.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    images = torch.rand(2, PAIRS, 3, 66, 68, dtype=torch.float64)[:, :pairs]
    views = torch.rand(2, VIEWS, 3, 32, 32, dtype=torch.float64)
    if rank is not None:
        images, views = images[:, rank::RANKS], views.chunk(RANKS, dim=1)[rank]
    out = model(tuple(images), tuple(views), WEIGHTS)
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if rank is not None:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient.div_(RANKS)
    buffers = {name: value for name, value in model.named_buffers() if "running" in name}
    return {
        "loss": out.loss.detach(),
        "terms": out.terms,
        "gradients": gradients,
        "buffers": buffers,
        "visible_share": out.meters["visible_share"].item(),
    }


def reductions(rank: int) -> Results:
    """What the reductions of model/reduction.py give on unequal data, and their gradients."""
    rows = torch.tensor([[10.0 * rank], [10.0 * rank + 1]], requires_grad=True)
    first, second = global_sums([rows, 3 * rows.square()])
    (5 * first.sum() + second[0, 0] * second[1, 0]).backward()
    own = torch.tensor([[1.0], [3.0]]) + 4 * rank  # 1, 3, 5, 7: mean 4, variance 5
    mean_and_variance = global_moments(own.requires_grad_())
    torch.stack([x.squeeze() * (1 + rank) for x in mean_and_variance]).sum().backward()  # each rank by itself
    mask = torch.zeros(1, 1, 1, 3)
    mask[..., : 2 * rank] = 1  # rank 0 sees nothing
    values = torch.tensor([1.0, 3.0, 100.0]).view(1, 1, 1, 3).requires_grad_()
    mean = masked_mean(values, mask)
    mean.backward()
    one_row = GlobalBatchNorm(2)(torch.full((1, 2), float(rank)))
    return {
        "sums": [first.detach(), second.detach()],
        "sums_grad": rows.grad,
        "moments": torch.cat(mean_and_variance).detach(),
        "moments_grad": own.grad,
        "gathered": gather_rows(rows),
        "filled": gather_rows(rows[: 2 * rank].detach(), at_least=2),
        "mean": mean.detach(),
        "mean_grad": values.grad,
        "one_row": one_row.detach(),
    }


def _run_rank(rank: int, configs: dict[str, ModelConfig], folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    try:
        reduced = reductions(rank)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
        steps = {name: joint_step(rank, config) for name, config in configs.items()}
        without = {name: joint_step(rank, config, pairs=1) for name, config in configs.items()}
        torch.save({"reductions": reduced, "steps": steps, "without": without}, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


FORMS = ("batch norm, positions", "layer norm, images", "fewer features than views")


@pytest.fixture(scope="module")
def joint_configs(tiny_config: ModelConfig) -> dict[str, ModelConfig]:
    """Every part of every loss, with both norms of the expander, both samples of VC and both orders of smoothness."""
    form = LossConfig(
        photometric_scales=(1.0, 0.5),
        photometric_census=0.1,
        min_visible_share=0.0,
        student_window=(1.0, 1.0),  # nothing is drawn: the student has the whole pair, smaller
        student_size=0.97,
        occlusion_offset=350.0,  # the random flows are some 10 px and contradict each other: about half is visible
    )
    first = replace(tiny_config, loss=form)
    second = replace(
        first,
        loss=replace(form, vc_samples="images", smoothness_order=2),
        expander=replace(tiny_config.expander, norm="layer"),
    )
    third = replace(first, expander=replace(tiny_config.expander, widths=(24, 4)))
    return dict(zip(FORMS, (first, second, third), strict=True))


@pytest.fixture(scope="module")
def ranks(joint_configs: dict[str, ModelConfig], tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What a group of processes on this machine found, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_run_rank, (joint_configs, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def assert_near(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to 1e-5 of each tensor's largest value."""
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        largest = value.abs().max().item()
        assert (ours[name] - value).abs().max().item() <= 1e-5 * largest + 1e-12, name


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_with_half_the_batch_give_the_loss_and_gradients_of_one(
    in_float64: None, joint_configs: dict[str, ModelConfig], ranks: list[Results], form: str
) -> None:
    whole = joint_step(None, joint_configs[form])
    assert len(whole["gradients"]) == len(list(MCJEPA(joint_configs[form]).parameters()))
    shares = [rank["steps"][form]["visible_share"] for rank in ranks]
    assert 0.1 < min(shares) < max(shares) < 0.9, "the ranks should see unequal parts"
    assert set(whole["terms"]) >= set(TERMS) and all(value != 0 for value in whole["terms"].values())
    for share in (rank["steps"][form] for rank in ranks):
        assert_same(share, whole)


def assert_same(share: Results, whole: Results) -> None:
    """What a rank finds is what one rank finds on the whole batch."""
    assert_near({"loss": share["loss"]}, {"loss": whole["loss"]})
    for part in ("terms", "gradients", "buffers"):
        assert_near(share[part], whole[part])


@pytest.mark.parametrize("form", FORMS)
def test_a_rank_without_pairs_takes_part_in_the_same_sums(
    in_float64: None, joint_configs: dict[str, ModelConfig], ranks: list[Results], form: str
) -> None:
    whole = joint_step(None, joint_configs[form], pairs=1)
    assert all(whole["terms"][name] != 0 for name in TERMS)
    for share in (rank["without"][form] for rank in ranks):
        assert_same(share, whole)


def test_sums_have_the_gradients_of_all_ranks_copies_of_the_loss(ranks: list[Results]) -> None:
    """First sums 10 and 12, second ones 3 (0 + 100) and 3 (1 + 121); each rank's copy of the loss is the same."""
    for rank, share in enumerate(rank["reductions"] for rank in ranks):
        assert [x.flatten().tolist() for x in share["sums"]] == [[10, 12], [300, 366]]
        own = torch.tensor([10.0 * rank, 10.0 * rank + 1])
        expected = RANKS * (5 + 6 * own * torch.tensor([366.0, 300.0]))
        torch.testing.assert_close(share["sums_grad"].flatten(), expected)


def test_moments_have_the_gradients_of_what_every_rank_made_of_them(ranks: list[Results]) -> None:
    for rank, share in enumerate(rank["reductions"] for rank in ranks):
        assert share["moments"].tolist() == [4, 5]
        centred = torch.tensor([1.0, 3.0]) + 4 * rank - 4
        torch.testing.assert_close(share["moments_grad"].flatten(), (1 + 2) * (1 + 2 * centred) / 4)


def test_rows_are_gathered_in_rank_order_and_filled_up(ranks: list[Results]) -> None:
    for share in (rank["reductions"] for rank in ranks):
        assert share["gathered"].flatten().tolist() == [0, 1, 10, 11]
        assert share["filled"].flatten().tolist() == [0, 0, 10, 11]


def test_a_masked_mean_is_over_what_all_ranks_see(ranks: list[Results]) -> None:
    first, second = (rank["reductions"] for rank in ranks)
    assert first["mean"].item() == second["mean"].item() == 2  # of 1 and 3, which rank 1 alone sees
    assert first["mean_grad"].flatten().tolist() == [0, 0, 0]
    assert second["mean_grad"].flatten().tolist() == [2 * 0.5, 2 * 0.5, 0]


def test_batch_norm_is_over_the_rows_gather_all(ranks: list[Results]) -> None:
    rows = torch.cat([rank["reductions"]["one_row"] for rank in ranks])  # of 0 and 1, one a rank
    torch.testing.assert_close(rows, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), rtol=0, atol=1e-4)

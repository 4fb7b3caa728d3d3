"""The coarse-to-fine estimator: its network, its start at zero, its levels, limits and forms of matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.model.config import FlowConfig, ModelConfig
from mcjepa.model.encoder import STRIDES
from mcjepa.model.flow_estimator import DenseConvolutions, FlowEstimator, ResidualFlow, _standardize
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.warp import warp

CHANNELS = (2, 3, 4, 5, 6, 7)
MakeEstimator = Callable[..., FlowEstimator]


@pytest.fixture
def make_estimator(tiny_config: ModelConfig) -> MakeEstimator:
    """Makes an estimator, `make_estimator(field=value…)`, that answers at random: its zero start is undone."""

    def make(**settings: object) -> FlowEstimator:
        estimator = FlowEstimator(replace(tiny_config.flow, **settings), CHANNELS, STRIDES)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in estimator.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return estimator

    return make


def random_pyramid(height: int, width: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, c, -(-height // s), -(-width // s)) for c, s in zip(CHANNELS, STRIDES, strict=True)]


def concatenating_forward(dense: DenseConvolutions, x: Tensor) -> Tensor:
    """The textbook form: every layer convolves the concatenation of the input and all layers before it."""
    convs = [conv for conv in dense.spread if isinstance(conv, nn.Conv2d)]
    targets = [*dense.widths, convs[-1].out_channels]
    parts, out = [x], x
    for t, width in enumerate(targets):
        rows = [slice(sum(targets[s:t]), sum(targets[s:t]) + width) for s in range(t + 1)]
        weight = torch.cat([convs[s].weight[rows[s]] for s in range(t + 1)], dim=1)
        bias = convs[0].bias
        assert bias is not None
        out = F.conv2d(torch.cat(parts, dim=1), weight, bias[rows[0]], padding=1)
        if t < len(dense.widths):
            out = dense.activations[t](out)
        parts.append(out)
    return out


@pytest.mark.parametrize("normalize", [True, False])
def test_dense_convolutions_equal_concatenation_before_every_layer(in_float64: None, normalize: bool) -> None:
    dense = DenseConvolutions(5, (4, 3, 2), 6, normalize).double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 6, 6, 7, dtype=torch.float64)
    results = []
    for out in (dense(x), concatenating_forward(dense, x)):
        results.append((out, *torch.autograd.grad((out * weight).sum(), (x, *dense.parameters()))))
    for ours, textbook in zip(*results, strict=True):
        torch.testing.assert_close(ours, textbook, rtol=1e-10, atol=1e-10)


def test_dense_convolutions_start_as_torch_starts_the_concatenating_ones() -> None:
    dense = DenseConvolutions(8, (16, 16), 4, normalize=False)
    expected = [nn.Conv2d(channels, width, 3) for channels, width in ((8, 16), (24, 16), (40, 4))]
    assert sum(p.numel() for p in dense.spread.parameters()) == sum(p.numel() for c in expected for p in c.parameters())
    first, last = dense.spread[0].weight, dense.spread[-1].weight
    assert first[:16].abs().max().item() == pytest.approx((9 * 8) ** -0.5, rel=0.02)
    assert first[16:32].abs().max().item() == pytest.approx((9 * 24) ** -0.5, rel=0.02)
    assert last.abs().max().item() == pytest.approx((9 * 40) ** -0.5, rel=0.02)


@pytest.mark.parametrize(("factor", "millions"), [(1.0, 2.30), (2.0, 7.96)])
def test_the_default_estimator_counts_the_paper_s_parameters(factor: float, millions: float) -> None:
    residual = ResidualFlow(FlowConfig(width_factor=factor))
    assert sum(p.numel() for p in residual.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_flow_is_zero_at_initialisation_and_learns_from_there(tiny_config: ModelConfig) -> None:
    estimator = FlowEstimator(tiny_config.flow, CHANNELS, STRIDES)
    flows = estimator(random_pyramid(64, 96), random_pyramid(64, 96))
    assert all(flow.abs().max() == 0 for flow in flows)
    sum((flow * torch.randn_like(flow)).sum() for flow in flows).backward()
    moved = {name for name, p in estimator.residual.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"dense.spread.0.weight", "context.3.weight"} <= moved


@pytest.mark.parametrize(("coarsest", "finest"), [(64, 4), (32, 4), (16, 8), (8, 8)])
def test_flows_come_at_every_decoded_stride_finest_first(
    make_estimator: MakeEstimator, coarsest: int, finest: int
) -> None:
    estimator = make_estimator(coarsest_stride=coarsest, finest_stride=finest)
    flows = estimator(random_pyramid(97, 130), random_pyramid(97, 130))
    decoded = [stride for stride in STRIDES if finest <= stride <= coarsest]
    assert [tuple(flow.shape) for flow in flows] == [(2, 2, -(-97 // s), -(-130 // s)) for s in decoded]
    assert len(estimator.project) == len(decoded)
    assert all(flow.dtype == torch.float32 for flow in flows)


def test_flow_is_clipped_to_the_limit_in_pixels_at_every_level(make_estimator: MakeEstimator) -> None:
    estimator = make_estimator(max_flow_px=20.0)
    with torch.no_grad():
        estimator.residual.context[-1].bias.copy_(torch.tensor([1e6, -1e6]))
    flows = estimator(random_pyramid(64, 64), random_pyramid(64, 64))
    for flow, stride in zip(flows, (4, 8, 16, 32, 64), strict=True):
        assert (flow[:, 0] * stride).unique().tolist() == [20.0]
        assert (flow[:, 1] * stride).unique().tolist() == [-20.0]


def test_the_flow_of_a_level_starts_from_the_coarser_one(make_estimator: MakeEstimator) -> None:
    estimator = make_estimator()
    with torch.no_grad():
        for parameter in estimator.residual.parameters():
            parameter.zero_()
        estimator.residual.context[-1].bias.copy_(torch.tensor([0.5, -0.25]))
    flows = estimator(random_pyramid(64, 64), random_pyramid(64, 64))
    for flow, cells in zip(flows, (15.5, 7.5, 3.5, 1.5, 0.5), strict=True):  # f(l + 1) = 2 f(l) + 0.5
        torch.testing.assert_close(flow[:, 0], torch.full_like(flow[:, 0], cells))
        torch.testing.assert_close(flow[:, 1], torch.full_like(flow[:, 1], -cells / 2))


def test_the_finest_level_is_decoded_again_in_use_and_once_in_training(make_estimator: MakeEstimator) -> None:
    estimator = make_estimator(finest_passes=3)
    with torch.no_grad():
        for parameter in estimator.residual.parameters():
            parameter.zero_()
        estimator.residual.context[-1].bias.copy_(torch.tensor([0.5, -0.25]))
    pyramid = random_pyramid(64, 64)
    assert estimator(pyramid, pyramid)[0][:, 0].unique().tolist() == [15.5]
    assert estimator.eval()(pyramid, pyramid)[0][:, 0].unique().tolist() == [16.5]  # twice half a cell more
    assert estimator(pyramid, pyramid)[1][:, 0].unique().tolist() == [7.5]


def test_a_later_pass_warps_by_the_flow_of_the_pass_before(make_estimator: MakeEstimator) -> None:
    """Two passes are what one is that starts where the first ended."""
    torch.manual_seed(0)
    once, twice = (make_estimator(finest_passes=n, coarsest_stride=8, finest_stride=8) for n in (1, 2))
    for parameter in once.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    twice.load_state_dict(once.state_dict())
    a, b = random_pyramid(64, 64), random_pyramid(64, 64)
    level = once.first
    with torch.no_grad():
        flow = once.eval()(a, b)[0]
        expected = once._step(level, a[level], warp(b[level], flow), flow)
        torch.testing.assert_close(twice.eval()(a, b)[0], expected)
    assert not torch.allclose(flow, expected, atol=1e-3)


def test_level_dropout_leaves_a_level_at_the_coarser_flow(make_estimator: MakeEstimator) -> None:
    """With a residual that is the same everywhere, the finest flow says which levels added theirs."""
    estimator = make_estimator(level_dropout=0.25)
    with torch.no_grad():
        for parameter in estimator.residual.parameters():
            parameter.zero_()
        estimator.residual.context[-1].bias.copy_(torch.tensor([0.01, 0.0]))
    strides = torch.tensor([64.0, 32.0, 16.0, 8.0, 4.0])  # px that a level's hundredth of a cell is worth, times 100
    pyramid = random_pyramid(64, 64, batch=256)
    torch.manual_seed(3)
    flow = estimator(pyramid, pyramid)[0]
    torch.manual_seed(3)
    kept = torch.stack([torch.rand(256) >= 0.25 for _ in strides], dim=1)
    torch.testing.assert_close(4 * flow[:, 0, 8, 8], 0.01 * (kept * strides).sum(1))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(4 * estimator.eval()(pyramid, pyramid)[0][:, 0, 8, 8], torch.full((256,), 1.24))


def test_both_directions_in_one_batch_equal_each_alone(make_estimator: MakeEstimator) -> None:
    estimator, a, b = make_estimator(), random_pyramid(64, 96), random_pyramid(64, 96)
    both = estimator([torch.cat(x) for x in zip(a, b, strict=True)], [torch.cat(x) for x in zip(b, a, strict=True)])
    for stacked, there, back in zip(both, estimator(a, b), estimator(b, a), strict=True):
        torch.testing.assert_close(stacked, torch.cat((there, back)), rtol=1e-4, atol=1e-4)
        assert (there - back).abs().max() > 0.01


def test_what_is_warped_is_the_target(make_estimator: MakeEstimator) -> None:
    """With a residual that is constant, the second level correlates the source with the target moved by it."""
    estimator = make_estimator(coarsest_stride=8, finest_stride=4)
    seen: list[Tensor] = []

    def constant_residual(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    estimator.residual.register_forward_pre_hook(constant_residual)
    with torch.no_grad():
        for parameter in estimator.residual.parameters():
            parameter.zero_()
        estimator.residual.context[-1].bias.copy_(torch.tensor([0.5, 0.0]))  # one cell of the finer level
    a = random_pyramid(64, 64)
    b = [torch.roll(x, 1, dims=3) for x in a]
    estimator(a, b)
    window = (2 * estimator.config.search_range + 1) ** 2
    best = seen[1][:, :window, 4:-4, 4:-4].mean((0, 2, 3)).argmax().item()
    assert best == window // 2


@pytest.mark.parametrize("match", ["raw", "standardized", "cosine"])
def test_each_form_of_matching_has_gradients_to_both_images(make_estimator: MakeEstimator, match: str) -> None:
    estimator = make_estimator(match=match)
    a, b = ([x.requires_grad_() for x in random_pyramid(64, 64)] for _ in range(2))
    estimator(a, b)[0].square().sum().backward()
    for level in (1, 2, 3, 4, 5):
        for x in (a[level], b[level]):
            assert x.grad is not None and x.grad.isfinite().all()
    assert a[1].grad.abs().max() > 0 and b[1].grad.abs().max() > 0


def matching_cost(estimator: FlowEstimator, a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The correlation that the network of the coarsest level is shown."""
    seen: list[Tensor] = []
    handle = estimator.residual.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    estimator(a, b)
    handle.remove()
    return seen[0][:, : (2 * estimator.config.search_range + 1) ** 2]


def test_standardized_matching_ignores_the_scale_and_offset_of_a_pair(make_estimator: MakeEstimator) -> None:
    a, b = random_pyramid(512, 512), random_pyramid(512, 512)
    for match, same in (("standardized", True), ("raw", False)):
        estimator = make_estimator(match=match)
        cost = matching_cost(estimator, a, b)
        scaled = matching_cost(estimator, [5 * x + 2 for x in a], [5 * x + 2 for x in b])
        assert torch.allclose(scaled, cost, rtol=1e-3, atol=1e-3) is same


def test_cosine_matching_ignores_scale_and_offset_of_a_channel_and_stays_within_one(
    make_estimator: MakeEstimator,
) -> None:
    a, b = random_pyramid(512, 512), random_pyramid(512, 512)
    estimator = make_estimator(match="cosine")
    cost = matching_cost(estimator, a, b)
    scales = [1 + 4 * torch.rand(1, x.shape[1], 1, 1) for x in a]
    moved = [[x * s + s for x, s in zip(side, scales, strict=True)] for side in (a, b)]
    torch.testing.assert_close(matching_cost(estimator, *moved), cost, rtol=1e-3, atol=1e-3)
    assert cost.max() <= 1 + 1e-4
    same = matching_cost(estimator, a, a)
    centre = same.shape[1] // 2
    torch.testing.assert_close(same[:, centre], torch.ones_like(same[:, centre]), rtol=1e-3, atol=1e-3)


def test_standardized_costs_have_mean_zero_and_variance_one_a_sample_and_ignore_scale() -> None:
    cost = 0.9 + 0.01 * torch.randn(3, 25, 4, 6)
    out = _standardize(cost)
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.var((1, 2, 3), correction=0), torch.ones(3), rtol=0.02, atol=0)
    torch.testing.assert_close(_standardize(7 * cost - 3), out, rtol=0.02, atol=0.02)
    assert _standardize(cost.bfloat16()).dtype == torch.bfloat16
    assert _standardize(torch.full((1, 9, 2, 2), 0.5)).abs().max() == 0


def test_standardizing_the_costs_by_hand() -> None:
    out = _standardize(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    assert out.flatten().tolist() == pytest.approx([-1.0, 1.0], rel=1e-5)


def test_gradients_of_standardized_costs_agree_with_finite_differences(in_float64: None) -> None:
    cost = torch.randn(2, 9, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_standardize, (cost,), atol=1e-4, rtol=1e-3)


def test_raw_features_of_any_scale_give_the_same_standardized_costs(make_estimator: MakeEstimator) -> None:
    estimator = make_estimator(cost_norm="sample")
    for project in estimator.project:
        torch.nn.init.zeros_(project.weight)  # what is read of the features besides their costs
    a, b = random_pyramid(64, 64), random_pyramid(64, 64)
    for flow, other in zip(estimator(a, b), estimator([9 * x for x in a], [9 * x for x in b]), strict=True):
        torch.testing.assert_close(flow, other, rtol=1e-2, atol=1e-2)


def test_matching_of_constant_maps_is_finite(make_estimator: MakeEstimator) -> None:
    for match in ("standardized", "cosine"):
        flat = [torch.full_like(x, 3.0).requires_grad_() for x in random_pyramid(64, 64)]
        out = make_estimator(match=match)(flat, flat)[0]
        out.sum().backward()
        assert out.isfinite().all()
        assert all(x.grad is None or x.grad.isfinite().all() for x in flat)


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (20, 33), (3, 5)])
def test_estimated_flow_has_the_size_of_the_frames(tiny_config: ModelConfig, size: tuple[int, int]) -> None:
    model = MCJEPA(tiny_config).eval()
    frames = torch.rand(2, 2, 3, *size)
    flow = model.estimate_flow(frames[0], frames[1])
    assert flow.shape == (2, 2, *size) and flow.dtype == torch.float32


def test_estimated_flow_is_in_pixels_of_the_frames(tiny_config: ModelConfig) -> None:
    model = MCJEPA(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.flow_estimator.residual.parameters():
            parameter.zero_()
        model.flow_estimator.residual.context[-1].bias.copy_(torch.tensor([0.1, -0.05]))
    flow = model.estimate_flow(*torch.rand(2, 1, 3, 64, 64))
    torch.testing.assert_close(flow[:, 0], torch.full((1, 64, 64), 4 * 3.1))  # 0.1 (1 + 2 + 4 + 8 + 16) cells of 4
    torch.testing.assert_close(flow[:, 1], torch.full((1, 64, 64), -4 * 1.55))


def test_frames_of_different_sizes_are_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="expected the same"):
        MCJEPA(tiny_config).estimate_flow(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 32))

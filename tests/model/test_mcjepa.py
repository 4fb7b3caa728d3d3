"""The joint model: which terms a call computes, where their gradients go, and mixed precision."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcjepa.model.config import LossConfig, ModelConfig
from mcjepa.model.losses.reconstruction import reconstruction_loss
from mcjepa.model.losses.smoothness import smoothness_loss
from mcjepa.model.losses.variance_covariance import variance_covariance_loss
from mcjepa.model.mcjepa import MCJEPA, PAIR_TERMS, JointLoss, swap_halves
from mcjepa.model.reduction import masked_mean
from mcjepa.model.warp import pool, trust_if_mostly_visible, upsample_flow, visible, warp

WEIGHTS = {"regression": 1.0, "reconstruction": 2.0, "smoothness": 3.0, "cycle": 0.2, "vc": 5.0, "content": 0.1}
MOTION = set(WEIGHTS) - {"content"}
Batch = tuple[Tensor, Tensor]


@pytest.fixture
def model(tiny_config: ModelConfig) -> MCJEPA:
    """A tiny model whose flow is not zero."""
    model = MCJEPA(tiny_config)
    with torch.no_grad():
        for parameter in model.flow_estimator.residual.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pairs() -> Batch:
    frame = torch.rand(2, 3, 70, 64)
    return frame, torch.roll(frame, 1, dims=3)


@pytest.fixture
def views() -> Batch:
    return torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)


def has_gradient(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def with_constant_flow(model: MCJEPA, u_px: float, v_px: float) -> MCJEPA:
    """Lets the estimator answer one flow everywhere, the same for both directions."""
    residual, strides = model.flow_estimator.residual, (4, 8, 16, 32, 64)
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.zero_()
        bias = torch.tensor([u_px, v_px]) / sum(strides)  # what one residual adds to the flow at the finest level
        residual.context[-1].bias.copy_(bias)
    return model


def test_the_loss_is_the_weighted_sum_of_its_terms(model: MCJEPA, pairs: Batch, views: Batch) -> None:
    out = model(pairs, views, WEIGHTS)
    assert set(out.terms) >= set(WEIGHTS)
    total = sum(WEIGHTS[name] * out.terms[name] for name in WEIGHTS)
    torch.testing.assert_close(out.loss.detach(), total, rtol=1e-5, atol=1e-6)
    assert all(value.isfinite() and not value.requires_grad for value in (out.terms | out.meters).values())
    torch.testing.assert_close(out.terms["vc"], out.terms["vc_variance"] + out.terms["vc_covariance"])


def test_the_content_term_weighs_its_three_parts(model: MCJEPA, views: Batch) -> None:
    terms = model(None, views, {"content": 1.0}).terms
    expected = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    torch.testing.assert_close(terms["content"], expected)


def test_either_batch_may_be_absent(model: MCJEPA, pairs: Batch, views: Batch) -> None:
    both, motion, content = (model(p, v, WEIGHTS) for p, v in ((pairs, views), (pairs, None), (None, views)))
    assert set(motion.terms) >= MOTION and "content" not in motion.terms
    assert "content" in content.terms and not set(content.terms) & set(PAIR_TERMS)
    torch.testing.assert_close(both.loss, motion.loss + content.loss)


@pytest.mark.parametrize("count", [2, 0])  # 0: of more ranks than pairs
def test_streams_of_one_size_take_one_pass_and_give_what_two_give(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("mcjepa.model.mcjepa.world_size", lambda: 2)
    model = MCJEPA(tiny_config)
    frames, views = torch.rand(2, count, 3, 64, 64).unbind(), torch.rand(2, 3, 3, 64, 64).unbind()
    passes: list[int] = []
    model.encoder.register_forward_hook(lambda module, images, levels: passes.append(len(images[0])))
    together = gradient_of(model, model(frames, views, WEIGHTS).loss)
    assert passes == [2 * count + 6]
    alone = [model(frames, None, WEIGHTS).loss, model(None, views, WEIGHTS).loss]
    assert passes == [2 * count + 6, 2 * count, 6]
    torch.testing.assert_close(together, gradient_of(model, torch.stack(alone).sum()), rtol=1e-4, atol=1e-6)


def gradient_of(model: MCJEPA, loss: Tensor) -> Tensor:
    """Of all parameters, as one vector."""
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True)
    return torch.cat([x.flatten() for x in found])


def test_no_batch_at_all_costs_nothing(model: MCJEPA) -> None:
    out = model(None, None, WEIGHTS)
    assert out.loss.item() == 0 and out.terms == {} and out.meters == {}


@pytest.mark.parametrize("missing", ["regression", "cycle", "content", "self_supervision"])
def test_a_term_without_weight_is_not_computed(model: MCJEPA, pairs: Batch, views: Batch, missing: str) -> None:
    without = {name: weight for name, weight in WEIGHTS.items() if name != missing}
    assert missing not in model(pairs, views, without).terms
    assert missing not in model(pairs, views, {**without, missing: 0.0}).terms


def test_pairs_without_any_weight_do_not_run_the_estimator(model: MCJEPA, pairs: Batch, views: Batch) -> None:
    out = model(pairs, views, {"content": 1.0})
    out.loss.backward()
    assert not set(out.terms) & set(PAIR_TERMS)
    assert not has_gradient(model.flow_estimator) and has_gradient(model.encoder)


def test_a_weight_of_zero_does_not_let_a_broken_term_into_the_loss(tiny_config: ModelConfig, pairs: Batch) -> None:
    broken = replace(tiny_config.loss, smoothness_edge=-1e6)  # infinite edge weights on the zero flow: not a number
    model = MCJEPA(replace(tiny_config, loss=broken))
    out = model(pairs, None, {"vc": 1.0, "smoothness": 0.0})
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.encoder.parameters())


def test_gradients_reach_encoder_estimator_and_expander(model: MCJEPA, pairs: Batch, views: Batch) -> None:
    model(pairs, views, WEIGHTS).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    unmoved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() == 0}
    assert unmoved == set()


@pytest.mark.parametrize(
    ("term", "reaches"),
    [
        ("regression", {"encoder", "flow_estimator"}),
        ("reconstruction", {"encoder", "flow_estimator"}),
        ("smoothness", {"encoder", "flow_estimator"}),
        ("cycle", {"encoder", "flow_estimator"}),
        ("vc", {"encoder"}),
        ("content", {"encoder", "expander"}),
    ],
)
def test_a_term_alone_reaches_its_parts(
    model: MCJEPA, pairs: Batch, views: Batch, term: str, reaches: set[str]
) -> None:
    model(pairs, views, {term: 1.0}).loss.backward()
    assert {name for name, part in model.named_children() if has_gradient(part)} == reaches


@pytest.mark.parametrize("match", ["raw", "standardized", "cosine"])
def test_gradients_of_the_joint_loss_agree_with_finite_differences(
    in_float64: None, tiny_config: ModelConfig, match: str
) -> None:
    config = replace(
        tiny_config,
        flow=replace(tiny_config.flow, match=match, coarsest_stride=32),
        loss=LossConfig(photometric_scales=(1.0, 0.5), min_visible_share=0.0, occlusion_offset=100.0),
    )
    model = MCJEPA(config).double()
    pairs = tuple(torch.rand(2, 2, 3, 40, 36, dtype=torch.float64))
    views = tuple(torch.rand(2, 3, 3, 32, 32, dtype=torch.float64))
    directions = [torch.randn_like(p) * p.detach().abs().mean().clamp_min(1e-3) for p in model.parameters()]

    def loss_at(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter.add_(step * direction)
        out: JointLoss = model(pairs, views, WEIGHTS)
        return out.loss

    loss_at(0.1).backward()  # away from the zero start
    slope = sum((p.grad * d).sum().item() for p, d in zip(model.parameters(), directions, strict=True))
    with torch.no_grad():
        step = 1e-7
        ahead, behind = loss_at(step).item(), loss_at(-2 * step).item()
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)


def test_the_flow_direction_of_the_loss_is_that_of_estimate_flow(tiny_config: ModelConfig) -> None:
    """Both directions answer (2, 0) px: right for frame 0 to frame 1, wrong for the way back."""
    model = with_constant_flow(MCJEPA(tiny_config), 2.0, 0.0).eval()
    scene = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 64, 100), 5, 1, padding=2)
    frame0, frame1 = scene[..., 20:84], scene[..., 18:82]  # the camera pans left: everything moves right
    flow = model.estimate_flow(frame0, frame1)
    torch.testing.assert_close(flow[:, 0], torch.full((1, 64, 64), 2.0), rtol=0, atol=1e-4)
    form, mask = LossConfig(), torch.ones(1, 1, 64, 64)
    right = reconstruction_loss(frame0, warp(frame1, flow), mask, form)
    wrong = reconstruction_loss(frame1, warp(frame0, flow), mask, form)
    assert right < 0.1 * wrong
    joint = model((frame0, frame1), None, {"reconstruction": 1.0})
    assert joint.meters["visible_share"] == 0  # the directions contradict each other: trusted everywhere
    torch.testing.assert_close(joint.terms["reconstruction"], (right + wrong) / 2, rtol=1e-4, atol=1e-5)
    assert joint.meters["flow_px"].item() == pytest.approx(2.0, rel=1e-4)


def test_feature_terms_are_those_of_both_directions_by_their_own_flows(model: MCJEPA) -> None:
    frames = torch.rand(2, 1, 3, 64, 96)
    form, strides = model.config.loss, model.encoder.strides
    with torch.no_grad():
        a, b = (model.forward_pyramid(frame) for frame in frames)
        ab, ba = (model.flow_estimator(*ends) for ends in ((a, b), (b, a)))
    ab, ba = ([upsample_flow(flows[0], (32, 48), 2), *flows] for flows in (ab, ba))  # stride 2 from stride 4
    masks: list[list[Tensor]] = []
    for ends in ((ab, ba), (ba, ab)):
        there, back = (upsample_flow(flows[1], (64, 96), 4) for flows in ends)
        seen = visible(there, back, form.occlusion_scale, form.occlusion_offset)
        seen = trust_if_mostly_visible(seen, form.min_visible_share)
        masks.append([pool(seen, stride) for stride in strides])
    regression, cycle = torch.zeros(()), torch.zeros(())
    for x, y, xy, yx, of_x, of_y in zip(a, b, ab, ba, *masks, strict=True):
        mask = torch.cat((of_x, of_y))
        guesses = torch.cat((warp(y, xy), warp(x, yx)))
        homes = torch.cat((warp(warp(x, yx), xy), warp(warp(y, xy), yx)))
        regression = regression + masked_mean((torch.cat((x, y)) - guesses).square(), mask)
        cycle = cycle + masked_mean((torch.cat((x, y)) - homes).square(), mask)
    terms = model(tuple(frames), None, WEIGHTS).terms
    assert max((flow - back).abs().max().item() for flow, back in zip(ab, ba, strict=True)) > 0.05
    torch.testing.assert_close(terms["regression"], regression, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["cycle"], cycle, rtol=1e-4, atol=1e-5)


def with_form(model: MCJEPA, **settings: object) -> MCJEPA:
    """The model with other settings of its loss."""
    other = copy.deepcopy(model)
    other.config = replace(model.config, loss=replace(model.config.loss, **settings))  # type: ignore[arg-type]
    return other


def test_coefficients_of_feature_levels_are_named_coarsest_first_and_add_up(model: MCJEPA, pairs: Batch) -> None:
    def terms(*levels: float) -> dict[str, Tensor]:
        return with_form(model, feature_levels=levels)(pairs, None, WEIGHTS).terms

    whole, finest, rest = terms(2, 2, 2, 2, 2, 2), terms(0, 0, 0, 0, 0, 1), terms(1, 1, 1, 1, 1, 0)
    plain = model(pairs, None, WEIGHTS).terms
    for name in ("regression", "cycle"):
        torch.testing.assert_close(whole[name], 2 * plain[name])
        torch.testing.assert_close(finest[name] + rest[name], plain[name])


def test_feature_levels_that_say_nothing_are_refused() -> None:
    for levels in ((0.0,) * 6, (1.0,) * 5, (1.0, 1.0, 1.0, 1.0, 1.0, -1.0)):
        with pytest.raises(ValueError, match="feature_levels"):
            LossConfig(feature_levels=levels)


def growth(model: MCJEPA, pairs: Batch, term: str) -> float:
    """Slope of a feature term along the scale of the finest level's features, which only that term sees."""
    stem = model.encoder.stem_fine
    model.zero_grad()
    model(pairs, None, {term: 1.0}).loss.backward()
    slope = (stem.weight.grad * stem.weight).sum()
    if stem.bias is not None:
        slope = slope + (stem.bias.grad * stem.bias).sum()
    return float(slope.detach())


@pytest.mark.parametrize("term", ["regression", "cycle"])
def test_features_that_shrink_gain_nothing_at_relative_scale(model: MCJEPA, pairs: Batch, term: str) -> None:
    """The finest level is a linear map of the image (no activation), so its scale is that of its weights; the flow
    is held, because it is decoded from other levels."""
    for parameter in model.flow_estimator.parameters():
        parameter.requires_grad_(False)
    levels = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    held = with_constant_flow(model, 1.0, 0.5)
    plain = growth(with_form(held, feature_levels=levels), pairs, term)
    fixed = growth(with_form(held, feature_levels=levels, feature_target="fixed"), pairs, term)
    relative = growth(with_form(held, feature_levels=levels, feature_scale="relative"), pairs, term)
    value = with_form(held, feature_levels=levels)(pairs, None, {term: 1.0}).terms[term].item()
    assert plain == pytest.approx(2 * value, rel=1e-3)  # a square: growing features cost, so descent shrinks them
    assert 0 < fixed < plain
    assert abs(relative) < 1e-4 * plain


def test_range_map_occlusion_takes_zero_flow_as_visible_and_contradicting_flows_too(tiny_config: ModelConfig) -> None:
    form = replace(tiny_config.loss, occlusion="range-map")
    model = with_constant_flow(MCJEPA(replace(tiny_config, loss=form)), 16.0, 0.0).eval()
    out = model(tuple(torch.rand(2, 1, 3, 64, 64)), None, {"reconstruction": 1.0})
    # 16 columns leave the frame to the right, and nothing lands on the 16 at the left.
    assert out.meters["visible_share"].item() == pytest.approx(32 / 64)


def test_variance_and_covariance_weights_are_named_coarsest_level_first(tiny_config: ModelConfig) -> None:
    one_level = replace(tiny_config.loss, vc_variance=(1, 0, 0, 0, 0, 0), vc_covariance=(0, 0, 0, 0, 0, 1))
    model, frames = MCJEPA(replace(tiny_config, loss=one_level)), torch.rand(2, 1, 3, 64, 64)
    pyramid = model.forward_pyramid(torch.cat(tuple(frames)))
    terms = model(tuple(frames), None, {"vc": 1.0}).terms
    variance, _ = variance_covariance_loss([pyramid[-1]], [1.0], [0.0])
    _, covariance = variance_covariance_loss([pyramid[0]], [0.0], [1.0])
    torch.testing.assert_close(terms["vc_variance"], variance.detach())
    torch.testing.assert_close(terms["vc_covariance"], covariance.detach())


def test_pixels_that_leave_the_frame_are_left_out(tiny_config: ModelConfig) -> None:
    form = replace(tiny_config.loss, occlusion_offset=1e6)
    model = with_constant_flow(MCJEPA(replace(tiny_config, loss=form)), 16.0, 0.0).eval()
    out = model(tuple(torch.rand(2, 1, 3, 64, 64)), None, {"reconstruction": 1.0})
    assert out.meters["visible_share"].item() == pytest.approx(48 / 64)


def test_pairs_that_are_occluded_everywhere_cost_no_comparison_and_stay_finite(tiny_config: ModelConfig) -> None:
    form = replace(tiny_config.loss, min_visible_share=0.0)
    model = with_constant_flow(MCJEPA(replace(tiny_config, loss=form)), 3.0, 0.0)  # both directions to the right
    out = model(tuple(torch.rand(2, 1, 3, 64, 64)), None, WEIGHTS)
    out.loss.backward()
    assert out.meters["visible_share"] == 0
    assert {out.terms[name].item() for name in ("regression", "reconstruction", "cycle")} == {0.0}
    assert out.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_still_pairs_at_the_zero_start_cost_no_motion(tiny_config: ModelConfig) -> None:
    frame = torch.rand(2, 3, 64, 64)
    terms = MCJEPA(tiny_config)((frame, frame.clone()), None, WEIGHTS).terms
    for name in ("regression", "reconstruction", "smoothness", "cycle"):
        assert terms[name].item() == pytest.approx(0, abs=1e-5)


def test_the_order_of_the_frames_does_not_matter(model: MCJEPA, pairs: Batch) -> None:
    there, back = (model(p, None, WEIGHTS) for p in (pairs, pairs[::-1]))
    for name in MOTION:
        torch.testing.assert_close(there.terms[name], back.terms[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1.0), (1.0, 0.0, 0.5), (1.0,) * 9])
def test_photometric_scales_average(tiny_config: ModelConfig, scales: tuple[float, ...]) -> None:
    form = replace(tiny_config.loss, photometric_scales=scales)
    model = MCJEPA(replace(tiny_config, loss=form))
    first, second = torch.rand(2, 1, 3, 64, 64)
    expected = []
    for k, weight in enumerate(scales[:5]):
        pooled = [torch.nn.functional.avg_pool2d(x, 2**k) for x in (first, second)]
        ones = torch.ones(1, 1, *pooled[0].shape[-2:])
        both = [reconstruction_loss(a, b, ones, form) for a, b in (pooled, pooled[::-1])]
        expected.append((weight, sum(both) / 2))
    term = model((first, second), None, {"reconstruction": 1.0}).terms["reconstruction"]
    mean = sum(w * x for w, x in expected) / sum(w for w, _ in expected)
    torch.testing.assert_close(term, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", [2, 4])
def test_reduced_reconstruction_compares_pooled_images(model: MCJEPA, reduction: int) -> None:
    frames = tuple(torch.rand(2, 1, 3, 64, 72))
    reduced = with_form(model, photometric_reduction=reduction, photometric_scales=(1.0, 0.5), min_visible_share=1.0)
    term = reduced(frames, None, {"reconstruction": 1.0}).terms["reconstruction"]
    with torch.no_grad():
        pyramids = [model.forward_pyramid(frame) for frame in frames]
        flows = [model.flow_estimator(*ends)[:2] for ends in (pyramids, pyramids[::-1])]
    expected = torch.zeros(())
    for (a, b), flow in zip((frames, frames[::-1]), flows, strict=True):
        for k, weight in enumerate((1.0, 0.5)):
            small, other = (pool(x, reduction * 2**k) for x in (a, b))
            size = (small.shape[-2], small.shape[-1])
            guess = warp(other, upsample_flow(flow[k], size, 4 // reduction))
            whole = torch.ones_like(small[:, :1])
            expected = expected + weight * reconstruction_loss(small, guess, whole, model.config.loss) / 2
    torch.testing.assert_close(term, expected / 1.5, rtol=1e-4, atol=1e-5)


def test_smoothness_is_taken_of_the_finest_decoded_flow_at_full_size(model: MCJEPA, pairs: Batch) -> None:
    images = torch.cat(pairs)
    with torch.no_grad():
        pyramid = model.forward_pyramid(images)
        flow = model.flow_estimator(pyramid, [swap_halves(x) for x in pyramid])[0]
    term = model(pairs, None, {"smoothness": 1.0}).terms["smoothness"]
    torch.testing.assert_close(term, smoothness_loss(upsample_flow(flow, (70, 64), 4), images, 10.0, 1))


@pytest.mark.parametrize(("coarsest", "finest"), [(8, 8), (16, 4), (32, 8)])
def test_levels_that_are_not_decoded_take_the_flow_of_the_nearest(
    tiny_config: ModelConfig, coarsest: int, finest: int
) -> None:
    settings = replace(tiny_config.flow, coarsest_stride=coarsest, finest_stride=finest)
    model = MCJEPA(replace(tiny_config, flow=settings))
    residual, decoded = model.flow_estimator.residual, [s for s in (4, 8, 16, 32, 64) if finest <= s <= coarsest]
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.zero_()
        residual.context[-1].bias.copy_(torch.tensor([6.0, -3.0]) / sum(decoded))
    pyramid = model.forward_pyramid(torch.rand(2, 3, 70, 130))
    flows = model.flow_estimator(pyramid, pyramid)
    everywhere = model._flow_of_every_level(pyramid, flows)
    for flow, x, stride in zip(everywhere, pyramid, model.encoder.strides, strict=True):
        assert flow.shape == (2, 2, *x.shape[-2:])
        if stride <= finest:
            torch.testing.assert_close(flow[:, 0] * stride, torch.full_like(flow[:, 0], 6.0), rtol=1e-4, atol=1e-4)
        if stride >= coarsest:
            pixels = 6.0 * coarsest / sum(decoded)
            torch.testing.assert_close(flow[:, 0] * stride, torch.full_like(flow[:, 0], pixels), rtol=1e-4, atol=1e-4)
    assert model((torch.rand(1, 3, 70, 130), torch.rand(1, 3, 70, 130)), None, WEIGHTS).loss.isfinite()


@pytest.mark.parametrize("size", [(16, 16), (33, 70), (8, 200)])
def test_small_and_odd_pairs_give_finite_losses_and_gradients(
    tiny_config: ModelConfig, views: Batch, size: tuple[int, int]
) -> None:
    model = MCJEPA(replace(tiny_config, flow=replace(tiny_config.flow, coarsest_stride=8)))
    out = model(tuple(torch.rand(2, 1, 3, *size)), views, WEIGHTS)
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_images_without_any_texture_give_finite_gradients(model: MCJEPA) -> None:
    black = torch.zeros(2, 3, 64, 64)
    out = model((black, black), (black, black), WEIGHTS)
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_under_autocast_the_losses_are_finite_fp32_and_near_those_of_fp32(
    model: MCJEPA, pairs: Batch, views: Batch, dtype: torch.dtype, tolerance: float
) -> None:
    exact = model(pairs, views, WEIGHTS)
    with torch.autocast("cpu", dtype):
        out = model(pairs, views, WEIGHTS)
    out.loss.backward()
    assert {value.dtype for value in (out.loss, *out.terms.values(), *out.meters.values())} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for name, value in out.terms.items():
        assert value.item() == pytest.approx(exact.terms[name].item(), rel=tolerance, abs=0.1 * tolerance), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_as_of_an_fp16_engine_give_fp32_losses(
    tiny_config: ModelConfig, pairs: Batch, views: Batch, dtype: torch.dtype
) -> None:
    model = MCJEPA(tiny_config).to(dtype)
    out = model(*(tuple(x.to(dtype) for x in batch) for batch in (pairs, views)), WEIGHTS)
    out.loss.backward()
    assert {value.dtype for value in (out.loss, *out.terms.values())} == {torch.float32} and out.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_the_whole_forward_is_one_graph_of_torch_compile(model: MCJEPA, pairs: Batch, views: Batch) -> None:
    """Traced and differentiated by AOT autograd, run eagerly: what every backend is given."""
    exact = model(pairs, views, WEIGHTS)
    exact.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    out = torch.compile(model, backend="aot_eager", fullgraph=True)(pairs, views, WEIGHTS)
    out.loss.backward()
    torch.testing.assert_close(out.loss, exact.loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_trust_if_mostly_visible_decides_image_by_image() -> None:
    mask = torch.zeros(3, 1, 2, 5)
    mask[0, 0, 0, :2] = 1  # 20 %
    mask[1, 0, 0, :3] = 1  # 30 %
    out = trust_if_mostly_visible(mask, 0.3)
    assert out[0].min() == 1 and out[2].min() == 1
    assert torch.equal(out[1], mask[1])
    assert torch.equal(trust_if_mostly_visible(mask, 0.0), mask)


def test_swap_halves_turns_the_directions_around() -> None:
    assert swap_halves(torch.arange(6)).tolist() == [3, 4, 5, 0, 1, 2]


def test_the_embedding_is_the_mean_of_the_coarsest_map(model: MCJEPA) -> None:
    image = torch.rand(2, 3, 130, 70)
    embedding = model.forward_embedding(image)
    assert embedding.shape == (2, 16)
    torch.testing.assert_close(embedding, model.forward_pyramid(image)[-1].flatten(2).mean(2))

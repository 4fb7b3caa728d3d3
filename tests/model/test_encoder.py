"""The encoder: sizes and places of its maps, its parameters, and what training mode changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mcjepa.model.config import EncoderConfig, ModelConfig
from mcjepa.model.encoder import IMAGENET_MEAN, STRIDES, Block, DropPath, Encoder, _convolve_depthwise


@pytest.fixture
def encoder(tiny_config: ModelConfig) -> Encoder:
    return Encoder(tiny_config.encoder).eval()


@pytest.mark.parametrize("size", [(128, 192), (97, 130), (65, 63), (40, 200), (1, 1)])
def test_a_level_has_the_image_size_over_its_stride_rounded_up(encoder: Encoder, size: tuple[int, int]) -> None:
    maps = encoder(torch.rand(2, 3, *size))
    expected = [
        (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(encoder.channels, (2, 4, 8, 16, 32, 64), strict=True)
    ]
    assert [tuple(x.shape) for x in maps] == expected


def test_strides_and_channels_are_named_finest_first(encoder: Encoder) -> None:
    assert encoder.strides == STRIDES == (2, 4, 8, 16, 32, 64)
    assert encoder.channels == (4, 6, 8, 8, 12, 16)


def test_the_default_encoder_counts_27_86_million_parameters() -> None:
    encoder = Encoder(EncoderConfig())
    assert encoder.channels == (48, 48, 96, 192, 384, 768)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(27.86, abs=0.005)


def test_an_image_shifted_by_64_pixels_shifts_every_map_by_whole_cells(encoder: Encoder) -> None:
    scene = torch.rand(1, 3, 64, 64 * 17)
    here, there = encoder(scene[..., 64:]), encoder(scene[..., :-64])  # the view moves left: things move right
    border_px = 64 * 6  # as far as the borders reach in, through 7x7 blocks at strides 8 to 64
    for a, b, stride in zip(here, there, STRIDES, strict=True):
        shift, border = 64 // stride, border_px // stride
        inner = a[..., border : a.shape[-1] - border - shift]
        moved = b[..., border + shift : b.shape[-1] - border]
        assert inner.shape[-1] > 0
        torch.testing.assert_close(moved, inner, rtol=1e-4, atol=1e-5)
        assert inner.std() > 1e-3


def test_padding_an_odd_size_leaves_the_cells_far_from_it_where_they_were(encoder: Encoder) -> None:
    image = torch.rand(1, 3, 64, 64 * 12)
    whole, cropped = encoder(image), encoder(image[..., :-33])
    for a, b in zip(whole, cropped, strict=True):
        torch.testing.assert_close(a[..., : b.shape[-1] // 4], b[..., : b.shape[-1] // 4], rtol=1e-4, atol=1e-5)


def test_the_mean_colour_of_imagenet_is_zero_to_the_first_convolution(encoder: Encoder) -> None:
    image = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert encoder(image)[0].abs().max() == 0


def test_drop_path_does_nothing_in_evaluation(tiny_config: ModelConfig) -> None:
    encoder = Encoder(replace(tiny_config.encoder, drop_path=0.9))
    image = torch.rand(4, 3, 64, 64)
    trained = [encoder(image)[-1] for _ in range(2)]
    assert not torch.equal(*trained)
    encoder.eval()
    evaluated = [encoder(image)[-1] for _ in range(2)]
    assert torch.equal(*evaluated)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    kept = out[:, 0, 0] > 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 4 / 3))
    assert out[~kept].abs().max() == 0
    assert out.mean() == pytest.approx(1.0, abs=0.04)


def test_drop_path_rises_linearly_over_the_blocks() -> None:
    config = EncoderConfig(stem_channels=(2, 2), stage_channels=(2, 2, 2, 2), depths=(1, 2, 1, 1), drop_path=0.4)
    rates = [module.rate for module in Encoder(config).modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_every_parameter_gets_a_gradient_from_the_maps(tiny_config: ModelConfig) -> None:
    encoder = Encoder(tiny_config.encoder)
    loss = sum((x * torch.randn_like(x)).sum() for x in encoder(torch.rand(2, 3, 64, 96)))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_layer_scale_starts_each_branch_at_its_value() -> None:
    block, image = Block(4, 0.0, 1e-6), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(image), image, rtol=0, atol=1e-4)
    assert block.scale is not None and block.scale.tolist() == pytest.approx([1e-6] * 4)
    assert Block(4, 0.0, 0.0).scale is None


def test_initial_weights_have_the_deviation_that_the_recipe_asks_for(tiny_config: ModelConfig) -> None:
    wide = replace(tiny_config.encoder, stage_channels=(64, 64, 64, 64))
    fixed = Encoder(replace(wide, init_std=0.02)).stages[0][0].expand.weight
    assert fixed.std().item() == pytest.approx(0.02, rel=0.05)
    by_fan_in = Encoder(replace(wide, init_std=0.0)).stages[0][0].expand.weight
    assert by_fan_in.std().item() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize(("size", "millions"), [("nano", 0.20), ("tiny", 27.86), ("small", 49.49), ("base", 87.64)])
def test_each_named_size_counts_its_parameters(size: Any, millions: float) -> None:
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(size=size))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("autocast", [False, True])
def test_activation_checkpointing_gives_the_same_gradients_to_the_bit(tiny_config: ModelConfig, autocast: bool) -> None:
    """Drop-path draws in every block: computing a block again must draw what it drew before."""
    image, results = torch.rand(6, 3, 64, 96), []
    for recompute in (False, True):
        torch.manual_seed(5)
        config = replace(tiny_config.encoder, drop_path=0.6, activation_checkpointing=recompute)
        encoder = Encoder(config)
        torch.manual_seed(6)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = sum(x.float().square().mean() for x in encoder(image))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in encoder.parameters())])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_activation_checkpointing_keeps_less_for_the_backward_pass(tiny_config: ModelConfig) -> None:
    kept_bytes = []
    for recompute in (False, True):
        encoder = Encoder(replace(tiny_config.encoder, depths=(3, 3, 3, 3), activation_checkpointing=recompute))
        kept: dict[int, int] = {}

        def keep(x: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            encoder(torch.rand(2, 3, 128, 128))
        kept_bytes.append(sum(kept.values()))
    assert kept_bytes[1] < 0.6 * kept_bytes[0]


def test_maps_are_in_channels_last_memory(encoder: Encoder) -> None:
    for x in encoder(torch.rand(2, 3, 130, 70)):
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_half_weights_take_fp32_images(tiny_config: ModelConfig) -> None:
    maps = Encoder(tiny_config.encoder).bfloat16()(torch.rand(1, 3, 64, 64))
    assert {x.dtype for x in maps} == {torch.bfloat16} and all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5), (3, 9), (4, 4), (8, 7)])
def test_depthwise_convolutions_of_small_maps_are_those_of_the_whole_kernel(size: tuple[int, int]) -> None:
    block = Block(5, 0.0, 0.0).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, *size, dtype=torch.float64)
    results = []
    for out in (_convolve_depthwise(x, block.depthwise), block.depthwise(x)):
        results.append((out, *torch.autograd.grad((out * weight).sum(), (x, *block.depthwise.parameters()))))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)

"""Which pixels the photometric and feature terms count: masks that begin later, and pixels that leave the crop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mcjepa.model.config import LossConfig, ModelConfig
from mcjepa.model.inputs import InputError
from mcjepa.model.mcjepa import MCJEPA

L1 = LossConfig(
    photometric_l1=1.0, photometric_l2=0.0, photometric_ssim=0.0, occlusion="range-map", min_visible_share=0.0
)


def moving_right(config: ModelConfig, form: LossConfig, cells: int = 1) -> MCJEPA:
    """A model whose flow is `cells` of 4 px to the right, for both directions: nothing lands on the leftmost of them,
    the rightmost leave the picture."""
    flow = replace(config.flow, coarsest_stride=4)  # type: ignore[arg-type]  # one level alone: exact cells
    model = MCJEPA(replace(config, loss=form, flow=flow))
    residual = model.flow_estimator.residual
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.zero_()
        last = residual.context[-1]
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        last.bias.copy_(torch.tensor([float(cells), 0.0]))
    return model


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_masks_count_by_their_weight_and_what_leaves_the_picture_never(tiny_config: ModelConfig, share: float) -> None:
    first, second = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    weight = np.ones(60)
    weight[:4] = 1 - share
    errors = [np.abs(a[..., :60] - b[..., 4:]) for a, b in ((first, second), (second, first))]
    expected = np.mean([(error * weight).sum() / (3 * 64 * weight.sum()) for error in errors])
    model = moving_right(tiny_config, L1)
    frames = torch.from_numpy(first)[None], torch.from_numpy(second)[None]
    out = model(frames, None, {"reconstruction": 1.0, "masks": share})
    assert out.terms["reconstruction"].item() == pytest.approx(expected, rel=1e-5)
    assert out.meters["visible_share"].item() == pytest.approx(56 / 64)  # the test's own word, whatever it counts


def test_masks_count_in_full_where_their_weight_is_not_given(tiny_config: ModelConfig) -> None:
    model, frames = moving_right(tiny_config, L1), tuple(torch.rand(2, 1, 3, 64, 64))
    weights = {"reconstruction": 1.0, "regression": 1.0, "cycle": 1.0}
    plain, full, none = (model(frames, None, weights | more).terms for more in ({}, {"masks": 1.0}, {"masks": 0.0}))
    assert all(torch.equal(plain[name], full[name]) for name in weights)
    assert all(not torch.allclose(plain[name], none[name], rtol=1e-4) for name in weights)


@pytest.mark.parametrize("reduction", [1, 2])
def test_pixels_that_move_into_the_margin_count(tiny_config: ModelConfig, reduction: int) -> None:
    whole = np.random.default_rng(1).random((2, 3, 80, 80), dtype=np.float32)
    form = replace(L1, photometric_margin=8, photometric_reduction=reduction)  # type: ignore[arg-type]
    pooled = whole.reshape(2, 3, 80 // reduction, reduction, 80 // reduction, reduction).mean((3, 5))
    m, shift = 8 // reduction, 4 // reduction
    a, b = pooled[..., m:-m, m:-m], pooled[::-1][..., m:-m, m + shift : pooled.shape[-1] - m + shift]
    expected = np.abs(a - b)[..., shift:].mean()  # nothing lands on the leftmost 4 px: they are occluded still
    frames = tuple(torch.from_numpy(whole).unsqueeze(1))
    out = moving_right(tiny_config, form)(frames, None, {"reconstruction": 1.0})
    assert out.terms["reconstruction"].item() == pytest.approx(expected, rel=1e-5)


def test_pixels_that_move_beyond_the_margin_do_not_count(tiny_config: ModelConfig) -> None:
    whole = np.random.default_rng(1).random((2, 3, 80, 80), dtype=np.float32)
    a, b = whole[..., 8:72, 8:72], whole[::-1][..., 8:72, 8 + 12 :]  # 12 px to the right; 4 columns have no target
    expected = np.abs(a[..., :60] - b)[..., 12:].mean()
    model = moving_right(tiny_config, replace(L1, photometric_margin=8), cells=3)
    out = model(tuple(torch.from_numpy(whole).unsqueeze(1)), None, {"reconstruction": 1.0})
    assert out.terms["reconstruction"].item() == pytest.approx(expected, rel=1e-5)


def test_the_other_terms_see_the_pair_without_its_margin(tiny_config: ModelConfig) -> None:
    whole = tuple(torch.rand(2, 2, 3, 96, 80))
    inner = tuple(x[..., 8:-8, 8:-8] for x in whole)
    weights = {"regression": 1.0, "smoothness": 1.0, "cycle": 1.0, "vc": 1.0}
    model = moving_right(tiny_config, replace(L1, photometric_margin=8))
    plain = MCJEPA(replace(model.config, loss=L1))
    plain.load_state_dict(model.state_dict())
    wide, narrow = model(whole, None, weights), plain(inner, None, weights)
    assert all(torch.equal(wide.terms[name], narrow.terms[name]) for name in weights)
    assert wide.meters["visible_share"] == narrow.meters["visible_share"]


def test_a_margin_that_leaves_less_than_a_cell_is_refused(tiny_config: ModelConfig) -> None:
    model = MCJEPA(replace(tiny_config, loss=replace(L1, photometric_margin=16)))
    with pytest.raises(InputError, match="frame pairs are 48 x 48 px"):
        model(tuple(torch.rand(2, 1, 3, 80, 80)), None, {"reconstruction": 1.0})


def test_a_margin_is_whole_cells_of_every_scale() -> None:
    assert LossConfig(photometric_margin=8, photometric_scales=(1.0, 1.0, 1.0), photometric_reduction=2)
    with pytest.raises(ValueError, match="multiple of 16 px"):
        LossConfig(photometric_margin=8, photometric_scales=(1.0, 1.0, 1.0, 1.0), photometric_reduction=2)

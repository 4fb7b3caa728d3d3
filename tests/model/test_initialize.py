"""Starting from weights that exist: published ConvNeXt in every layout, our own folders, and clear refusals."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mcjepa.model.config import ModelConfig
from mcjepa.model.initialize import initialize
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import WeightsError, encoder_part, save
from tests.model.published_convnext import (
    DEPTHS,
    WIDTHS,
    in_timm_layout,
    in_transformers_layout,
    original_weights,
    stage_output,
)

LAYOUTS = {"original": dict, "timm": in_timm_layout, "transformers": in_transformers_layout}
Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def build(config: ModelConfig, layer_scale: float = 0.0) -> MCJEPA:
    """A model whose stages have the published file's widths and depths."""
    encoder = dataclasses.replace(config.encoder, stage_channels=WIDTHS, depths=DEPTHS, layer_scale=layer_scale)
    return MCJEPA(dataclasses.replace(config, encoder=encoder)).eval()


def write(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
    return path


@torch.no_grad()
def assert_same_stages(model: MCJEPA, weights: dict[str, Tensor]) -> None:
    encoder = model.encoder
    x = torch.randn(2, WIDTHS[0], 16, 24)
    for i, stage in enumerate(encoder.stages):
        ours = stage(encoder.downsamplers[i](x) if i else x)
        x = stage_output(weights, i, x)
        assert torch.allclose(ours, x, rtol=1e-5, atol=1e-5), f"stage {i}"


@pytest.mark.parametrize("layer_scale", [0.0, 1e-6], ids=["folded", "kept"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_stages_compute_what_the_published_ones_do(
    layout: Layout, layer_scale: float, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    weights = original_weights()
    model = build(tiny_config, layer_scale)
    path = write(layout(weights), tmp_path / "w.safetensors")
    report = initialize(model, path)
    assert_same_stages(model, weights)
    assert report.layout == "convnext" and report.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("layer_scale", [0.0, 1e-6], ids=["without", "with"])
def test_weights_without_layer_scale_have_a_scale_of_one(
    layer_scale: float, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    weights = original_weights(gamma=False)
    model = build(tiny_config, layer_scale)
    initialize(model, write(weights, tmp_path / "w.safetensors"))
    assert_same_stages(model, weights)


def test_linear_layers_stored_as_convolutions_and_a_scale_with_more_axes_fit(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    weights = original_weights()
    stored = in_timm_layout(weights)
    stored = {n: t[..., None, None] if "mlp" in n and t.ndim == 2 else t for n, t in stored.items()}
    stored = {n: t[:, None, None] if n.endswith("gamma") else t for n, t in stored.items()}
    model = build(tiny_config)
    initialize(model, write(stored, tmp_path / "w.safetensors"))
    assert_same_stages(model, weights)


def test_half_precision_is_read_as_fp32(tiny_config: ModelConfig, tmp_path: Path) -> None:
    stored = {name: tensor.half() for name, tensor in original_weights().items()}
    model = build(tiny_config)
    initialize(model, write(stored, tmp_path / "w.safetensors"))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_same_stages(model, {name: tensor.float() for name, tensor in stored.items()})


def test_the_report_names_what_was_left_and_what_keeps_its_values(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = build(tiny_config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = initialize(model, write(in_timm_layout(original_weights()), tmp_path / "w.safetensors"))
    assert set(report.left) == {
        "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias",
        "head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias",
    }  # fmt: skip
    after = model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == set(report.loaded)
    assert set(report.kept) == set(before) - set(report.loaded)
    kept = {name.split(".")[1] for name in report.kept if name.startswith("encoder.")}
    assert kept == {"stem_fine", "stem_coarse", "stem_norm", "downsamplers"}
    assert all(n.startswith("encoder.downsamplers.0.") for n in report.kept if "downsamplers" in n)
    assert "stem.0" in str(report) and "flow_estimator" in str(report)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda w: w | {"stages.1.2.norm.weight": torch.ones(8)}, r"depths \[1, 3, 1, 1\]"),
        (lambda w: {n: t for n, t in w.items() if not n.startswith("stages.3")}, r"stages\.3\.0.*nothing"),
        (lambda w: w | {"stages.2.0.dwconv.weight": torch.ones(12, 1, 5, 5)}, r"\(12, 1, 5, 5\), expected"),
        (lambda w: w | {"stages.2.0.grn.weight": torch.ones(48)}, "V2"),
        (lambda w: w | {f"ema.{n}": t.clone() for n, t in w.items()}, "two prefixes"),
        (lambda w: w | {"stages.0.0.gamma": torch.ones(5)}, r"LayerScale of stages\.0\.0 has 5 values, expected 8"),
    ],
    ids=["deeper", "shallower", "kernel", "v2", "two_models", "scale"],
)
def test_what_does_not_fit_is_one_clear_error_and_changes_nothing(
    edit: Callable[[dict[str, Tensor]], dict[str, Tensor]], named: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    model = build(tiny_config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=named):
        initialize(model, write(edit(original_weights()), tmp_path / "w.safetensors"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_width_is_refused_with_the_file_s_own(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"depths \[1, 2, 1, 1\] and channels \[8, 8, 12, 16\]"):
        initialize(MCJEPA(tiny_config), write(original_weights(), tmp_path / "w.safetensors"))


def test_our_own_folder_gives_the_same_model(tiny_config: ModelConfig, tmp_path: Path) -> None:
    source, model = MCJEPA(tiny_config), MCJEPA(tiny_config)
    save(source.state_dict(), tiny_config, tmp_path)
    report = initialize(model, tmp_path)
    assert report.layout == "mcjepa" and report.kept == report.left == ()
    assert all(torch.equal(model.state_dict()[n], t) for n, t in source.state_dict().items())


def test_the_encoder_alone_leaves_the_rest_as_it_is(tiny_config: ModelConfig, tmp_path: Path) -> None:
    source, model = MCJEPA(tiny_config), MCJEPA(tiny_config)
    save(encoder_part(source.state_dict()), tiny_config, tmp_path)
    report = initialize(model, tmp_path)
    assert all(name.startswith("encoder.") for name in report.loaded)
    assert {name.split(".")[0] for name in report.kept} == {"flow_estimator", "expander"}


def test_our_own_folder_of_another_width_is_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    save(build(tiny_config).state_dict(), tiny_config, tmp_path)
    with pytest.raises(WeightsError, match=r"do not fit the model.*--only encoder"):
        initialize(MCJEPA(tiny_config), tmp_path)


def test_pickles_and_other_files_are_refused_without_being_read(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = MCJEPA(tiny_config)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10" * 30)
    write({"something": torch.ones(2)}, tmp_path / "other.safetensors")
    for name, said in [
        ("w.pth", "no .safetensors file"), ("folder", "0 safetensors files"), ("nowhere", "no weights at"),
        ("cut.safetensors", "no readable"), ("other.safetensors", "nor a ConvNeXt"),
    ]:  # fmt: skip
        with pytest.raises(WeightsError, match=said):
            initialize(model, tmp_path / name)

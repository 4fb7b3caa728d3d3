"""Settings of the model: the paper's defaults, and values that are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcjepa.model.config import ENCODER_SIZES, EncoderConfig, FlowConfig, LossConfig, ModelConfig
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import load_recipe


def test_the_defaults_are_the_paper_s() -> None:
    config = ModelConfig()
    assert config.encoder.stage_channels == (96, 192, 384, 768) and config.encoder.depths == (3, 3, 9, 3)
    assert config.flow.search_range == 4 and config.flow.width_factor == 2 and config.flow.max_flow_px == 128
    assert config.expander.widths == (8192, 8192, 8192)
    assert config.loss.vc_variance == (0.01, 0.01, 0.01, 0.01, 0.001, 0.0001)
    assert config.loss.vc_covariance == (0.04, 0.04, 0.001, 0, 0, 0)


@pytest.mark.parametrize(
    ("size", "stem", "stages", "depths"),
    [
        ("nano", (16, 32), (32, 48, 64, 96), (1, 1, 1, 1)),
        ("tiny", (48, 48), (96, 192, 384, 768), (3, 3, 9, 3)),
        ("small", (48, 48), (96, 192, 384, 768), (3, 3, 27, 3)),
        ("base", (64, 64), (128, 256, 512, 1024), (3, 3, 27, 3)),
    ],
)
def test_a_size_names_channels_and_depths(size: Any, stem: Any, stages: Any, depths: Any) -> None:
    config = EncoderConfig(size=size)
    assert (config.stem_channels, config.stage_channels, config.depths) == (stem, stages, depths)
    assert size in ENCODER_SIZES and EncoderConfig() == EncoderConfig(size="tiny")


def test_what_is_given_wins_over_the_size() -> None:
    config = EncoderConfig(size="nano", depths=(1, 1, 2, 1))
    assert config.depths == (1, 1, 2, 1) and config.stage_channels == (32, 48, 64, 96)


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (EncoderConfig, {"drop_path": 1.0}, "drop_path"),
        (EncoderConfig, {"depths": (1, 1, 1, -1)}, "depths"),
        (EncoderConfig, {"stem_channels": (0, 4)}, "channels"),
        (EncoderConfig, {"stage_channels": (8, 8, 8)}, "stage_channels has 3 values, expected 4"),
        (FlowConfig, {"context_dilations": (1, 2)}, "context_dilations"),
        (FlowConfig, {"context_widths": (4,), "context_dilations": (2,)}, "starts with 1"),
        (FlowConfig, {"widths": ()}, "widths"),
        (FlowConfig, {"finest_stride": 8, "coarsest_stride": 4}, "coarsest_stride"),
        (FlowConfig, {"search_range": 0}, "search_range"),
        (FlowConfig, {"max_flow_px": 0.0}, "max_flow_px"),
        (LossConfig, {"vc_variance": (0.1,)}, "six values"),
        (LossConfig, {"photometric_scales": ()}, "photometric_scales"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(kind: type, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**settings)


def test_a_recipe_names_a_size_and_prints_what_it_resolves_to(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {encoder: {size: nano, depths: [1, 1, 2, 1]}}")
    recipe, plain = load_recipe(str(path), [])
    assert recipe.model.encoder == EncoderConfig(size="nano", depths=(1, 1, 2, 1))
    assert plain["model"]["encoder"]["stage_channels"] == [32, 48, 64, 96]
    assert plain["model"]["encoder"]["depths"] == [1, 1, 2, 1]
    with pytest.raises(UsageError, match=r"model\.encoder\.size is 'huge'.*'tiny'"):
        load_recipe(str(path), ["model.encoder.size=huge"])

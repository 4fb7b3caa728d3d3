"""Settings of the model: the paper's defaults, and values that are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from model.config import EncoderConfig, FlowConfig, LossConfig, ModelConfig


def test_the_defaults_are_the_paper_s() -> None:
    config = ModelConfig()
    assert config.encoder.stage_channels == (96, 192, 384, 768) and config.encoder.depths == (3, 3, 9, 3)
    assert config.flow.search_range == 4 and config.flow.width_factor == 2 and config.flow.max_flow_px == 128
    assert config.expander.widths == (8192, 8192, 8192)
    assert config.loss.vc_variance == (0.01, 0.01, 0.01, 0.01, 0.001, 0.0001)
    assert config.loss.vc_covariance == (0.04, 0.04, 0.001, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (EncoderConfig, {"drop_path": 1.0}, "drop_path"),
        (EncoderConfig, {"depths": (1, 1, 1, -1)}, "depths"),
        (EncoderConfig, {"stem_channels": (0, 4)}, "channels"),
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

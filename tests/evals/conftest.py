"""Shared by the evaluations' tests: a foreign model behind the two methods, a small set, our tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.corpora.moving_photos.generate import generate
from mcjepa.data_prep.settings import MovingPhotosConfig
from mcjepa.evals.models import EvalModel
from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import save


class LocalStatistics:
    """Means and deviations of the colours in growing cells as features; a constant flow."""

    def __init__(self, flow_px: tuple[float, float] = (0.0, 0.0)) -> None:
        self.flow_px = flow_px
        self.sizes: list[tuple[int, ...]] = []

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        self.sizes.append(tuple(image_B3HW.shape))
        maps = []
        for level in range(1, 7):
            mean = F.avg_pool2d(image_B3HW, 2**level)
            square = F.avg_pool2d(image_B3HW.square(), 2**level)
            maps.append(torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()], dim=1))
        return maps

    def flow(self, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> Tensor:
        batch, _, height, width = frame0_B3HW.shape
        return torch.tensor(self.flow_px)[None, :, None, None].expand(batch, 2, height, width).clone()


@pytest.fixture
def foreign_model() -> Callable[..., EvalModel]:
    """Makes a model that is not ours: `foreign_model(flow_px=(u, v))`."""
    return LocalStatistics


@pytest.fixture(scope="session")
def moving_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated set with held-out sequences."""
    out = tmp_path_factory.mktemp("moving_photos") / "set"
    settings = MovingPhotosConfig(
        out=str(out), sequences=1, heldout_sequences=6, frames=5, size=96, tiles=1, max_object_px=24.0
    )
    generate(settings, workers=1)
    return out


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our model, tiny and untrained, as a weights folder."""
    config = ModelConfig(
        encoder=EncoderConfig(stem_channels=(4, 4), stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1)),
        flow=FlowConfig(width_factor=0.1),
        expander=ExpanderConfig(widths=(16, 16)),
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save(MCJEPA(config).state_dict(), config, folder, {"dataset_ids": ["9be"], "step": 7})
    return folder

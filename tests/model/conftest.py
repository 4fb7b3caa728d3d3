"""Fixtures of the model's tests: one thread, a fixed seed, a tiny model, and losses in double precision."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed() -> Iterator[None]:
    """Every test runs on one core and draws the same numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """All parts of the model at a few thousand parameters, without randomness in training."""
    return ModelConfig(
        encoder=EncoderConfig(
            stem_channels=(4, 6), stage_channels=(8, 8, 12, 16), depths=(1, 1, 1, 1), drop_path=0.0, init_std=0.0
        ),
        flow=FlowConfig(
            search_range=2, widths=(8, 6, 4), width_factor=1.0, context_widths=(6, 4), context_dilations=(1, 2)
        ),
        expander=ExpanderConfig(widths=(24, 24)),
    )


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `Tensor.float()` keep double precision, so that `gradcheck` sees what the losses compute in fp32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

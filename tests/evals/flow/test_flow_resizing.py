"""The resizing protocol: which size the model sees, and that its flow comes back in the frames' own pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mcjepa.data_prep.corpora import FLOW_SETS
from mcjepa.evals.flow import methods as resizing
from mcjepa.evals.flow.methods import Method, flow_methods, model_size, resize_flow, resize_frame
from mcjepa.evals.flow.score import score_flow_sets
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.models import EvalModel


class SizeSeen:
    """A flow of (2, 1) px in the frames that it is given, whose sizes are noted."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def features(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def flow(self, frame0_B3HW: torch.Tensor, frame1_B3HW: torch.Tensor) -> torch.Tensor:
        assert frame0_B3HW.shape == frame1_B3HW.shape
        self.sizes.append(tuple(frame0_B3HW.shape[-2:]))
        return torch.tensor([2.0, 1.0])[None, :, None, None].expand(1, 2, *self.sizes[-1]).clone()


@pytest.mark.parametrize(
    ("resize", "seen", "flow"),
    [
        ("none", (436, 1024), (2.0, 1.0)),
        ("multiple-of-64", (448, 1024), (2.0, 436 / 448)),
        ("multiple-of-8", (440, 1024), (2.0, 436 / 440)),
        ("218x2048", (218, 2048), (1.0, 2.0)),
    ],
)
def test_flow_of_resized_frames_is_scaled_back_axis_by_axis(
    sample_data: Path, resize: str, seen: tuple[int, int], flow: tuple[float, float]
) -> None:
    model = SizeSeen()
    methods = flow_methods(Method(name="m", model=model), (), resize)
    pair = FLOW_SETS["sintel-clean"](sample_data / "flow/MPI-Sintel-complete")[0]
    estimate = methods.run_model(methods.read_frames(pair))
    assert estimate is not None and estimate.shape == (436, 1024, 2) and model.sizes == [seen]
    torch.testing.assert_close(torch.tensor(estimate[200, 500]), torch.tensor(flow))
    assert estimate[..., 0].std() < 1e-5


def test_resizing_there_and_back_keeps_a_smooth_flow() -> None:
    x, y = torch.meshgrid(torch.linspace(-3, 5, 90), torch.linspace(2, 7, 60), indexing="xy")
    flow = torch.stack([x, y])[None]
    back = resize_flow(resize_flow(flow, (64, 128)), (60, 90))
    assert (back - flow).abs().max() < 0.1
    assert resize_flow(flow, (60, 90)) is flow and resize_frame(flow, (60, 90)) is flow


def test_the_protocol_is_on_the_card(
    moving_photos: Path, foreign_model: Callable[..., EvalModel], tmp_path: Path
) -> None:
    for resize in ("none", "multiple-of-64", "96x192"):
        sets = {"moving-photos": str(moving_photos)}
        config = FlowEvalConfig(sets=sets, resize=resize, max_pairs=2, pictures=0, baselines=("zero",))
        model = foreign_model((0.0, 0.0))
        (result,) = score_flow_sets(Method(name="m", model=model), config, tmp_path)
        assert result.metrics["epe"] == result.metrics["epe_zero"]  # no flow stays none, at full size
        said = "not resized" if resize == "none" else resize
        assert said in result.card.resolution and result.card.config["resize"] == resize


def test_sizes_are_rounded_up_and_a_multiple_stays() -> None:
    assert model_size("multiple-of-64", (64, 65)) == (64, 128)
    assert model_size("multiple-of-1", (7, 9)) == (7, 9)
    assert "none" not in resizing.describe_resizing("multiple-of-64")


@pytest.mark.parametrize("resize", ["", "64", "0x64", "multiple-of-0", "64x64x3", "half", "none "])
def test_another_form_of_the_setting_is_refused(resize: str) -> None:
    with pytest.raises(ValueError, match=r"flow.resize is .*multiple-of-64 or HEIGHTxWIDTH"):
        FlowEvalConfig(resize=resize)

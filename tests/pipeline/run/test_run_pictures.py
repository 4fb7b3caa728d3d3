"""Pictures of a run: the same samples on any number of ranks, and no trace in the training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from small_steps import small_model

from mcjepa.pipeline.engine.engine import World
from mcjepa.pipeline.run.pictures import RunPictures, strips
from mcjepa.pipeline.settings.stream import StreamConfig


class BareEngine:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = small_model()

    def zero_optimization_stage(self) -> int:
        return 0


def test_the_picture_is_the_same_on_one_rank_and_on_two(small_stream: StreamConfig, tmp_path: Path) -> None:
    engine = BareEngine()
    engine.module.train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in engine.module.state_dict().items()}
    pictures = []
    for size in (1, 2):
        drawn = RunPictures(small_stream, 5, World(0, size, 0, torch.device("cpu")), 3, tmp_path / str(size))
        path = drawn.draw(engine, 20)
        assert path and path.name == "step-000000020.png"
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    picture = cv2.imdecode(np.frombuffer(pictures[0], np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (3 * 24 + 2 * 6, 3 * 32 + 2 * 6, 4)
    assert engine.module.training and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in engine.module.state_dict().items())


def test_other_ranks_and_runs_without_pairs_draw_nothing(small_stream: StreamConfig, tmp_path: Path) -> None:
    other = RunPictures(small_stream, 5, World(1, 2, 0, torch.device("cpu")), 3, tmp_path)
    assert other.draw(BareEngine(), 20) is None and list(tmp_path.iterdir()) == []


def test_zero_flow_is_white_and_all_flows_have_one_scale() -> None:
    flow = np.zeros((2, 16, 16, 2))
    flow[1, ..., 0] = 5.0
    picture = strips(np.zeros((2, 3, 16, 16)), flow, np.random.default_rng(0).standard_normal((2, 4, 2, 2)))
    assert picture[3, 16 + 6 + 3].tolist() == [255, 255, 255, 255]
    assert picture[16 + 6 + 3, 16 + 6 + 3].tolist() != [255, 255, 255, 255]

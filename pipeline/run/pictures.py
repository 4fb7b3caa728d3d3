"""Pictures of a training run: flow and features on the same few samples, every so many steps.

    RUN/pictures/step-000001000.png    a row per sample: frame, flow in Middlebury colours, features as colours

The samples are the first pairs of step 0, so a run's pictures show the same ones on any number of ranks. The features
are the main directions of the level of stride 8 over all samples. All flows of a picture have one scale: full colour
is its longest flow.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.pictures import flow_picture, flow_scale, pca_pictures, side_by_side, stacked, write_png
from mcjepa.pipeline.run.folder import PICTURES
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.stream.batches import PairBatch
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.world import World

log = logging.getLogger(__name__)
FEATURE_STRIDE = 8
STEPS_LOOKED_AT = 1000
"""Steps within which the first pairs come, where streams alternate."""


class RunPictures:
    """Draws the pictures of a run; all ranks call `draw` where parameters are shared out, rank 0 alone elsewhere.

    Args:
        stream: the recipe's stream.
        seed: the run's seed.
        world: this process among all.
        count: samples on the picture.
        run: the run folder.
    """

    def __init__(self, stream: StreamConfig, seed: int, world: World, count: int, run: Path) -> None:
        self._stream, self._seed, self._world = stream, seed, world
        self._count, self._folder = count, run / PICTURES
        self._frames: tuple[Tensor, Tensor] | None = None

    def draw(self, engine: Any, step: int) -> Path | None:
        """The picture after `step` steps, on rank 0; None elsewhere and for a run without pairs."""
        sharded = engine.zero_optimization_stage() == 3
        if not self._stream.pair_batch or (self._world.rank != 0 and not sharded):
            return None
        if self._frames is None:
            pairs = self._first_pairs()
            self._frames = pairs.frame0[: self._count], pairs.frame1[: self._count]
        flow, features = _look(engine.module, *self._frames)
        if self._world.rank != 0:
            return None
        path = self._folder / f"step-{step:09d}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return write_png(path, strips(self._frames[0].cpu().numpy(), flow, features))
        except (DataError, OSError) as error:  # a full disk: the run goes on
            log.warning("the picture of step %d is not written: %s", step, error)
            return None

    def _first_pairs(self) -> PairBatch:
        """The whole first batch of pairs, whatever the number of ranks."""
        alone = replace(self._stream, workers=0)
        loader = build_loader(alone, rank=0, world_size=1, start_step=0, seed=self._seed, device=self._world.device)
        with loader:
            for batch in loader:
                if batch.pairs is not None:
                    return batch.pairs
                if batch.step >= STEPS_LOOKED_AT:
                    break
        raise AssertionError(f"no pairs in the first {STEPS_LOOKED_AT} steps of a stream that has them")


@torch.no_grad()
def _look(module: Any, frame0_B3HW: Tensor, frame1_B3HW: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Flow (B, H, W, 2) and features of stride 8 (B, C, h, w) of a module in evaluation; it goes on as it was."""
    trained = module.training
    module.eval()
    try:
        flow = module.estimate_flow(frame0_B3HW, frame1_B3HW)
        levels = module.forward_pyramid(frame0_B3HW)
    finally:
        module.train(trained)
    features = levels[list(module.encoder.strides).index(FEATURE_STRIDE)]
    return flow.float().permute(0, 2, 3, 1).cpu().numpy(), features.float().cpu().numpy()


def strips(frames_B3HW: np.ndarray, flow_BHW2: np.ndarray, features_BChw: np.ndarray) -> np.ndarray:
    """Frame, flow and features of every sample side by side, samples below one another: (H, W, 4) uint8."""
    scale = max(flow_scale(flow) for flow in flow_BHW2)
    colours = pca_pictures(features_BChw)
    rows = []
    for frame, flow, colour in zip(frames_B3HW, flow_BHW2, colours, strict=True):
        image = np.rint(frame.transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8)
        rows.append(side_by_side([image, flow_picture(flow, scale), colour]))
    return stacked(rows)

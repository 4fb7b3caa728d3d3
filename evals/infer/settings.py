"""Settings of `mcjepa infer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcjepa.evals.progress import MAX_LEVEL, require

Product = Literal["flo", "kitti", "colour", "video", "features"]
PRODUCTS: dict[str, str] = {
    "flo": "flow as Middlebury .flo",
    "kitti": "flow as KITTI's 16-bit png",
    "colour": "flow as colour png",
    "video": "flow.mp4: frames beside their flow colours",
    "features": "features' main colours as png, and features.mp4",
}


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """What is computed and written of every clip."""

    write: tuple[Product, ...] = ("flo", "colour", "video")
    """Files to write, see `PRODUCTS` (ours)."""

    tile_px: int = 1920
    """Frames with a longer side are cut into overlapping tiles of this side, px, a multiple of 64; 0 = never (ours)."""

    overlap_px: int = 256
    """Neighbouring tiles overlap by this, px, a multiple of 64, at most half a tile. Nothing is taken from the
    outer quarter of it, where a tile lacks its surroundings; over the rest tiles fade into each other (ours)."""

    batch: int = 2
    """Pairs of frames that go through the model at once (ours)."""

    stride: int = 8
    """Stride of the features that are drawn, px (ours)."""

    max_flow_px: float = 0.0
    """Length of flow with full colour, px; 0 = the 99th percentile of the longest of four pairs of the clip (ours)."""

    def __post_init__(self) -> None:
        unit = 2**MAX_LEVEL
        strides = [2**level for level in range(1, MAX_LEVEL + 1)]
        require(bool(self.write), "write is empty", f"some of {', '.join(PRODUCTS)}")
        require(
            self.tile_px >= 0 and self.tile_px % unit == 0, f"tile is {self.tile_px}", f"a multiple of {unit}, or 0"
        )
        if self.tile_px:
            fits = self.overlap_px % unit == 0 and unit <= self.overlap_px <= self.tile_px // 2
            expected = f"a multiple of {unit} from {unit} to half of the tile, {self.tile_px // 2}"
            require(fits, f"overlap is {self.overlap_px}", expected)
        require(self.batch >= 1, f"batch is {self.batch}", "1 or more")
        require(self.stride in strides, f"stride is {self.stride}", f"one of {strides}")
        require(self.max_flow_px >= 0, f"max-flow is {self.max_flow_px}", "above 0, or 0 for the clip's own")

"""Settings of video object segmentation.

Every field is written into the card of the score it shapes. Tags of origin: [C]/[S] the paper as two or one
account report it, [D] the named parent's default, "ours" where neither says anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from evals.checks import MAX_LEVEL, require


@dataclass(frozen=True, kw_only=True)
class VosConfig:
    """Label propagation over a video; the defaults are DINO's DAVIS-2017 protocol [D]."""

    set: str = "davis"
    """Set name, see `data_prep.corpora.VOS_SETS`."""

    root: str = ""
    """Folder that the set's own archive unpacks to."""

    context_frames: int = 7
    """Last frames that serve as context, beside the first one [D: DINO 7; CRW and VFS 20]."""

    top_k: int = 5
    """Best matches over all context frames together that vote for a cell [D: DINO 5; CRW and VFS 10]."""

    radius_cells: int = 12
    """Matches are sought within this many cells along each axis; 0 = everywhere [D: DINO 12]."""

    temperature: float = 0.1
    """Softmax temperature over the cosine similarities [D: DINO 0.1, CRW 0.05, VFS 0.07]."""

    stride: int = 8
    """Stride of the features, px; a power of two [D: 8 or 16]."""

    short_side: int = 480
    """Frames are resized to this short side, px, before encoding; 0 = as they are [D: 480]."""

    tile_cells: int = 12
    """Side of the query tile that is matched at once; bounds the memory, does not change the result
    (ours)."""

    max_sequences: int = 0
    """Sequences scored, evenly spaced; 0 = all (ours)."""

    pictures: int = 4
    """Sequences shown as pictures (ours)."""

    def __post_init__(self) -> None:
        strides = [2**level for level in range(1, MAX_LEVEL + 1)]
        require(self.stride in strides, f"vos.stride is {self.stride}", f"one of {strides}")
        require(self.temperature > 0, f"vos.temperature is {self.temperature}", "above 0")
        for name in ("top_k", "tile_cells"):
            require(getattr(self, name) >= 1, f"vos.{name} is {getattr(self, name)}", "1 or more")
        for name in ("context_frames", "radius_cells", "short_side", "max_sequences", "pictures"):
            require(getattr(self, name) >= 0, f"vos.{name} is {getattr(self, name)}", "0 or more")

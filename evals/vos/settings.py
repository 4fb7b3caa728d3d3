"""Settings of video object segmentation, and the protocols of three publications as named presets.

Every field is written into the card of the score it shapes. Origins [D] are read off the code of
facebookresearch/dino (eval_video_segmentation.py), ajabri/videowalk (CRW: test.py, utils, data/vos.py, the command
of its README) and xvjiarui/VFS (r18_nc_sgd_cos_100e_r2_1xNx8_k400.py, vanilla_tracker.py); "ours" where they say
nothing. What belongs to their networks (weights, colour normalisation) is the model's own affair here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mcjepa.evals.measures import SET_NAMES
from mcjepa.evals.progress import MAX_LEVEL, require

Neighbourhood = Literal["square", "disc"]
FirstAgain = Literal["never", "recent", "fill"]

PRESETS: dict[str, dict[str, Any]] = {
    "dino": {},
    "crw": {
        "context_frames": 20,
        "top_k": 10,
        "temperature": 0.05,
        "neighbourhood": "disc",
        "limit_first": False,
        "first_again": "fill",
        "first_labels": "bilinear",
        "stretch": False,
        "short_side": 0,
    },
    "vfs": {
        "context_frames": 20,
        "top_k": 10,
        "temperature": 0.07,
        "neighbourhood": "disc",
        "first_again": "recent",
        "side_multiple_px": 1,
    },
}
"""Protocol to the fields in which it differs from the defaults, which are DINO's."""


@dataclass(frozen=True, kw_only=True)
class VosConfig:
    """Label propagation over a video; the defaults are DINO's DAVIS-2017 protocol [D]."""

    set: str = "davis2017"
    """Set name, see `data_prep.corpora.VOS_SETS`; `davis` is `davis2017`."""

    root: str = ""
    """Folder that the set's own archive unpacks to."""

    context_frames: int = 7
    """Last frames that serve as context, beside the first one [D: DINO 7; CRW and VFS 20]."""

    top_k: int = 5
    """Best matches over all context frames together that vote for a cell [D: DINO 5; CRW and VFS 10]."""

    radius_cells: int = 12
    """Matches are sought within this many cells; 0 = everywhere [D: 12 in all three; VFS' ResNet-50 has 18]."""

    neighbourhood: Neighbourhood = "square"
    """`square`: at most the radius along each axis [D: DINO]; `disc`: Euclidean distance below it [D: CRW, VFS]."""

    limit_first: bool = True
    """The first frame's cells obey the radius too [D: DINO, VFS; CRW searches the whole first frame]."""

    first_again: FirstAgain = "never"
    """Is the first frame also counted among the last ones? `never` [D: DINO]; `recent`: while it is one of them
    [D: VFS]; `fill`: it stands for all that are missing at the start as well [D: CRW]. Its cells then take several
    of the `top_k` votes."""

    temperature: float = 0.1
    """Softmax temperature over the similarities [D: DINO 0.1, CRW 0.05, VFS 0.07]."""

    normalize: bool = True
    """Features are l2-normalised, so similarities are cosines [D: all three; CRW can switch it off by --no-l2]."""

    stride: int = 8
    """Stride of the features, px; a power of two [D: DINO 8 or 16; CRW and VFS 8]."""

    short_side: int = 480
    """Frames are resized to this short side, px, before encoding; 0 = as they are [D: DINO and VFS 480; CRW 0]."""

    side_multiple_px: int = 64
    """The long side is rounded down to a multiple of this after resizing, px; 1 keeps the shape [D: DINO 64,
    VFS 1]."""

    first_labels: Literal["nearest", "bilinear"] = "nearest"
    """How the given mask is brought to the feature grid [D: DINO and VFS nearest; CRW bilinear on one-hot masks]."""

    stretch: bool = True
    """Each label's map is brought to [0, 1] by its minimum and maximum before the largest wins [D: DINO, VFS;
    CRW compares the maps as they are]."""

    tile_cells: int = 8
    """Side of the query tile that is matched at once; bounds the memory, does not change the result
    (ours)."""

    random_baseline: bool = True
    """Also propagates by the features of a randomly initialised encoder, on scored sequences: what training has to
    beat. Takes as long again (ours, as for the probe)."""

    max_sequences: int = 0
    """Sequences scored, evenly spaced; 0 = all (ours)."""

    pictures: int = 4
    """Sequences shown as pictures (ours)."""

    masks: bool = False
    """Write the predicted masks as palette PNGs, masks/SEQUENCE/FRAME.png, as DAVIS' servers and tools read them;
    always for a set without ground truth (ours)."""

    overlays: bool = False
    """Write each sequence as overlays/SEQUENCE.mp4, its frames tinted by the predicted masks (ours)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "set", SET_NAMES.get(self.set, self.set))
        strides = [2**level for level in range(1, MAX_LEVEL + 1)]
        require(self.stride in strides, f"vos.stride is {self.stride}", f"one of {strides}")
        require(self.temperature > 0, f"vos.temperature is {self.temperature}", "above 0")
        for name in ("top_k", "tile_cells", "side_multiple_px"):
            require(getattr(self, name) >= 1, f"vos.{name} is {getattr(self, name)}", "1 or more")
        for name in ("context_frames", "radius_cells", "short_side", "max_sequences", "pictures"):
            require(getattr(self, name) >= 0, f"vos.{name} is {getattr(self, name)}", "0 or more")

    @property
    def protocol(self) -> str:
        """Name of the preset whose every field this is, or `own`."""
        for name, fields in PRESETS.items():
            reference = VosConfig(**fields)
            if all(getattr(self, field) == getattr(reference, field) for field in PROTOCOL_FIELDS):
                return name
        return "own"


PROTOCOL_FIELDS = (
    "context_frames",
    "top_k",
    "radius_cells",
    "neighbourhood",
    "limit_first",
    "first_again",
    "temperature",
    "normalize",
    "stride",
    "short_side",
    "side_multiple_px",
    "first_labels",
    "stretch",
)
"""Fields that change the masks."""

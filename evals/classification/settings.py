"""Settings of the image classification probe.

Every field is written into the card. Tags of origin: [D] DINO's k-NN and linear protocols (Caron et al. 2021) and
DINOv2's sweep of learning rates, "ours" where they say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcjepa.evals.progress import MAX_LEVEL, require


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Nearest neighbours and a linear head on pooled frozen features."""

    set: Literal["imagefolder"] = "imagefolder"
    """Layout of the data: ROOT/{train,val}/CLASS/… (ImageNet's after unpacking, torchvision's ImageFolder)."""

    root: str = ""
    """Folder that holds `train` and `val`."""

    levels: tuple[int, ...] = (6,)
    """Pyramid levels whose global averages are concatenated; level l has stride 2**l; (6,) = the last stage [D]."""

    resize_px: int = 256
    """Images are resized to this short side, px [D]."""

    crop_px: int = 224
    """Then the central square of this side is cut, px [D]."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of the resize, widened where it shrinks [D: Pillow's bicubic]."""

    knn_k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours that vote; those above the number of training images are left out [D]."""

    knn_temperature: float = 0.07
    """A neighbour of cosine similarity s votes with exp(s / temperature) [D]."""

    linear: bool = True
    """Also train a linear head (ours)."""

    linear_epochs: int = 100
    """Epochs of the head, without augmentation: the features are encoded once [D: 100, with random crops]."""

    linear_batch: int = 1024
    """Features a step [D]."""

    linear_lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    """Peak learning rates of SGD with momentum 0.9 and cosine decay, all tried at once [D: DINOv2's way]."""

    linear_holdout: float = 0.1
    """Part of every training class that chooses the learning rate; the head is then trained on all of it (ours)."""

    max_train: int = 0
    """Training images used, evenly spaced; 0 = all (ours)."""

    max_val: int = 0
    """Validation images scored, evenly spaced; 0 = all (ours)."""

    encode_batch: int = 64
    """Images encoded at once (ours)."""

    workers: int = 4
    """Processes that read images; 0 = this one (ours)."""

    cache: str = ""
    """Folder of the pooled features; empty = `pooled-features` beside the folder of the results (ours)."""

    keep_features: bool = True
    """Leave the features for the next run; false = remove them when the score is done (ours)."""

    random_baseline: bool = True
    """Also score a randomly initialised encoder of the same configuration (ours)."""

    pictures: int = 6
    """Hits and misses shown, of each (ours)."""

    def __post_init__(self) -> None:
        good = bool(self.levels) and all(1 <= level <= MAX_LEVEL for level in self.levels)
        require(good, f"classify.levels is {self.levels}", f"one or more of 1..{MAX_LEVEL}")
        inside = 1 <= self.crop_px <= self.resize_px
        require(inside, f"classify.crop_px is {self.crop_px}", f"1..{self.resize_px} (classify.resize_px)")
        neighbours = bool(self.knn_k) and min(self.knn_k) >= 1
        require(neighbours, f"classify.knn_k is {self.knn_k}", "one or more numbers from 1 on")
        require(self.knn_temperature > 0, f"classify.knn_temperature is {self.knn_temperature}", "above 0")
        rates = bool(self.linear_lrs) and min(self.linear_lrs) > 0
        require(rates, f"classify.linear_lrs is {self.linear_lrs}", "one or more rates above 0")
        part = self.linear_holdout
        require(0 < part < 1, f"classify.linear_holdout is {part}", "between 0 and 1")
        for name in ("linear_epochs", "linear_batch", "encode_batch"):
            require(getattr(self, name) >= 1, f"classify.{name} is {getattr(self, name)}", "1 or more")
        for name in ("max_train", "max_val", "workers", "pictures"):
            require(getattr(self, name) >= 0, f"classify.{name} is {getattr(self, name)}", "0 or more")

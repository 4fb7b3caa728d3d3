"""Settings of fine-tuning with UperNet, and what differs by data set.

Every field is written into the card. Tags of origin: [C]/[S] the paper as two or one account report it, [D] the named
parent's default (ConvNeXt's ADE20K recipe for mmsegmentation where nothing else is said), "ours" where neither says
anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mcjepa.evals.progress import MAX_LEVEL, require

PRESETS: dict[str, dict[str, Any]] = {
    "ade20k": {"image_scale": (2048, 512), "crop_px": (512, 512)},
    "voc2012": {"image_scale": (2048, 512), "crop_px": (512, 512)},
    "coco-stuff": {"image_scale": (2048, 512), "crop_px": (512, 512)},
    "cityscapes": {"image_scale": (2048, 1024), "crop_px": (512, 1024)},
    "camvid": {"image_scale": (480, 360), "crop_px": (360, 480)},
    "moving-photos": {"image_scale": (320, 320), "crop_px": (256, 256)},
}
"""What a set brings along [D: mmsegmentation; CamVid and moving-photos ours: their images are smaller than a crop]."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of the whole encoder with a UperNet head; the defaults are ConvNeXt-T's recipe [D]."""

    set: str = "ade20k"
    """Set name, see `data_prep.corpora.SEGMENTATION_SETS`; it also chooses `image_scale` and `crop_px`."""

    root: str = ""
    """Folder that the set's own archive unpacks to."""

    train_split: str = "train"
    """Split that is trained on; `trainaug` for VOC with the labels of Hariharan et al. [D]."""

    val_split: str = "val"
    """Split that is scored."""

    levels: tuple[int, ...] = (3, 4, 5, 6)
    """Pyramid levels that enter the head; level l has stride 2**l: the four stage outputs [D]."""

    channels: int = 512
    """Width of the UperNet head [D]."""

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    """Parts a side of the pyramid pooling [D]."""

    auxiliary_weight: float = 0.4
    """Weight of the auxiliary head's loss on the last level but one; 0 leaves that head out [D]."""

    steps: int = 160_000
    """Optimiser steps [D: 160k for ADE20K]."""

    warmup_steps: int = 1_500
    """Linear warm-up from lr * 1e-6, steps [D]."""

    poly_power: float = 1.0
    """Exponent of the decay (1 - step/steps)**power [D]."""

    lr: float = 1e-4
    """Peak learning rate of AdamW in the head [D]."""

    weight_decay: float = 0.05
    """AdamW's decoupled weight decay; none on norms and biases [D]."""

    lr_decay: float = 0.9
    """Factor on the learning rate a layer down from the head [D]."""

    lr_decay_by: Literal["stage", "layer"] = "stage"
    """How parameters become layers: `stage` is ConvNeXt-T's (stem 0, stages 1 to 4, head 7), `layer` its larger
    models' (13 depths in 12 layers, three blocks of the third stage in one) [D]."""

    drop_path: float = 0.4
    """Stochastic depth of the encoder's last block, rising linearly from 0 at the first [D]."""

    batch: int = 16
    """Images a step [D]."""

    micro_batch: int = 0
    """Images in one forward pass, over all ranks; their gradients are added up to the batch's. Batch normalisation
    sees this many. 0 = the whole batch (ours)."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 = autocast in training and test; the loss stays fp32 [D: fp16; bf16 needs no loss scale]."""

    image_scale: tuple[int, int] = (0, 0)
    """Long and short side, px, that images are fitted into before the random factor and in the test; (0, 0) = the
    set's [D]."""

    crop_px: tuple[int, int] = (0, 0)
    """Height and width of the training window, px; (0, 0) = the set's [D]."""

    test: Literal["slide", "whole"] = "slide"
    """Windows of `crop_px` that overlap by a third, their logits averaged; or the whole image at once [D: slide]."""

    test_scales: tuple[float, ...] = (1.0,)
    """Factors on `image_scale` in the test; probabilities are averaged [D: 1; multi-scale .5 .75 1 1.25 1.5 1.75]."""

    test_flip: bool = False
    """Average with the mirrored image's prediction [D: with multi-scale only]."""

    max_train: int = 0
    """Training images used, evenly spaced; 0 = all (ours)."""

    max_val: int = 0
    """Validation images scored, evenly spaced; 0 = all (ours)."""

    workers: int = 4
    """Processes that read and augment; 0 = this one. The result does not depend on it (ours)."""

    checkpoint_every: int = 1_000
    """Steps between checkpoints: what a kill can cost (ours)."""

    pictures: int = 4
    """Validation images shown with truth and prediction (ours)."""

    def __post_init__(self) -> None:
        for name in ("image_scale", "crop_px"):
            if getattr(self, name) == (0, 0):
                object.__setattr__(self, name, PRESETS.get(self.set, PRESETS["ade20k"])[name])
        if self.micro_batch == 0:
            object.__setattr__(self, "micro_batch", self.batch)
        self._check_model()
        self._check_schedule()
        self._check_images()

    def _check_model(self) -> None:
        rising = tuple(sorted(set(self.levels))) == self.levels
        good = len(self.levels) >= 2 and rising and self.levels[0] >= 1 and self.levels[-1] <= MAX_LEVEL
        require(good, f"finetune.levels is {self.levels}", f"two or more of 1..{MAX_LEVEL}, rising")
        require(self.channels >= 1, f"finetune.channels is {self.channels}", "1 or more")
        pools = bool(self.pool_scales) and min(self.pool_scales) >= 1
        require(pools, f"finetune.pool_scales is {self.pool_scales}", "one or more numbers from 1 on")
        require(0 <= self.drop_path < 1, f"finetune.drop_path is {self.drop_path}", "0 <= drop_path < 1")
        require(self.auxiliary_weight >= 0, f"finetune.auxiliary_weight is {self.auxiliary_weight}", "0 or more")

    def _check_schedule(self) -> None:
        require(self.steps > 0, f"finetune.steps is {self.steps}", "1 or more")
        inside = 0 <= self.warmup_steps < self.steps
        require(inside, f"finetune.warmup_steps is {self.warmup_steps}", f"0..{self.steps - 1} (below finetune.steps)")
        require(self.lr > 0, f"finetune.lr is {self.lr}", "above 0")
        require(self.weight_decay >= 0, f"finetune.weight_decay is {self.weight_decay}", "0 or more")
        require(0 < self.lr_decay <= 1, f"finetune.lr_decay is {self.lr_decay}", "0 < lr_decay <= 1")
        require(self.checkpoint_every >= 1, f"finetune.checkpoint_every is {self.checkpoint_every}", "1 or more")
        whole = self.micro_batch >= 2 and self.batch % self.micro_batch == 0
        require(
            whole,
            f"finetune.batch is {self.batch}, micro_batch {self.micro_batch}",
            "a micro_batch of 2 or more (batch normalisation needs two) that divides batch",
        )

    def _check_images(self) -> None:
        long, short = self.image_scale
        require(long >= short >= 1, f"finetune.image_scale is {self.image_scale}", "long side, short side, px")
        require(min(self.crop_px) >= 1, f"finetune.crop_px is {self.crop_px}", "height and width, px")
        scales = bool(self.test_scales) and min(self.test_scales) > 0
        require(scales, f"finetune.test_scales is {self.test_scales}", "one or more factors above 0")
        for name in ("max_train", "max_val", "pictures", "workers"):
            require(getattr(self, name) >= 0, f"finetune.{name} is {getattr(self, name)}", "0 or more")

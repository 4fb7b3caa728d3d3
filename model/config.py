"""Settings of the model, each with its meaning and origin; no heavy import, so that a recipe is read quickly.

Origins, as in `docs/recipes.md`: [C] confirmed of the paper, [S] one account of the paper, [D] the default of a
named parent (ConvNeXt, PWC-Net, ARFlow, UFlow, VICReg, VICRegL), [I] inferred, [ours] a choice of this project.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EncoderSize = Literal["nano", "tiny", "small", "base"]
# (stem_channels, stage_channels, depths) by name. The stem has half the first stage's channels, as in the paper's tiny.
ENCODER_SIZES: dict[str, tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    "nano": ((16, 32), (32, 48, 64, 96), (1, 1, 1, 1)),  # the quickstart's: minutes on CPUs [ours]
    "tiny": ((48, 48), (96, 192, 384, 768), (3, 3, 9, 3)),  # the paper's [S]; ConvNeXt-T [D]
    "small": ((48, 48), (96, 192, 384, 768), (3, 3, 27, 3)),  # ConvNeXt-S [D]
    "base": ((64, 64), (128, 256, 512, 1024), (3, 3, 27, 3)),  # ConvNeXt-B [D]
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shared encoder: ConvNeXt with its stem split in two, six levels at strides 2, 4, 8, 16, 32, 64.

    `EncoderConfig(size="small")` is the encoder of that name. Channels and depths that are left empty are filled in
    from the size, so that a configuration always holds the numbers that are used.
    """

    size: EncoderSize = "tiny"
    """Names the channels and depths that are not given: `tiny` is the paper's [S], `small` and `base` have
    ConvNeXt's [D], `nano` is for CPUs [ours]. What is given wins."""
    stem_channels: tuple[int, ...] = ()
    """Channels of the levels at strides 2 and 4, after the two stem convolutions; empty: the size's, 48 and 48 for
    `tiny` [S]."""
    stem_activation: Literal["none", "gelu"] = "none"
    """Non-linearity behind each stem convolution; ConvNeXt has none [D], small models match better with one [ours]."""
    stage_channels: tuple[int, ...] = ()
    """Channels of the four stages, strides 8 to 64; empty: the size's, 96, 192, 384, 768 for `tiny` [D: ConvNeXt]."""
    depths: tuple[int, ...] = ()
    """Blocks in each stage; empty: the size's, 3, 3, 9, 3 for `tiny` [D: ConvNeXt]."""
    drop_path: float = 0.1
    """Stochastic depth of the last block, rising linearly from 0 at the first [D: VICRegL]."""
    layer_scale: float = 0.0
    """Initial value of LayerScale; 0 leaves it out [D: VICRegL]."""
    init_std: float = 0.02
    """Standard deviation of the initial weights [D: ConvNeXt]; 0 takes 1 / sqrt(fan-in), which keeps the features
    of narrow encoders at unit scale, where their correlation says something from the first step on [ours]."""
    activation_checkpointing: bool = False
    """Keep only the input of each block in training and compute the block again in the backward pass: the same
    gradients, less memory, about a third more time [ours]."""

    def __post_init__(self) -> None:
        for name, value in zip(("stem_channels", "stage_channels", "depths"), ENCODER_SIZES[self.size], strict=True):
            given = getattr(self, name)
            if not given:
                object.__setattr__(self, name, value)  # frozen: the way of dataclasses themselves
            elif len(given) != len(value):
                raise ValueError(
                    f"model.encoder.{name} has {len(given)} values, expected {len(value)}, finest level first; "
                    "leave it out for those of model.encoder.size"
                )
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"model.encoder.drop_path is {self.drop_path}, expected 0 <= drop_path < 1")
        if min(self.stem_channels + self.stage_channels) < 1 or min(self.depths) < 0:
            raise ValueError("model.encoder: channels must be at least 1 and depths at least 0")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The coarse-to-fine flow estimator, one set of weights for all levels."""

    search_range: int = 4
    """Largest displacement of the correlation, in cells of a level; (2r + 1)^2 channels [D: PWC-Net]."""
    widths: tuple[int, ...] = (128, 128, 96, 64, 32)
    """Channels of the densely connected 3x3 convolutions at width factor 1 [D: PWC-Net]."""
    width_factor: float = 2.0
    """Factor C on all widths; 1 counts 2.30 M parameters, 2 counts 7.96 M [S]."""
    context_widths: tuple[int, ...] = (128, 128, 128, 96, 64, 32)
    """Channels of the dilated context network at width factor 1 [D: PWC-Net]."""
    context_dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 1)
    """Its dilations [D: PWC-Net]."""
    projected_channels: int = 32
    """Channels that each level is brought to by a 1x1 convolution [I: ARFlow]."""
    match: Literal["raw", "standardized", "cosine"] = "raw"
    """What is correlated: the features as they are [D: PWC-Net, ARFlow]; brought to zero mean and unit variance a
    sample [D: UFlow]; or the cosine of features standardised a channel. The paper tried l2-normalised features and
    rejected them [S]; small models learn several times faster from cosines [ours]."""
    cost_norm: Literal["none", "sample"] = "none"
    """What is done to the costs of a level before they are read: nothing [D: PWC-Net]; or zero mean and unit variance
    over the displacements and positions of each sample, which keeps small differences of similar costs from drowning
    in the features beside them: small models reach in 200 steps what takes them 500 without [ours]."""
    normalize: bool = True
    """LayerNorm behind every convolution but the last [C] and the 1x1 projections of features [ours]; without it the
    paper saw collapse [C]."""
    coarsest_stride: Literal[8, 16, 32, 64] = 64
    """Stride of the first level that is decoded [D: PWC-Net]; images of few cells there gain nothing from it."""
    finest_stride: Literal[4, 8] = 4
    """Stride of the last level that is decoded; bilinear from there [D: PWC-Net]."""
    finest_passes: int = 1
    """How often the last level is decoded, each time from the flow before it, when the model is used; in training once
    [ours: 1; as RAFT, which is scored with more iterations than it is trained with]."""
    reconcile: int = 0
    """How often, when the model is used, the flows in both directions are brought together: where they contradict each
    other, flow is taken from places nearby that look alike (`model.warp.reconcile`). From the second time on the last
    level is decoded once more in between. Twice the work and more; 0: one direction alone [ours: off]."""
    max_flow_px: float = 128.0
    """Flow is clipped to plus and minus this, in pixels of the input [C]."""
    level_dropout: float = 0.0
    """Share of images for which a level adds nothing to the flow in training, drawn for every level; UFlow and SMURF
    take 0.1. A finer level then learns to mend what a coarser one leaves undone [ours: off]."""

    def __post_init__(self) -> None:
        if len(self.context_widths) != len(self.context_dilations):
            raise ValueError(
                f"model.flow: {len(self.context_widths)} context_widths for {len(self.context_dilations)} "
                "context_dilations, expected as many of one as of the other"
            )
        if not self.widths or not self.context_widths or self.context_dilations[0] != 1:
            raise ValueError("model.flow: widths and context_widths need a value, context_dilations starts with 1")
        if self.coarsest_stride < self.finest_stride:
            raise ValueError("model.flow.coarsest_stride must be at least finest_stride")
        if self.search_range < 1 or self.width_factor <= 0 or self.max_flow_px <= 0:
            raise ValueError("model.flow: search_range, width_factor and max_flow_px must be positive")
        if self.finest_passes < 1:
            raise ValueError(f"model.flow.finest_passes is {self.finest_passes}, expected at least 1")
        if self.reconcile < 0:
            raise ValueError(f"model.flow.reconcile is {self.reconcile}, expected at least 0 (0: not at all)")
        if not 0.0 <= self.level_dropout < 1.0:
            raise ValueError(f"model.flow.level_dropout is {self.level_dropout}, expected 0 <= level_dropout < 1")


@dataclass(frozen=True, kw_only=True)
class ExpanderConfig:
    """The projector of the content branch, used in training only."""

    widths: tuple[int, ...] = (8192, 8192, 8192)
    """Output widths of its linear layers, the last one without bias [C]."""
    norm: Literal["batch", "layer"] = "batch"
    """Normalisation between them, over the global batch for `batch` [D: VICReg; VICRegL has `layer`]. Both views
    are one batch, where VICReg's code takes statistics of each by itself [ours]."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How each term is computed; their weights and start steps are the recipe's `train.terms`."""

    photometric_l1: float = 1.0
    """Weight of the absolute difference inside the reconstruction term [S]."""
    photometric_l2: float = 1.0
    """Weight of the squared difference inside it [S]."""
    photometric_ssim: float = 1.0
    """Weight of (1 - SSIM) / 2 inside it [S]."""
    photometric_census: float = 0.0
    """Weight of the census distance inside it; the paper names none, UFlow and SMURF gain from it [ours]."""
    photometric_scales: tuple[float, ...] = (1.0,)
    """Weights of the reconstruction from the finest decoded flow to coarser ones; the paper: full size only
    [C]. ARFlow's (1, 1, 1, 1) leads small models out of the zero-flow solution [D: ARFlow]."""
    photometric_reduction: Literal[1, 2, 4] = 1
    """Images are averaged over squares of this many pixels a side before they are compared, at every scale; 1: full
    size [C]. 2 costs a quarter, and motions of pixels lose little [ours]."""
    photometric_margin: int = 0
    """The network sees a pair without this many pixels a side, the reconstruction samples the whole of it: pixels that
    move out of the crop then still count. SMURF samples the uncropped image; the pairs' `crop` is this much larger a
    side. A multiple of the coarsest scale's reduction [ours: off]."""
    feature_levels: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """Coefficients of the levels in the regression and cycle terms, coarsest first; the paper has one a level [C], its
    values are not reported. A level at 0 is not computed: the finest one, which no flow is decoded from, costs as much
    as all others together [ours]."""
    feature_target: Literal["live", "fixed"] = "live"
    """Whether the features that regression and cycle predict carry gradient too [C: as the terms are written]. `fixed`
    cuts it there, which halves the pull of both terms on the features' scale [ours]."""
    feature_scale: Literal["absolute", "relative"] = "absolute"
    """Squared differences of regression and cycle as they are [C]; or over the variance of the level's channels,
    gradient included, so that shrinking features gain nothing from them [ours]."""
    smoothness_order: Literal[1, 2] = 1
    """Order of the flow's differences [C: first; ARFlow takes the second for KITTI]."""
    smoothness_edge: float = 10.0
    """Edge weight exp(-edge * |dI|) for images in [0, 1] [D: ARFlow]."""
    occlusion: Literal["two-way", "range-map"] = "two-way"
    """How occluded pixels are found: by the two-way test [D: ARFlow, UFlow]; or where the other frame's flow, followed
    pixel by pixel, lands nowhere near [D: ARFlow, UFlow for other sets]. The second says something sensible while the
    two directions do not agree yet, so at the start of short trainings [ours]."""
    occlusion_range: float = 0.2
    """`range-map`: occluded where less than this many pixels of the other frame land [D: ARFlow]."""
    occlusion_scale: float = 0.01
    """Occluded where |f + f'|^2 > scale * (|f|^2 + |f'|^2) + offset [D: ARFlow, UFlow]."""
    occlusion_offset: float = 0.5
    """The offset of that test, in square pixels [D: ARFlow, UFlow]."""
    min_visible_share: float = 0.3
    """An image of which less than this is visible counts as visible everywhere: the test has failed there [ours]."""
    student_window: tuple[float, float] = (0.67, 1.0)
    """Self-supervision: range of the share of a pair's sides that the student sees, at a place drawn for every pair;
    ARFlow zooms by 1 to 1.5, SMURF cuts 64 px off each side [D: ARFlow, without its rotation, squeeze and noise]."""
    student_size: float = 1.0
    """Sides of the student's pictures as a share of the pair's: 1 enlarges the window to the pair's size [D: ARFlow,
    SMURF], less is a cheaper step."""
    student_jitter: float = 0.0
    """Brightness, contrast and saturation of the student's pictures change by factors of up to 1 plus or minus this,
    both frames of a pair alike; 0.5 in ARFlow [D: SMURF has none]."""
    student_exponent: float = 1.0
    """q of the distance (|d| + 0.01)^q between the two flows' components, px: 0.4 in ARFlow; 1 is L1 [D: SMURF]."""
    student_where: Literal["visible", "lost"] = "visible"
    """Which pixels teach: all that are visible to the teacher, their mean [D: ARFlow]; or of those only the ones that
    are not visible to the student, their sum over the number of all pixels [D: SMURF]."""
    vc_variance: tuple[float, ...] = (0.01, 0.01, 0.01, 0.01, 0.001, 0.0001)
    """Variance coefficients of the levels, coarsest first [S]."""
    vc_covariance: tuple[float, ...] = (0.04, 0.04, 0.001, 0.0, 0.0, 0.0)
    """Covariance coefficients of the levels, coarsest first [S]."""
    vc_samples: Literal["positions", "images"] = "positions"
    """What counts as a sample of a channel: every position of every map together [I]; or the maps of the batch at
    each position apart, averaged over positions [D: VICRegL]. The second asks for many images a step."""
    vicreg_invariance: float = 25.0
    """Coefficient of the invariance part of the content term [C]."""
    vicreg_variance: float = 25.0
    """Coefficient of its variance part [C]."""
    vicreg_covariance: float = 1.0
    """Coefficient of its covariance part [C]."""

    def __post_init__(self) -> None:
        if len(self.vc_variance) != 6 or len(self.vc_covariance) != 6:
            raise ValueError("model.loss: vc_variance and vc_covariance take six values, coarsest level first")
        if len(self.feature_levels) != 6 or min(self.feature_levels) < 0 or not any(self.feature_levels):
            raise ValueError(
                f"model.loss.feature_levels is {self.feature_levels}, expected six values of at least 0, coarsest "
                "level first, not all 0; to leave both terms out set their weights to 0"
            )
        if not 0 < self.occlusion_range <= 1:
            raise ValueError(f"model.loss.occlusion_range is {self.occlusion_range}, expected above 0, at most 1")
        if sum(self.photometric_scales) <= 0 or min(self.photometric_scales) < 0:
            raise ValueError("model.loss.photometric_scales: weights must not be negative and one must be positive")
        self._check_margin()
        self._check_student()

    def _check_margin(self) -> None:
        coarsest = self.photometric_reduction * 2 ** (len(self.photometric_scales) - 1)
        if self.photometric_margin < 0 or self.photometric_margin % coarsest:
            raise ValueError(
                f"model.loss.photometric_margin is {self.photometric_margin}, expected a multiple of {coarsest} px, "
                "the reduction of the coarsest of photometric_scales"
            )

    def _check_student(self) -> None:
        low, high = self.student_window
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"model.loss.student_window is {self.student_window}, expected two shares in (0, 1], rising"
            )
        if not 0 < self.student_size <= 1 or not 0 <= self.student_jitter < 1 or self.student_exponent <= 0:
            raise ValueError(
                "model.loss: student_size must be in (0, 1], student_jitter in [0, 1), student_exponent above 0"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model; the defaults are the paper's."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The shared encoder."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """The flow estimator."""
    expander: ExpanderConfig = field(default_factory=ExpanderConfig)
    """The content branch's expander."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The form of the loss terms."""

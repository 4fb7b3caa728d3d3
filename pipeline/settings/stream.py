"""Settings of the stream: which datasets, how many samples per step, how they are augmented and loaded.

Origins, as in `docs/recipes.md`: [C] confirmed of the paper, [S] one account of the paper, [D] the default of
a named parent (ARFlow, VICReg), [ours] a choice of this project. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One published dataset as a source of a stream."""

    location: str
    """Folder, `file://` or `s3://bucket/prefix` that holds the dataset's `manifest.json`."""
    repeat: int = 1
    """How often an epoch passes over this dataset; small sets are repeated to balance large ones [S]."""
    weight: float = 0.0
    """Its share of every epoch, relative to the other sources' weights and whatever its size; all sources of a stream
    have one, or none has. 0: its size and `repeat` decide, and every sample comes once a pass [ours]."""
    revision: int = 0
    """Which of its manifests: a run is held at one while `mcjepa prep requeue` adds others; 0: the newest [ours]."""

    def __post_init__(self) -> None:
        if not self.location:
            raise ValueError("a stream source has an empty location, expected the place of a manifest.json")
        if self.repeat < 1:
            raise ValueError(f"stream source {self.location}: repeat is {self.repeat}, expected at least 1")
        if self.weight < 0 or (self.weight and self.repeat > 1):
            raise ValueError(
                f"stream source {self.location}: weight {self.weight} and repeat {self.repeat}, expected a weight of "
                "at least 0, and either weight or repeat; leave one out"
            )
        if self.revision < 0:
            raise ValueError(f"stream source {self.location}: revision is {self.revision}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class ColourJitterConfig:
    """Random brightness, contrast, saturation and hue, in random order, as torchvision's ColorJitter."""

    brightness: float = 0.4
    """The factor is uniform in [max(0, 1 - x), 1 + x] [D: VICReg]."""
    contrast: float = 0.4
    """Same, around the image's mean grey [D: VICReg]."""
    saturation: float = 0.2
    """Same, between the grey image and the image [D: VICReg]."""
    hue: float = 0.1
    """The hue turns by a uniform share of the circle in [-x, x] [D: VICReg]."""
    probability: float = 0.8
    """Share of images that are jittered [D: VICReg]."""

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError("colour jitter: strengths must not be negative and hue must be at most 0.5")
        _check_share("colour jitter: probability", self.probability)


@dataclass(frozen=True, kw_only=True)
class PairAugmentConfig:
    """Augmentation of two frames: the same geometry and colour for both, so that their flow stays a flow."""

    crop: tuple[int, int] = (384, 832)
    """Height and width of the random crop, px; smaller frames are enlarged to fit [D: ARFlow on Sintel]."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random enlargement before the crop; (1, 1) leaves them as stored [D: ARFlow has none]."""
    flip: float = 0.5
    """Share of pairs mirrored left to right [D: ARFlow]."""
    swap: float = 0.5
    """Share of pairs whose two frames change places [D: ARFlow]."""
    frame_gap: int = 1
    """Distance between the two frames inside a clip, in frames of the clip [C: consecutive]."""
    jitter: ColourJitterConfig = field(default_factory=lambda: ColourJitterConfig(probability=0.0))
    """Mild colour jitter, the same draw for both frames; off by default [ours]."""

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"augment.pair.crop is {self.crop}, expected two sizes of at least 1 px")
        _check_range("augment.pair.scale", self.scale)
        _check_share("augment.pair.flip", self.flip)
        _check_share("augment.pair.swap", self.swap)
        if self.frame_gap < 1:
            raise ValueError(f"augment.pair.frame_gap is {self.frame_gap}, expected at least 1 frame")


@dataclass(frozen=True, kw_only=True)
class ViewAugmentConfig:
    """VICReg's recipe for the two views of an image; of two values, the first is the first view's."""

    size: int = 224
    """Side of a view, px [S]."""
    area: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area [D: VICReg]."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over height, drawn uniformly in the logarithm [D: VICReg]."""
    flip: float = 0.5
    """Share of views mirrored left to right [D: VICReg]."""
    jitter: ColourJitterConfig = field(default_factory=ColourJitterConfig)
    """Colour jitter [D: VICReg]."""
    grey: float = 0.2
    """Share of views turned grey [D: VICReg]."""
    blur: tuple[float, float] = (1.0, 0.1)
    """Share of first and second views that are blurred [D: VICReg]."""
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation at the view's size, px [D: VICReg, at 224 px]."""
    solarize: tuple[float, float] = (0.0, 0.2)
    """Share of first and second views whose values from 128 on are inverted [D: VICReg]."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"augment.view.size is {self.size}, expected at least 1 px")
        _check_range("augment.view.area", self.area)
        if self.area[1] > 1:
            raise ValueError(f"augment.view.area is {self.area}, expected shares of at most 1")
        _check_range("augment.view.aspect", self.aspect)
        _check_range("augment.view.blur_sigma_px", self.blur_sigma_px)
        for name, shares in (("blur", self.blur), ("solarize", self.solarize)):
            for share in shares:
                _check_share(f"augment.view.{name}", share)
        _check_share("augment.view.flip", self.flip)
        _check_share("augment.view.grey", self.grey)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to samples between their shard and the model."""

    reduced_decode: bool = True
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the crop keeps at least the model's resolution [ours]."""

    pair: PairAugmentConfig = field(default_factory=PairAugmentConfig)
    """The motion branch's pairs."""
    view: ViewAugmentConfig = field(default_factory=ViewAugmentConfig)
    """The content branch's views."""


@dataclass(frozen=True, kw_only=True)
class ShardStoreConfig:
    """Reading of shards: what is compared with the manifest, and, for datasets in a bucket, ranged reads and a disk
    cache that a node's processes share."""

    check: Literal["none", "sizes", "sampled", "full"] = "sampled"
    """What is compared with the manifests when a training (or `open_stream`) starts, in folders and buckets alike.
    `sizes`: the lengths of all shards: of a folder file by file, 4,096 a rank at most; of a bucket by its listing, 480
    shards a request, 512 requests a rank at most. `sampled`: those, and the sha256 of four shards of every stream,
    others at every start: as long as four shards take to read, shared among the ranks. `full`: the sha256 of every
    shard: as long as the whole dataset takes to read, shared among the ranks [ours]."""

    cache_dir: str = ""
    """Folder on a disk of the node that keeps whole shards and an index of the manifests, shared by all ranks and runs
    on it. Empty: every sample is read from the bucket, and the index is among the temporary files [ours]."""
    cache_gib: float = 50.0
    """Most bytes of shards in `cache_dir`, GiB; the least recently used ones leave first [ours]."""
    verify: Literal["length", "sha256"] = "sha256"
    """What a shard is checked by when it enters the cache; single samples are always checked by their length [ours]."""
    readers: int = 8
    """Samples that a loading process fetches from the bucket at a time [ours]."""

    def __post_init__(self) -> None:
        if self.cache_gib <= 0 or self.readers < 1:
            raise ValueError("stream.store: cache_gib must be above 0 and readers at least 1")

    @property
    def cache_bytes(self) -> int:
        """The cap in bytes."""
        return int(self.cache_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """The two endless streams of a run: pairs for the motion branch, views for the content branch."""

    pairs: tuple[SourceConfig, ...] = ()
    """Clip datasets that pairs are cut from."""
    views: tuple[SourceConfig, ...] = ()
    """Image or clip datasets that views are cut from; of a clip, one seeded frame."""
    pair_batch: int = 8
    """Pairs a step over all ranks; 0 leaves the motion branch out [S]."""
    view_batch: int = 384
    """Images a step over all ranks, each gives two views; 0 leaves the content branch out [S]."""
    sampling: Literal["combined", "alternate-batch", "alternate-epoch"] = "combined"
    """Whether a step takes pairs and views, or they take turns by steps or by epochs, views first [C: combined]."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of both streams."""
    window: int = 4096
    """Samples that a lane shuffles at a time [ours]."""
    lanes: int = 0
    """Stretches of an epoch that a step takes its samples from in turns, for both streams; 0: the largest divisor of
    the batch up to 64. Ranks read the fewest shards where their number divides the lanes, or the lanes it [ours]."""
    order_version: Literal[1, 2] = 2
    """Rule by which samples follow one another; a run that is continued keeps its own. In 1, ranks must divide the
    lanes, of which there are at most 64 [ours]."""
    workers: int | None = None
    """Loading processes per rank; 0 loads in the training process. None: by the cores that a rank has, up to 8 for a
    GPU and up to 2 beside ranks that compute on CPUs [ours]."""
    prefetch: int = 2
    """Steps that each loading process holds ready [ours]."""
    cache_mib: int = 0
    """Memory for decoded frames in each loading process, MiB; 0 decodes every time [ours]."""
    max_corrupt: int = 100
    """Different samples that a rank may find undecodable and replace by others of the stream, from its start on, before
    the run stops; 0: the first one stops it [ours]."""
    store: ShardStoreConfig = field(default_factory=ShardStoreConfig)
    """How shards in a bucket are fetched."""

    def __post_init__(self) -> None:
        if min(self.pair_batch, self.view_batch, self.workers or 0, self.cache_mib, self.max_corrupt) < 0:
            raise ValueError("stream: pair_batch, view_batch, workers, cache_mib, max_corrupt must not be negative")
        if self.view_batch == 1:
            raise ValueError(
                "stream.view_batch is 1, expected 0 or at least 2: VICReg's variance and covariance are statistics "
                "over the images of a step"
            )
        if self.pair_batch == 0 and self.view_batch == 0:
            raise ValueError("stream: pair_batch and view_batch are both 0, expected samples in at least one")
        if self.sampling != "combined" and 0 in (self.pair_batch, self.view_batch):
            raise ValueError(
                f"stream.sampling is {self.sampling}, but pair_batch is {self.pair_batch} and view_batch "
                f"{self.view_batch}; expected samples in both, or sampling: combined"
            )
        for name, sources in (("pairs", self.pairs), ("views", self.views)):
            if len({source.weight > 0 for source in sources}) > 1:
                raise ValueError(
                    f"stream.{name}: some sources have a weight; expected all of them to have one, or none"
                )
        if self.window < 1 or self.prefetch < 1:
            raise ValueError("stream: window and prefetch must be at least 1")
        if self.lanes < 0 or (self.lanes and self.order_version == 1):
            raise ValueError(
                f"stream.lanes is {self.lanes} in order {self.order_version}; expected 0 or more, and 0 in order 1"
            )

    @property
    def batches(self) -> dict[str, int]:
        """Samples a step of each stream that the run has: `pairs`, `views`."""
        return {name: batch for name, batch in (("pairs", self.pair_batch), ("views", self.view_batch)) if batch}


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected a share in [0, 1]")


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} is {bounds}, expected two positive numbers, the smaller one first")

"""Settings of data preparation: corpora, datasets, the moving-photos generator and the whole job.

A recipe (YAML) is validated into these frozen classes by `pipeline.recipe.files`; nothing heavy is imported here.
Origin of a value: "paper" (MC-JEPA), "parent" (a method it builds on), "ours".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FilterMode = Literal["off", "score", "drop"]
"""`score`: a filter's scores are stored, nothing is dropped."""


def require(condition: bool, found: str, expected: str) -> None:
    """Raise ValueError with the two parts of a range error unless `condition` holds."""
    if not condition:
        raise ValueError(f"{found}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One corpus of a dataset: a reader's name and where its files lie."""

    reader: str
    """Key of `data_prep.corpora.INPUT_READERS`, e.g. `videos`, `images`, `davis`, `camvid`."""
    path: str = ""
    """Root of the corpus, a folder or an s3 prefix; unused by the `packaged-*` readers. Ours."""
    split: str = ""
    """Part of the corpus (`train`, `val`, a list's name); empty: everything the reader knows. Ours."""
    repeat: int = 1
    """How many times its inputs are listed in the dataset (paper: sets are repeated to balance them)."""
    labels: bool = False
    """Store the name of an input's first folder as its class in KEY.json (ImageFolder). Ours."""
    members: tuple[str, ...] = ()
    """Ends of the names that are taken (`jpg`, `rgb.png`, `_left.png`), of readers of any files; empty: every file of
    the reader's kind, one picture or video of a WebDataset sample. Ours."""

    def __post_init__(self) -> None:
        """Refuse a repetition below one."""
        require(self.repeat >= 1, f"corpus repeat={self.repeat}", "at least 1")


@dataclass(frozen=True, kw_only=True)
class CutFilter:
    """Scene cuts between the frames of a clip, by PySceneDetect's content score."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    max_score: float = 27.0
    """Greatest mean change of hue, saturation and value, 0 to 255, between neighbours. Parent: PySceneDetect."""


@dataclass(frozen=True, kw_only=True)
class MotionFilter:
    """Static and too fast pairs, by the optical flow of OpenCV's DIS between neighbouring frames of a clip."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    min_px: float = 0.05
    """Least mean length of the flow, px of the stored frame. Ours."""
    max_px: float = 64.0
    """Greatest mean length of the flow, px of the stored frame. Ours."""


@dataclass(frozen=True, kw_only=True)
class BorderFilter:
    """Letterboxes and pillarboxes: uniform dark rows and columns at the edges."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    max_fraction: float = 0.05
    """Greatest part of the frame's area that bars may cover, 0 to 1. Ours."""


@dataclass(frozen=True, kw_only=True)
class DarkFilter:
    """Near-black frames."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    min_luma: float = 12.0
    """Least mean luma of a frame, 0 to 255. Ours."""


@dataclass(frozen=True, kw_only=True)
class DuplicateFilter:
    """Inputs that repeat an earlier input of the dataset: equal bytes, or frames that look alike."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    max_bits: int = 4
    """Greatest Hamming distance of 64-bit perceptual hashes that counts as alike; -1: equal bytes only. Ours."""

    def __post_init__(self) -> None:
        """Refuse distances that would match anything."""
        require(-1 <= self.max_bits <= 15, f"duplicates.max_bits={self.max_bits}", "-1 to 15")


@dataclass(frozen=True, kw_only=True)
class LeakageFilter:
    """Frames that match a frame of the evaluation sets: they are refused and listed."""

    mode: FilterMode = "off"
    """`off`, `score` or `drop`."""
    sets: tuple[CorpusConfig, ...] = ()
    """Evaluation sets, named as corpora are: reader, path, split."""
    max_bits: int = 4
    """Greatest Hamming distance of 64-bit perceptual hashes that counts as a match. Ours."""

    def __post_init__(self) -> None:
        """Refuse a filter without sets and distances that would match anything."""
        require(self.mode == "off" or bool(self.sets), "filters.leakage without sets", "the evaluation sets to guard")
        require(0 <= self.max_bits <= 15, f"leakage.max_bits={self.max_bits}", "0 to 15")


@dataclass(frozen=True, kw_only=True)
class FiltersConfig:
    """All filters of a dataset; a dropped sample is counted, with its reason, in its input's record."""

    cut: CutFilter = field(default_factory=CutFilter)
    """Scene cuts within a clip."""
    motion: MotionFilter = field(default_factory=MotionFilter)
    """Static and too fast clips."""
    border: BorderFilter = field(default_factory=BorderFilter)
    """Letterboxes."""
    dark: DarkFilter = field(default_factory=DarkFilter)
    """Near-black frames."""
    duplicates: DuplicateFilter = field(default_factory=DuplicateFilter)
    """Repeated inputs."""
    leakage: LeakageFilter = field(default_factory=LeakageFilter)
    """Frames of evaluation sets."""


SampleKind = Literal["clip", "image", "flow"]
DecoderName = Literal["decord", "pyav", "pyav-planes", "torchcodec"]
EncodingName = Literal["jpeg", "webp", "png"]


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """What becomes of videos that are not plain."""

    square_pixels: bool = True
    """Store pixels that are not square (DVD, DV, broadcast) as they are shown; False: as they are coded. Ours."""
    max_gap_s: float = 1.0
    """Longest time between two frames of a video that follow each other within a sample, s: a pair across a phone's
    freeze is no motion. Ours."""
    interlaced: Literal["deinterlace", "keep", "refuse"] = "deinterlace"
    """Interlaced frames: by yadif, a frame stays a frame; `keep`: combed as they are; `refuse`: filtered. Ours."""
    wide_colours: Literal["refuse", "convert", "keep"] = "refuse"
    """HDR (PQ, HLG) and primaries beyond BT.709's: `refuse`: filtered; `convert`: tone-mapped to plain video (Hable's
    curve, white at 1,000 cd/m²); `keep`: stored as if they were plain. Ours."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.max_gap_s > 0, f"video.max_gap_s={self.max_gap_s}", "a positive number of seconds")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """How corpora become the shards of one dataset."""

    kind: SampleKind
    """`clip`: some consecutive frames of a video or a frame sequence; `image`: one image or video frame;
    `flow`: the two frames of a pair with its true flow, unscaled and lossless."""
    corpora: tuple[CorpusConfig, ...]
    """Raw material, in order."""
    short_side: int = 256
    """Short side of stored frames, px; smaller frames keep their size. Ours."""
    frames: int = 2
    """Frames a clip; without meaning for images. Paper: flow is learned on pairs."""
    frame_step: int = 1
    """Distance between the frames of a clip, in frames of the video. Paper: consecutive frames."""
    clip_stride: int = 2
    """Distance between the starts of consecutive clips, in frames (for images: between frames). Ours."""
    rate_hz: float = 0.0
    """Frames a second that are taken from a video, each the one shown at its time; 0: every frame. Ours."""
    max_samples_per_input: int = 0
    """Most samples cut from one input, spread evenly over it; 0: no limit. Ours."""
    min_size: int = 32
    """Inputs whose short side is below this, px, are filtered. Ours."""
    max_megapixels: float = 64.0
    """Inputs whose frames have more pixels, 10^6, are refused before anything is decoded. Ours."""
    encoding: EncodingName = "jpeg"
    """Format of stored frames: JPEG (4:2:0 chroma), WebP, or lossless PNG. Ours."""
    quality: int = 95
    """Quality of JPEG and WebP, 1-100. Ours."""
    order: Literal["shuffled", "listed"] = "shuffled"
    """Order of the inputs in the shards: a seeded permutation, or by corpus and name, which puts a class's images
    side by side. Ours."""
    order_seed: int = 0
    """Seed of that permutation."""
    inputs_per_shard: int = 8
    """Consecutive inputs whose samples make one shard. Ours."""
    decoder: DecoderName = "decord"
    """Video decoder; PyAV decodes what it cannot. `pyav-planes`: PyAV, resized and encoded without RGB. Ours."""
    video: VideoConfig = field(default_factory=VideoConfig)
    """Videos that are not plain."""
    timeout_s: float = 120.0
    """Longest silence of the decoder on one input, s; then it is killed, the input quarantined. Ours."""
    memory_cap_mib: int = 4096
    """Memory the decoder's process may add to its start, MiB; beyond it the input is quarantined. Ours."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """What is scored, and what is dropped for its scores."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.corpora), "a dataset without corpora", "at least one corpus")
        for name in ("frames", "frame_step", "clip_stride", "inputs_per_shard", "min_size"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}", "at least 1")
        require(self.short_side >= 16, f"short_side={self.short_side}", "at least 16 px")
        require(1 <= self.quality <= 100, f"quality={self.quality}", "1 to 100")
        if self.decoder == "pyav-planes" and self.kind != "flow":
            found = f"decoder=pyav-planes with encoding={self.encoding}"
            require(self.encoding == "jpeg", found, "encoding=jpeg, which takes planes, or decoder=pyav")
        cap = self.max_samples_per_input
        require(cap >= 0, f"max_samples_per_input={cap}", "0 or more")
        require(self.timeout_s > 0, f"timeout_s={self.timeout_s}", "a positive number of seconds")
        require(self.rate_hz >= 0, f"rate_hz={self.rate_hz}", "0 or a number of frames a second")
        require(self.max_megapixels > 0, f"max_megapixels={self.max_megapixels}", "a positive number")
        require(self.memory_cap_mib >= 64, f"memory_cap_mib={self.memory_cap_mib}", "at least 64 MiB")

    @property
    def frames_per_sample(self) -> int:
        """Frames stored a sample: 1 for images, 2 for flow, `frames` for clips."""
        return {"image": 1, "flow": 2}.get(self.kind, self.frames)


@dataclass(frozen=True, kw_only=True)
class MovingPhotosConfig:
    """Synthetic sequences with exact flow from real photos (`data_prep.corpora.moving_photos.generate`)."""

    out: str
    """Folder that is made; a complete one with the same settings is kept as it is."""
    photos: tuple[str, ...] = ()
    """Folders of photos; empty: the photos that ship in scikit-image and scikit-learn."""
    sequences: int = 160
    """Training sequences. Ours."""
    heldout_sequences: int = 24
    """Sequences with ground truth, from other photos than the training ones. Ours."""
    heldout_photos: int = 6
    """Photos held out for them (at most a third of all, at least 2). Ours."""
    max_photos: int = 64
    """Most photos used, a seeded choice when there are more; at most 255, as each is a class of 8-bit maps. Ours."""
    frames: int = 8
    """Frames a sequence. Ours."""
    size: int = 128
    """Side of the square frames, px, even. Ours."""
    tiles: int = 256
    """Images cut from the training photos for the content branch. Ours."""
    tile_px: int = 160
    """Side of these images, px. Ours."""
    background_shift_px: float = 4.0
    """Greatest shift of the background, px a frame. Parent: FlyingChairs' small background motion."""
    max_shift_px: float = 9.0
    """Greatest shift of an object, px a frame. Ours: within reach of a 5-level pyramid at 128 px."""
    max_turn_deg: float = 3.0
    """Greatest rotation of a layer, degrees a frame. Ours."""
    max_zoom: float = 0.02
    """Greatest relative change of size of a layer a frame. Ours."""
    min_objects: int = 2
    """Fewest objects a sequence. Ours."""
    max_objects: int = 4
    """Most objects a sequence. Ours."""
    min_object_px: float = 18.0
    """Smallest mean radius of an object, px. Ours."""
    max_object_px: float = 40.0
    """Greatest mean radius of an object, px. Ours."""
    texture_candidates: int = 6
    """Windows of a photo that are looked at for a layer; the most textured is cut. In plain sky the flow is known
    exactly but cannot be seen, and a score over it tests nothing. 1 takes the first. Ours."""
    fps_hz: int = 8
    """Frame rate written into the training videos, Hz. Ours."""
    crf: int = 10
    """x264 quality of the training videos, 0 (lossless) to 51. Ours."""
    seed: int = 0
    """Seed of everything random here."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.out), "moving_photos.out is empty", "a folder to make")
        require(self.size >= 32 and self.size % 2 == 0, f"size={self.size}", "even, at least 32 px")
        require(self.frames >= 2, f"frames={self.frames}", "at least 2")
        require(self.sequences >= 1, f"sequences={self.sequences}", "at least 1")
        require(self.heldout_sequences >= 0, f"heldout_sequences={self.heldout_sequences}", "0 or more")
        require(self.heldout_photos >= 2, f"heldout_photos={self.heldout_photos}", "at least 2")
        require(4 <= self.max_photos <= 255, f"max_photos={self.max_photos}", "4 to 255 (class maps have 8 bits)")
        require(self.tiles >= 0, f"tiles={self.tiles}", "0 or more")
        require(self.tile_px >= 16, f"tile_px={self.tile_px}", "at least 16")
        counts = f"min_objects={self.min_objects}, max_objects={self.max_objects}"
        require(0 <= self.min_objects <= self.max_objects <= 200, counts, "0 <= min <= max <= 200")
        radii = f"min_object_px={self.min_object_px}, max_object_px={self.max_object_px}"
        require(self.texture_candidates >= 1, f"texture_candidates={self.texture_candidates}", "at least 1")
        require(4 <= self.min_object_px <= self.max_object_px, radii, "4 <= min <= max")
        require(0 <= self.max_zoom < 0.2, f"max_zoom={self.max_zoom}", "0 to 0.2")


@dataclass(frozen=True, kw_only=True)
class PrepConfig:
    """The whole data preparation job: a generator, if wanted, and the datasets made after it."""

    root: str
    """Location under which each dataset is published as `ROOT/NAME` (a path, `file://` or `s3://bucket/prefix`)."""
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    """Dataset name to its settings."""
    moving_photos: MovingPhotosConfig | None = None
    """Sequences generated first; corpora may then read its folders. None: nothing is generated."""
    workers: int = 0
    """Processes that decode; 0: one per core. Ours."""
    workers_by: Literal["auto", "ray", "processes"] = "auto"
    """Who starts them. `processes`: this process, without Ray, on this machine. `auto`: that for local inputs of up to
    128 MiB without a leakage filter, Ray where there are more or a cluster is named. The bytes are the same. Ours."""
    ray_address: str = ""
    """Address of a running Ray cluster; empty: that of RAY_ADDRESS (a submitted Ray job has it), else a Ray of our
    own on this machine, ended with the job."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.root), "prep.root is empty", "a path, file:// or s3://bucket/prefix")
        require(self.workers >= 0, f"workers={self.workers}", "0 or more")
        named = self.workers_by == "processes" and bool(self.ray_address)
        require(not named, "workers_by=processes with a ray_address", "one of the two: processes are of this machine")
        for name in self.datasets:
            usable = bool(name) and all(c.isalnum() or c in "-_" for c in name)
            require(usable, f"dataset name {name!r}", "letters, digits, '-' and '_'")

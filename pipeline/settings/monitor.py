"""Settings of what watches a run: guards, meters and the profiler; no heavy import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """The detector of loss spikes: a robust z-score of every term over a window of good steps."""

    window: int = 200
    """Good steps that a term is compared with [ours]."""
    least: int = 50
    """Good steps before anything is called a spike [ours]."""
    z: float = 12.0
    """A term is a spike above median + z * 1.4826 * MAD of its window; 0 switches the detector off [ours]."""
    action: Literal["warn", "stop"] = "warn"
    """Beside its flight record, a spike gives a warning only, or ends the run before the next update [ours]."""

    def __post_init__(self) -> None:
        if not 3 <= self.least <= self.window or self.z < 0:
            raise ValueError("train.guards.spikes: expected 3 <= least <= window and z of at least 0")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guards of a run."""

    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    """Loss spikes."""
    watchdog_s: float = 600.0
    """A part of a step (waiting for data, forward, collective, checkpoint ...) that takes longer is reported with the
    stacks of all threads, seconds; 0 switches the watchdog off [ours]."""
    watchdog_exit_s: float = 1800.0
    """One that takes longer than this ends its process with exit code 3, so that a launcher can start the run again,
    seconds; 0 never does [ours]."""

    def __post_init__(self) -> None:
        if self.watchdog_s < 0 or self.watchdog_exit_s < 0:
            raise ValueError("train.guards: watchdog_s and watchdog_exit_s must not be negative")
        if self.watchdog_s and self.watchdog_exit_s and self.watchdog_exit_s <= self.watchdog_s:
            raise ValueError(
                f"train.guards.watchdog_exit_s is {self.watchdog_exit_s}, expected more than "
                f"watchdog_s={self.watchdog_s}, so that the report comes before the end"
            )


@dataclass(frozen=True, kw_only=True)
class AlertConfig:
    """Limits of the collapse meters beyond which a warning is given, once until the value is back."""

    embedding_std: float = 0.01
    """Least mean deviation of the embedding's dimensions [ours]."""
    embedding_rank: float = 0.02
    """Least effective rank of the embedding, as a share of what its samples and dimensions allow [ours]."""
    level_std: float = 0.02
    """Least mean deviation of a level's channels, where variance-covariance asks for 1: regression and cycle gain from
    features that shrink [ours]."""
    visible_share: float = 0.05
    """Least share of pixels that both flows agree on [ours]."""
    flow_px: float = 100.0
    """Greatest mean flow, px: near the clip of 128 px the estimator has diverged [ours]."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A window of the torch profiler; its files are in RUN/profile/."""

    start_step: int = -1
    """First profiled step; -1 profiles nothing [ours]."""
    steps: int = 3
    """Profiled steps [ours]."""
    ranks: tuple[int, ...] = (0,)
    """Ranks that profile [ours]."""

    def __post_init__(self) -> None:
        if self.start_step < -1 or self.steps < 1:
            raise ValueError("train.profile: start_step must be at least -1 and steps at least 1")


@dataclass(frozen=True, kw_only=True)
class MeterConfig:
    """Meters beyond those of every step."""

    every: int = 100
    """Steps between the periodic meters (gradient norms of the branches, cosine of the two tasks' gradients, effective
    ranks); such a step takes half as long again. 0 leaves them out [ours]."""
    cosine: bool = True
    """Whether the periodic meters include the cosine of the flow's and the content's gradients on the encoder; never
    with ZeRO-3, which shares out the parameters it needs [ours]."""
    cells: int = 4096
    """Cells of every level that a rank takes into the collapse meters [ours]."""
    alerts: AlertConfig = field(default_factory=AlertConfig)
    """Limits of the collapse meters."""
    pictures_every: int = 1000
    """Steps between pictures of flow and features on the same few samples; 0 draws none [ours]."""
    pictures: int = 4
    """Samples on the picture: the first pairs of step 0 [ours]."""
    peak_tflops: float = 0.0
    """Peak of one device at the run's precision in TFLOP/s, for the MFU; 0 takes it from a table by the device's
    name [ours]."""

    def __post_init__(self) -> None:
        if min(self.every, self.pictures_every) < 0 or self.cells < 2 or self.pictures < 1 or self.peak_tflops < 0:
            raise ValueError(
                "train.meters: every and pictures_every must not be negative, cells at least 2, pictures at least 1"
            )

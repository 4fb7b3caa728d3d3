"""Settings of a training run; no heavy import. Origins in brackets as in `docs/recipes.md`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.meters_config import GuardConfig, MeterConfig, ProfileConfig
from pipeline.stream_config import StreamConfig


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Weight of one loss term."""

    weight: float
    """Its coefficient in the joint loss."""
    start_step: int = 0
    """First step at which it counts."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.start_step < 0:
            raise ValueError("weight and start_step of a term must not be negative")


@dataclass(frozen=True, kw_only=True)
class TermsConfig:
    """The terms of the joint loss (method section 2)."""

    video_balance: float = 0.1
    """Factor on all five terms of the motion branch, the paper's alpha [C]."""
    regression: TermConfig = field(default_factory=lambda: TermConfig(weight=1.0))
    """Features predicted by warping [S]."""
    reconstruction: TermConfig = field(default_factory=lambda: TermConfig(weight=1.0))
    """Images predicted by warping [S]."""
    smoothness: TermConfig = field(default_factory=lambda: TermConfig(weight=75.0))
    """Edge-aware smoothness of the flow [S]."""
    cycle: TermConfig = field(default_factory=lambda: TermConfig(weight=0.2))
    """Features warped forth and back [S]."""
    vc: TermConfig = field(default_factory=lambda: TermConfig(weight=1.0))
    """Variance-covariance at every level [C]."""
    content: TermConfig = field(default_factory=lambda: TermConfig(weight=1.0))
    """VICReg of the two views [C]."""

    def weights_at(self, step: int) -> dict[str, float]:
        """Weight of every term in step `step`, the video balance multiplied in; 0 before a term's start."""
        weights = {}
        for name in ("regression", "reconstruction", "smoothness", "cycle", "vc", "content"):
            term: TermConfig = getattr(self, name)
            balance = 1.0 if name == "content" else self.video_balance
            weights[name] = balance * term.weight if step >= term.start_step else 0.0
        return weights


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with one group for the encoder and expander and one for the flow estimator."""

    encoder_lr: float = 3e-4
    """Peak learning rate of encoder and expander [S]."""
    estimator_lr: float = 1e-4
    """Peak learning rate of the flow estimator [S]."""
    encoder_weight_decay: float = 1e-6
    """Weight decay of the encoder and expander; none on norms and biases [S]."""
    estimator_weight_decay: float = 1e-6
    """Weight decay of the estimator [S]."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments [D]."""
    warmup_steps: int = 33_360
    """Linear warm-up, then a cosine to 0; the paper's 10 epochs of 3,336 steps [S]."""
    clip_norm: float = 1.0
    """Global gradient norm is clipped to this; 0 leaves it [not reported; D: SMURF]."""

    def __post_init__(self) -> None:
        if min(self.encoder_lr, self.estimator_lr) < 0 or self.warmup_steps < 0 or self.clip_norm < 0:
            raise ValueError("train.optimizer: rates, warmup_steps and clip_norm must not be negative")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The DeepSpeed engine."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage [ours]."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """bf16 by autocast over fp32 weights; fp16 with loss scaling, on GPUs only [D: VICReg autocasts]."""
    threads: int = 0
    """CPU threads a rank computes with; 0 shares the machine's cores among its ranks [ours]."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed options, laid over what this recipe sets."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves and what it keeps."""

    every_steps: int = 1000
    """Steps between checkpoints; the last step always saves [ours]."""
    keep_last: int = 2
    """Checkpoints kept; older ones are removed after the newest is complete [ours]."""

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep_last < 1:
            raise ValueError("train.checkpoint: every_steps and keep_last must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    run: str
    """Run folder; an unfinished run in it is continued."""
    steps: int
    """Optimizer steps in all."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Where samples come from and what is done to them."""
    terms: TermsConfig = field(default_factory=TermsConfig)
    """The loss terms' weights and starts."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its schedule."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The training engine."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    log_every: int = 50
    """Steps between records of the meters."""
    max_bad_steps: int = 10
    """Steps with a non-finite batch, loss or gradient in a row that end the run."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """Spikes and the watchdog."""
    meters: MeterConfig = field(default_factory=MeterConfig)
    """Costly meters, alerts, pictures."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """A window of the torch profiler."""
    replay: str = ""
    """A flight record of RUN/bad_steps: its step is run again and explained, nothing is trained."""
    replay_exact: bool = False
    """Whether a replay trains from the checkpoint up to the step first, for the step's very weights."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.max_bad_steps < 1:
            raise ValueError("train: steps, log_every and max_bad_steps must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    uri: str = "sqlite:///mlflow.db"
    """Tracking server or SQLite file."""
    artifacts: str = ""
    """Where artifacts of a new experiment go; empty leaves MLflow's choice."""
    experiment: str = "mcjepa"
    """Experiment name."""
    close_s: float = 30.0
    """Time that the end of a training run waits for records that are not delivered yet, seconds; what is left stays in
    RUN/spool for `mcjepa tracking sync` [ours]."""

"""Settings of a training run; no heavy import. Origins in brackets as in `docs/recipes.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mcjepa.pipeline.settings.monitor import GuardConfig, MeterConfig, ProfileConfig
from mcjepa.pipeline.settings.stream import StreamConfig


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Weight of one loss term, and when it counts."""

    weight: float
    """Its coefficient in the joint loss."""
    start_step: int = 0
    """First step at which it counts; the later of this and `start_epoch` applies."""
    start_epoch: float = 0.0
    """Epoch of the views' stream (of the pairs' without views) at which it begins to count; fractions are allowed."""
    warmup_epochs: float = 0.0
    """Epochs over which its weight rises linearly from its start; 0 begins with the full weight."""

    def __post_init__(self) -> None:
        if min(self.weight, self.start_step, self.start_epoch, self.warmup_epochs) < 0:
            raise ValueError("weight, start_step, start_epoch and warmup_epochs of a term must not be negative")


FLOW_START_EPOCH = 10.0
"""The paper trains on content alone for its first 10 of 100 epochs [C]."""


def _flow_term(weight: float, warmup_epochs: float = 0.0) -> TermConfig:
    return TermConfig(weight=weight, start_epoch=FLOW_START_EPOCH, warmup_epochs=warmup_epochs)


@dataclass(frozen=True, kw_only=True)
class TermsConfig:
    """The terms of the joint loss (method section 2); one that a recipe names starts at step 0 unless it says when."""

    video_balance: float = 0.1
    """Factor on all terms of the motion branch, the paper's alpha [C]."""
    regression: TermConfig = field(default_factory=lambda: _flow_term(1.0))
    """Features predicted by warping [S]; from epoch 10 on [C]."""
    reconstruction: TermConfig = field(default_factory=lambda: _flow_term(1.0))
    """Images predicted by warping [S]; from epoch 10 on [C]."""
    smoothness: TermConfig = field(default_factory=lambda: _flow_term(75.0))
    """Edge-aware smoothness of the flow [S]; from epoch 10 on [C]."""
    cycle: TermConfig = field(default_factory=lambda: _flow_term(0.2))
    """Features warped forth and back [S]; from epoch 10 on [C]."""
    vc: TermConfig = field(default_factory=lambda: _flow_term(1.0, warmup_epochs=1.0))
    """Variance-covariance at every level [C]; from epoch 10 on [C], with a warm-up of one epoch [S]."""
    self_supervision: TermConfig = field(default_factory=lambda: TermConfig(weight=0.0))
    """Flow of a part of the pair against the flow of the whole (`model.loss.student_...`); not in the paper. ARFlow
    takes 0.01; SMURF 0.3 from 5/12 of its steps on, reached over 1/12 [ours: off]."""
    masks: TermConfig = field(default_factory=lambda: TermConfig(weight=1.0))
    """No term: how much the masks of occluded pixels count. From a later step on, when flow has formed; before that,
    and at 0, only pixels that leave the picture are left out. SMURF begins its two-way test after a third of its steps
    [ours: at once]."""
    content: TermConfig = field(default_factory=lambda: TermConfig(weight=1.0))
    """VICReg of the two views [C]."""

    def __post_init__(self) -> None:
        if self.masks.weight > 1:
            raise ValueError(f"train.terms.masks.weight is {self.masks.weight}, expected a share in [0, 1]")

    def items(self) -> tuple[tuple[str, TermConfig], ...]:
        """Every term by name, and the masks, the motion branch's first."""
        return tuple((name, getattr(self, name)) for name in (*MOTION_TERMS, MASKS, "content"))


MOTION_TERMS = ("regression", "reconstruction", "smoothness", "cycle", "vc", "self_supervision")
MASKS = "masks"


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
    warmup_epochs: float | None = None
    """The warm-up in epochs of the views' stream (of the pairs' without views), instead of `warmup_steps` [S: 10]."""
    clip_norm: float = 1.0
    """Global gradient norm is clipped to this; 0 leaves it [not reported; D: SMURF]."""

    def __post_init__(self) -> None:
        numbers = (self.encoder_lr, self.estimator_lr, self.warmup_steps, self.clip_norm, self.warmup_epochs or 0.0)
        if min(numbers) < 0:
            raise ValueError("train.optimizer: rates, warm-ups and clip_norm must not be negative")


BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced at a time, where `train.engine.options` does not say it (`reduce_bucket_size`): a tenth of
DeepSpeed's own, whose buffers take 2 GB of a GPU, with bf16 4 GB, whatever the model [ours]."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The DeepSpeed engine."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage [ours]."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """bf16 by autocast over fp32 weights; fp16 with loss scaling, on GPUs only [D: VICReg autocasts]."""
    tf32: bool = False
    """Whether a GPU may compute products and convolutions of fp32 in TF32, whose mantissa has 10 bits. With bf16 only
    statistics of the losses are left in fp32, which lose by it what little time it saves [ours]."""
    cudnn_benchmark: bool = True
    """Whether cuDNN tries its kernels on the first step of every shape and keeps the quickest [ours]."""
    deterministic: bool = False
    """Whether a GPU repeats a run bit for bit, as far as torch can (an operation that cannot is named in a warning), at
    the cost of time; on CPUs it always does. Switches cudnn_benchmark off [ours]."""
    compile: bool = False
    """Whether encoder and flow estimator are compiled (torch.compile): on GPUs far fewer kernels a step; the first step
    of a run takes minutes. Weights and checkpoints are the same. Not with zero_stage 3, whose parameters come and go
    between layers; on CPUs it needs a C++ compiler [ours]."""
    threads: int = 0
    """CPU threads a rank computes with; 0 shares the machine's cores among its ranks [ours]."""
    accumulation_steps: int = 1
    """Micro-batches that a rank's share of a step is cut into; the global batch stays what the stream says. Each is a
    forward of its own, so batch statistics (VICReg, VC, means over visible pixels) are per micro-batch [ours]."""
    split_statistics: bool = False
    """Allows `accumulation_steps` above 1 with the content branch, whose VICReg then sees a micro-batch of all ranks
    instead of the global batch: another objective than the paper's [ours]."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What moves from a GPU to its host's memory: the optimizer's state (ZeRO 1 to 3), or the parameters too (ZeRO 3).
    Refused where there is no GPU [ours]."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed options, merged into what this recipe sets; unknown ones are refused, and so are those that
    the recipe sets by a key of its own. `1e8`, text in YAML 1.1, is a number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", {name: _with_numbers(value) for name, value in self.options.items()})
        if self.accumulation_steps < 1 or self.threads < 0:
            raise ValueError("train.engine: accumulation_steps must be at least 1, threads at least 0")
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"train.engine.offload is {self.offload} with zero_stage {self.zero_stage}, expected a stage of at "
                f"least {least}; raise zero_stage"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "train.engine.compile is true with zero_stage 3, expected ZeRO 0 to 2: stage 3 gathers a layer's "
                "parameters when it is called, and compiled parts are called as a whole; set zero_stage 2"
            )
        if self.precision == "fp16" and self.zero_stage == 0:
            raise ValueError(
                "train.engine.precision is fp16 with zero_stage 0, expected ZeRO 1 to 3, which keep fp32 copies that "
                "every other run can resume from; set zero_stage 1 or precision bf16"
            )


def _with_numbers(value: Any) -> Any:
    """Texts such as `1e8` as numbers, in mappings too: DeepSpeed's counts take no text."""
    if isinstance(value, Mapping):
        return {name: _with_numbers(item) for name, item in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves and what it keeps."""

    every_steps: int = 1000
    """Steps between checkpoints; the last step and a stop request always save [ours]."""
    keep_last: int = 2
    """Newest checkpoints kept; older ones are removed after the newest is complete [ours]."""
    keep_every_steps: int = 0
    """Checkpoints of multiples of this are kept for good; 0 keeps none for good [ours]."""
    best_metric: str = ""
    """Meter by which the best checkpoint is kept too, by its value in the last record before; one that no record has
    ends the run behind a save. Empty: none [ours]."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which value of `best_metric` is best [ours]."""
    max_failed_saves: int = 3
    """Saves (or uploads) in a row that may fail before the run stops; the last one of a run must not fail [ours]."""
    background: bool = False
    """Whether the training goes on while a checkpoint is written, from a copy in the machine's memory (12 bytes a
    parameter shared by all ranks, 4 on rank 0). The last save of a run waits for the one before it [ours]."""
    grace_s: float = 60.0
    """Seconds that the platform leaves between its stop signal and its kill; uploads of the last checkpoint are
    waited for so long [ours]."""
    scratch: str = ""
    """Local folder for the files of a run on s3; empty takes a folder among the system's temporary files [ours]."""

    def __post_init__(self) -> None:
        if min(self.every_steps, self.keep_last, self.max_failed_saves) < 1:
            raise ValueError("train.checkpoint: every_steps, keep_last and max_failed_saves must be at least 1")
        if self.keep_every_steps < 0 or self.grace_s < 0:
            raise ValueError("train.checkpoint: keep_every_steps and grace_s must not be negative")
        if self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"train.checkpoint.keep_every_steps is {self.keep_every_steps}, expected a multiple of every_steps "
                f"{self.every_steps}; no other steps are saved"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    run: str
    """Run folder or s3 prefix; an unfinished run in it is continued."""
    steps: int = 0
    """Optimizer steps in all; 0 where `epochs` says it."""
    epochs: float = 0.0
    """Length of the run in epochs of the views' stream (of the pairs' without views), instead of `steps` [C: 100]."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    init_from: str = ""
    """Weights that a new run starts from, a safetensors file or a folder with one: mcjepa's own (whole or the encoder
    alone) or a published ConvNeXt for the encoder's stages; empty: random. A continued run does not read it [ours]."""
    frozen_encoder: bool = False
    """The encoder stays as it starts: no gradient reaches it, its rate is 0, and only estimator and expander learn.
    With `init_from`, the paper's flow head on a frozen encoder [S]."""
    allow_model_changes: tuple[str, ...] = ()
    """Keys of `model` (such as flow.match) that a continued run may change although its weights mean something else
    then; any other such change is refused [ours]."""
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
    """Periodic meters, alerts, pictures."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """A window of the torch profiler."""
    replay: str = ""
    """A flight record of RUN/bad_steps: its step is run again and explained, nothing is trained."""
    replay_exact: bool = False
    """Whether a replay trains from the checkpoint up to the step first, for the step's very weights."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.max_bad_steps < 1:
            raise ValueError("train: log_every and max_bad_steps must be at least 1")
        if (self.steps >= 1) == (self.epochs > 0) or min(self.steps, self.epochs) < 0:
            raise ValueError(
                f"train.steps is {self.steps} and train.epochs {self.epochs}, expected one of them above 0; "
                "set the other to 0"
            )
        content = self.stream.view_batch > 0 and self.terms.content.weight > 0
        if self.engine.accumulation_steps > 1 and content and not self.engine.split_statistics:
            raise ValueError(
                f"train.engine.accumulation_steps is {self.engine.accumulation_steps} with the content branch, "
                "expected 1: VICReg's statistics would be those of a micro-batch; use activation checkpointing or "
                "more ranks to save memory, or accept it with train.engine.split_statistics=true"
            )


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

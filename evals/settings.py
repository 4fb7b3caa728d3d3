"""Settings of all evaluations of one set of weights: what a recipe has below `eval`.

Each kind keeps its own beside its code: `evals.flow.settings`, `evals.probe.settings`, `evals.vos.settings`,
`evals.finetune.settings`, `evals.classification.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcjepa.evals.classification.settings import ClassifyConfig
from mcjepa.evals.finetune.settings import FinetuneConfig
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.probe.settings import ProbeConfig
from mcjepa.evals.progress import require
from mcjepa.evals.vos.settings import VosConfig


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """All evaluations of one set of weights; a part that is None is not run."""

    flow: FlowEvalConfig | None = None
    """Optical flow against ground truth and classical baselines."""

    probe: ProbeConfig | None = None
    """Linear segmentation probe."""

    vos: VosConfig | None = None
    """Video object segmentation by label propagation."""

    finetune: FinetuneConfig | None = None
    """Fine-tuning with UperNet."""

    classify: ClassifyConfig | None = None
    """Image classification on pooled frozen features."""

    seed: int = 0
    """Seeds the head's initial values, its batches and the random encoder (ours)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto = the GPU if there is one. Scores are bitwise repeatable on the CPU
    (ours)."""

    threads: int = 0
    """CPU threads of torch while scoring; 0 = as many as torch takes. Small models on busy machines are
    several times faster with 1 (ours)."""

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"eval.threads is {self.threads}", "0 (torch's choice) or more")

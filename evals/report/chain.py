"""Joins what the stages left behind into `report.html` and `summary.json`.

Both files hold only what the stages' own records say; nothing is computed here but the headline's choice of keys.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.data_prep.storage import write_json

if TYPE_CHECKING:
    from mcjepa.evals.cards import Score
    from mcjepa.evals.models import Weights
    from mcjepa.evals.report.comparison import Evaluated

PACKAGES = (
    "mcjepa",
    "torch",
    "deepspeed",
    "ray",
    "webdataset",
    "decord2",
    "mlflow",
    "opencv-python-headless",
    "numpy",
)
HEADLINES = {
    "flow": {"epe": "epe", "epe_zero": "epe_zero", "epe_dis_medium": "epe_dis", "fl_all": "fl"},
    "probe": {"miou": "probe_miou", "miou_random": "probe_miou_random"},
    "vos": {"jf": "jf", "jf_copy_first": "jf_copy_first", "jf_random": "jf_random"},
}
CURVE_GROUPS = {
    "loss": ("loss", "regression", "reconstruction", "smoothness", "cycle", "vc", "self_supervision", "content"),
    "content": ("invariance", "variance", "covariance"),
    "collapse": ("vc_variance", "vc_covariance", "embedding_std", "flow_px", "visible_share"),
    "optimiser": ("gradient_norm", "lr_encoder", "lr_estimator"),
    "speed": ("seconds_per_step", "data_wait_share"),
}

SUMMARY, REPORT = "summary.json", "report.html"


@dataclass(frozen=True)
class Chain:
    """The chain of stages behind weights and what they recorded; empty where a stage is not there or not theirs."""

    name: str
    """Of the recipe."""
    out: Path
    """Folder of its results."""
    recipe: Path
    """A file that holds all of it."""
    run_recipe: Path | None
    """The same of its training, where that is on this machine."""
    prep: Mapping[str, Any]
    """prep_report.json."""
    run: Mapping[str, Any]
    """run.json."""
    training: Mapping[str, Any]
    """train_report.json."""
    metrics: Sequence[Mapping[str, float]]
    """logs/metrics.jsonl."""
    weights: str
    """Where the weights that were scored lie."""


def write_results(
    chain: Chain, scores: Sequence[Score], weights: Weights, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes OUT/summary.json and OUT/report.html.

    Args:
        chain: the recipe and what its stages recorded.
        scores: what the evaluation gave.
        weights: the weights scored, with their lineage.
        evaluation: MLflow id `eval` and `seconds` of the evaluation.

    Returns:
        The summary.
    """
    summary = summarize(chain, scores, weights, evaluation)
    write_json(chain.out / SUMMARY, summary)
    _write_report(chain, scores, summary)
    return summary


def summarize(chain: Chain, scores: Sequence[Score], weights: Weights, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of the chain as plain data; the first score of a kind gives the headline keys."""
    prep, training = chain.prep, chain.training
    summary: dict[str, Any] = {"version": 1, "recipe": chain.name}
    for score in scores:
        for name, key in HEADLINES.get(score.name.split("/")[0], {}).items():
            if name in score.metrics:
                summary.setdefault(key, _finite(score.metrics[name]))
    named = {name: record["dataset_id"] for name, record in prep.get("datasets", {}).items()}
    seen = weights.lineage.get("dataset_ids", [])
    ids = named | {found[:8]: found for found in sorted(set(seen) - set(named.values()))}
    stages = {"prep": prep.get("seconds"), "train": training.get("seconds"), "eval": evaluation["seconds"]}
    summary |= {
        "dataset_ids": ids,
        "dataset_id": combined_id(ids.values()) if ids else None,
        "datasets": prep.get("datasets", {}),
        "quarantined": prep.get("quarantined", []),
        "run_ids": {"prep": prep.get("run_id"), "train": weights.lineage.get("run_id"), "eval": evaluation["eval"]},
        "steps": weights.lineage.get("step", training.get("steps")),
        "bad_steps": training.get("bad_steps"),
        "weights": chain.weights,
        "weights_digest": weights.digest,
        "scores": {s.name: {k: _finite(v) for k, v in s.metrics.items()} for s in scores},
        "stage_seconds": stages,
        "seconds": round(sum(value for value in stages.values() if value), 1),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": _versions(),
    }
    return summary


def combined_id(dataset_ids: Any) -> str:
    """One digest of several datasets: sha256 over their sorted ids."""
    return hashlib.sha256("\n".join(sorted(dataset_ids)).encode()).hexdigest()


def _write_report(chain: Chain, scores: Sequence[Score], summary: Mapping[str, Any]) -> None:
    from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, headline_tiles
    from mcjepa.evals.report.page import write_report

    runs = summary["run_ids"]
    lineage = [("dataset id", summary["dataset_id"])] if summary["dataset_id"] else []
    lineage += [(f"dataset {name}", value) for name, value in summary["dataset_ids"].items()]
    lineage += [(f"MLflow run of {stage}", value) for stage, value in runs.items() if value]
    lineage += [("weights sha256", summary["weights_digest"]), ("weights", summary["weights"])]
    content = ReportContent(
        title=f"mcjepa: {chain.name}",
        summary=_sentence(summary),
        tiles=headline_tiles(scores),
        curves=_curves(chain.metrics),
        scores=tuple(scores),
        evaluations=_evaluations(chain.out / "eval"),
        datasets=tuple(
            DatasetSummary(
                name=name,
                dataset_id=record["dataset_id"],
                counts={k: v for k, v in record.items() if k not in ("dataset_id", "name")},
            )
            for name, record in chain.prep.get("datasets", {}).items()
        ),
        quarantined=tuple(QuarantinedInput(**record) for record in chain.prep.get("quarantined", [])),
        lineage=tuple((name, str(value)) for name, value in lineage),
        versions=tuple(summary["versions"].items()),
        commands=commands_again(chain, str(summary["weights"])),
    )
    write_report(chain.out / REPORT, content)


def _sentence(summary: Mapping[str, Any]) -> str:
    """What was done, as far as it is recorded."""
    trained = summary["stage_seconds"]["train"]
    steps = "" if summary["steps"] is None else f"{summary['steps']} steps" + (f" in {trained} s" if trained else "")
    whole = f"what is recorded of the chain took {summary['seconds']} s on {summary['machine']['cores']} CPU cores."
    return f"{steps}; {whole}" if steps else whole.capitalize()


def _evaluations(folder: Path) -> tuple[Evaluated, ...]:
    """All evaluations of the recipe's run, in the order of their steps."""
    from mcjepa.evals.cards import SCORES_NAME, read_scores
    from mcjepa.evals.report.comparison import Evaluated

    places = sorted(path.parent for path in folder.glob(f"*/{SCORES_NAME}"))
    return tuple(Evaluated(label=place.name, scores=tuple(read_scores(place))) for place in places)


def commands_again(chain: Chain, weights: str) -> tuple[tuple[str, str], ...]:
    """What is done, and the command that does the same again: each names a file with the whole resolved recipe.

    Args:
        chain: of the stages.
        weights: the folder that was scored.
    """
    recipe, trained = str(chain.recipe), str(chain.run_recipe or chain.recipe)
    fetched = "://" in weights  # from the recipe's own run
    ranks = str(chain.run.get("world_size", 1))
    return (
        ("from this folder", shlex.join(["cd", os.getcwd()])),
        ("build the datasets", shlex.join(["mcjepa", "prep", "run", recipe])),
        ("train", shlex.join(["mcjepa", "train", trained, "--ranks", ranks])),
        ("evaluate", shlex.join(["mcjepa", "eval", "all", recipe, *([] if fetched else ["--weights", weights])])),
        ("open the records", shlex.join(["mcjepa", "ui", recipe])),
    )


def _curves(records: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for group, names in CURVE_GROUPS.items():
        for name in names:
            points = [(float(r["step"]), float(r[name])) for r in records if name in r]
            if points:
                curves[f"{group}/{name}"] = points
    return curves


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

"""Joins what the stages left behind into `report.html` and `summary.json`.

Reads: PREP_ROOT/prep_report.json, RUN/train_report.json, RUN/run.json, RUN/logs/metrics.jsonl, the eval stage's
scores. Both files hold only what those say; nothing is computed here but the headline's choice of keys.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.recipe.recipe import Recipe

if TYPE_CHECKING:
    from mcjepa.evals.cards import Score
    from mcjepa.evals.report.comparison import Evaluated
    from mcjepa.evals.subject import Weights

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
    "flow": {"epe": "epe", "epe_zero": "epe_zero", "epe_dis_medium": "epe_dis", "fl": "fl"},
    "probe": {"miou": "probe_miou", "miou_random": "probe_miou_random"},
    "vos": {"jf": "jf", "jf_copy_first": "jf_copy_first"},
}
CURVE_GROUPS = {
    "loss": ("loss", "regression", "reconstruction", "smoothness", "cycle", "vc", "content"),
    "content": ("invariance", "variance", "covariance"),
    "collapse": ("vc_variance", "vc_covariance", "embedding_std", "flow_px", "visible_share"),
    "optimiser": ("gradient_norm", "lr_encoder", "lr_estimator"),
    "speed": ("seconds_per_step", "data_wait_share"),
}


def write_results(
    recipe: Recipe, scores: Sequence[Score], weights: Weights, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes OUT/summary.json and OUT/report.html.

    Args:
        recipe: the recipe of the chain.
        scores: what the evaluation gave.
        weights: the weights scored, with their lineage.
        evaluation: MLflow id `eval` and `seconds` of the evaluation.

    Returns:
        The summary.
    """
    from mcjepa.pipeline.cli.evaluate import write_json

    out = Path(recipe.out)
    prep = _read(Path(recipe.prep.root) / "prep_report.json") if recipe.prep else {}
    run = _read(Path(recipe.train.run) / "run.json") if recipe.train else {}
    training = _read(Path(recipe.train.run) / "train_report.json") if recipe.train else {}
    summary = summarize(recipe, scores, weights, prep, run, training, evaluation)
    write_json(out / "summary.json", summary)
    _write_report(recipe, scores, summary, prep)
    return summary


def summarize(
    recipe: Recipe,
    scores: Sequence[Score],
    weights: Weights,
    prep: Mapping[str, Any],
    run: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Every number of the chain as plain data; the first score of a kind gives the headline keys."""
    summary: dict[str, Any] = {"version": 1, "recipe": recipe.name}
    for score in scores:
        for name, key in HEADLINES.get(score.name.split("/")[0], {}).items():
            if name in score.metrics:
                summary.setdefault(key, _finite(score.metrics[name]))
    ids = {name: record["dataset_id"] for name, record in prep.get("datasets", {}).items()}
    stages = {"prep": prep.get("seconds"), "train": training.get("seconds"), "eval": evaluation["seconds"]}
    summary |= {
        "dataset_ids": ids,
        "dataset_id": combined_id(ids.values()),
        "datasets": prep.get("datasets", {}),
        "quarantined": prep.get("quarantined", []),
        "run_ids": {"prep": prep.get("run_id"), "train": run.get("run_id"), "eval": evaluation["eval"]},
        "steps": training.get("steps"),
        "bad_steps": training.get("bad_steps"),
        "weights": str(weights.folder),
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


def _write_report(recipe: Recipe, scores: Sequence[Score], summary: Mapping[str, Any], prep: Mapping[str, Any]) -> None:
    from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, headline_tiles
    from mcjepa.evals.report.page import write_report

    runs = summary["run_ids"]
    lineage = [("dataset id", summary["dataset_id"])]
    lineage += [(f"dataset {name}", value) for name, value in summary["dataset_ids"].items()]
    lineage += [(f"MLflow run of {stage}", value) for stage, value in runs.items() if value]
    lineage += [("weights sha256", summary["weights_digest"]), ("weights", summary["weights"])]
    content = ReportContent(
        title=f"mcjepa: {recipe.name}",
        summary=(
            f"{summary['steps']} steps in {summary['stage_seconds']['train']} s; the whole chain took "
            f"{summary['seconds']} s on {summary['machine']['cores']} CPU cores."
        ),
        tiles=headline_tiles(scores),
        curves=_curves(Path(recipe.train.run) / "logs" / "metrics.jsonl") if recipe.train else {},
        scores=tuple(scores),
        evaluations=_evaluations(Path(recipe.out) / "eval"),
        datasets=tuple(
            DatasetSummary(
                name=name,
                dataset_id=record["dataset_id"],
                counts={k: v for k, v in record.items() if k not in ("dataset_id", "name")},
            )
            for name, record in prep.get("datasets", {}).items()
        ),
        quarantined=tuple(QuarantinedInput(**record) for record in prep.get("quarantined", [])),
        lineage=tuple((name, str(value)) for name, value in lineage),
        versions=tuple(summary["versions"].items()),
        commands=(
            ("build the datasets", f"mcjepa prep run {recipe.name}"),
            ("train", f"mcjepa train {recipe.name}"),
            ("evaluate", f"mcjepa eval all {recipe.name}"),
            ("open the records", tracking_command(recipe)),
        ),
    )
    write_report(Path(recipe.out) / "report.html", content)


def _evaluations(folder: Path) -> tuple[Evaluated, ...]:
    """All evaluations of the recipe's run, in the order of their steps."""
    from mcjepa.evals.cards import SCORES_NAME, read_scores
    from mcjepa.evals.report.comparison import Evaluated

    places = sorted(path.parent for path in folder.glob(f"*/{SCORES_NAME}"))
    return tuple(Evaluated(label=place.name, scores=tuple(read_scores(place))) for place in places)


def tracking_command(recipe: Recipe) -> str:
    """The command that shows the runs in MLflow's interface."""
    return (
        "MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "
        f"mlflow server --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri {recipe.tracking.uri}"
    )


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    from mcjepa.pipeline.monitor.meters import read_records

    records = read_records(path)
    curves: dict[str, list[tuple[float, float]]] = {}
    for group, names in CURVE_GROUPS.items():
        for name in names:
            points = [(float(r["step"]), float(r[name])) for r in records if name in r]
            if points:
                curves[f"{group}/{name}"] = points
    return curves


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


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

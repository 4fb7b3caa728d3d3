"""What becomes of scores: a run of MLflow below the training's, made once, and a page beside one command's scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.data_prep.storage import write_json
from mcjepa.pipeline.tracking import TrackingConfig

if TYPE_CHECKING:
    from mcjepa.evals.cards import Card, Score

RECORD = "mlflow.json"


def record_scores(
    place: TrackingConfig,
    name: str,
    settings: Mapping[str, Any],
    scores: Sequence[Score],
    out: Path,
    recipe: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> str:
    """Logs the scores of a folder to MLflow, unless OUT/mlflow.json says that it has these; returns the run's id.

    Weights, training run and datasets are those of the first score's card; the run names the recipe, if there is one.
    `began` is when the scoring began, Unix time, s.

    Raises:
        UsageError: the tracking location cannot be used.
    """
    from mcjepa.evals.cards import SCORES_NAME, stored_key
    from mcjepa.model.pretrained import file_digest

    digest = file_digest(out / SCORES_NAME)
    key = stored_key(out) or digest
    path = out / RECORD
    logged = json.loads(path.read_bytes()) if path.is_file() else {}
    if logged.get("key") == key and logged.get("scores") == digest and logged.get("uri") == place.uri:
        return str(logged["run_id"])
    from mcjepa.pipeline.tracking import Tracker, find_tagged, origin_tags

    tracker = Tracker(
        place.uri,
        place.experiment,
        place.artifacts,
        run_name=f"eval {name}",
        run_id=find_tagged(place.uri, place.experiment, "mcjepa.eval_key", key),
        tags=origin_tags("eval", recipe or {"name": ""}) | _tags(scores, key),
        began=began,
    )
    status = "FAILED"
    try:
        tracker.params(settings, "eval.")
        for score in scores:
            values = {f"{score.name}/{metric}": value for metric, value in score.metrics.items()}
            tracker.metrics(values, int(score.card.lineage.get("step", 0)))
        tracker.datasets([_dataset(score.card) for score in scores])
        tracker.artifact(out, "eval")
        for weights in sorted({score.card.weights_digest for score in scores} - {""}):
            tracker.tag_models(weights, _first_metrics(one for one in scores if one.card.weights_digest == weights))
        status = "FINISHED"
    finally:
        tracker.end(status)
    write_json(path, {"key": key, "scores": digest, "uri": place.uri, "run_id": tracker.run_id})
    return tracker.run_id


def _first_metrics(scores: Iterable[Score]) -> dict[str, str]:
    """The metric that each score is known by, for the versions of models that were scored."""
    firsts = ((score.name, *next(iter(score.metrics.items()))) for score in scores if score.metrics)
    return {f"{name}/{metric}": f"{value:.4g}" for name, metric, value in firsts}


def _dataset(card: Card) -> dict[str, str]:
    """The set that was scored as an input of the run; its id is a digest of what the card says of it."""
    named = {"set": card.data_set, "split": card.split, "items": f"{card.frames} {card.unit}"}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    return {"name": f"{card.data_set} {card.split}", "dataset_id": digest, "location": card.root, "context": "scored"}


def _tags(scores: Sequence[Score], key: str) -> dict[str, str]:
    from mcjepa.pipeline.tracking import dataset_tag

    card = scores[0].card if scores else None
    lineage = card.lineage if card else {}
    train_run = str(lineage.get("run_id", ""))
    tags = {
        "mcjepa.stage": "eval",
        "mcjepa.weights_digest": card.weights_digest if card else "",
        "mcjepa.eval_key": key,
        "mcjepa.train_run": train_run,
        "mcjepa.dataset_ids": dataset_tag(lineage.get("dataset_ids", [])),
    }
    return tags | ({"mlflow.parentRunId": train_run} if train_run else {})


def publish(scores: Sequence[Score], out: Path, kind: str, named: str, place: TrackingConfig | None) -> None:
    """The page OUT/report.html of scores without a recipe and, where MLflow is named, their run there.

    Args:
        scores: of one command.
        out: its folder, with scores.json.
        kind: of the benchmark.
        named: what was scored.
        place: where MLflow is; None: it is not told.
    """
    from mcjepa.evals.report.comparison import Evaluated
    from mcjepa.evals.report.content import ReportContent, headline_tiles
    from mcjepa.evals.report.page import write_report

    content = ReportContent(
        title=f"mcjepa: {', '.join(score.name for score in scores)}",
        summary=f"Scores of {named}.",
        tiles=headline_tiles(scores),
        scores=tuple(scores),
        evaluations=(Evaluated(label=named, scores=tuple(scores)),),
    )
    write_report(out / "report.html", content)
    if place:
        settings = {score.name: dict(score.card.config) for score in scores}
        record_scores(place, f"{kind} {named}", settings, scores, out)

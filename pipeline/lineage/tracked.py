"""A run by its address in MLflow, `runs:/ID`: a training's own folder where it still is, else what MLflow has of it.

A training's recipe, those of its earlier starts and run.json are artifacts of its run, as scores.json is of an
evaluation's: brought to a folder, they are read as a run's or scores that lie there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.lineage.artifact import SCORES, WRITTEN, read_json
from mcjepa.pipeline.run.folder import RECIPE, RUN_RECORD
from mcjepa.pipeline.run.recipes import RECIPES
from mcjepa.pipeline.tracking.reading import RecordedRun, fetch_run

SCHEME = "runs:/"
EVAL = "eval"
"""Where a run of an evaluation has its files."""


class Brought(NamedTuple):
    """What can be read in the place of an address."""

    location: str
    beside: tuple[str, ...]
    """Where its parents may be."""
    steps: str
    """Of a training that MLflow alone knows: how far it came."""


def bring(address: str, uri: str, folder: Path) -> Brought:
    """Something that `explain` can read for `runs:/ID`.

    Args:
        address: of the run.
        uri: where MLflow is.
        folder: an empty one, for what is brought.

    Raises:
        UsageError: no tracking location, no such run, or one of another kind.
    """
    if not uri:
        raise UsageError(
            f"{address} is a run of MLflow, and no tracking location is named; expected --tracking URI, such as "
            "sqlite:///outputs/quickstart/mlflow.db, or MLFLOW_TRACKING_URI"
        )
    run_id = address.removeprefix(SCHEME).split("/")[0]
    wanted = (RECIPE, RUN_RECORD, f"{RECIPES}/*", f"{EVAL}/{SCORES}", f"{EVAL}/{WRITTEN}")
    found = fetch_run(uri, run_id, wanted, folder)
    stage = found.tags.get("mcjepa.stage", "none")
    if stage == "train":
        if _is_there(found.run, run_id):
            return Brought(found.run, (), "")
        step = found.tags.get("mcjepa.checkpoint", "0").split()[0]
        return Brought(str(folder), (), f"{step}, {found.status.lower()}")
    scores = folder / EVAL / SCORES
    if stage == "eval" and scores.is_file():
        return _scores(scores, found, uri, folder)
    places = ", ".join(json.loads(source).get("uri", "") for source in found.inputs) or "unknown"
    raise UsageError(
        f"{address} is a run of stage {stage}, expected a training or an evaluation; name one of its datasets: {places}"
    )


def _is_there(run: str, run_id: str) -> bool:
    """Whether a training's folder still is its own."""
    if not run or ("://" not in run and not Path(run).is_dir()):
        return False
    store = open_store(run)
    return store.exists(RUN_RECORD) and read_json(store, RUN_RECORD).get("run_id") == run_id


def _scores(path: Path, found: RecordedRun, uri: str, folder: Path) -> Brought:
    """Scores in a folder that is called as their weights are, beside which the training's weights are sought."""
    card: dict[str, Any] = next((score["card"] for score in json.loads(path.read_bytes())["scores"]), {})
    named = folder / "scores" / f"step-{int(card.get('lineage', {}).get('step', 0)):09d}"
    named.parent.mkdir()
    path.parent.rename(named)
    try:
        run = fetch_run(uri, found.tags.get("mcjepa.train_run", ""), (), folder).run
    except UsageError:  # of weights without a run, or with one that is recorded elsewhere
        run = ""
    return Brought(str(named), (run,) if run else (), "")

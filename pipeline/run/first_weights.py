"""What a run's weights were before its first step: random, or those that `train.init_from` names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from mcjepa.model.initialize import initialize
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import WeightsError
from mcjepa.pipeline.errors import UsageError

log = logging.getLogger(__name__)


def first_weights(model: MCJEPA, init_from: str, run: Path, *, continued: bool) -> dict[str, str] | None:
    """Loads weights into the model of a new run; every rank calls it before the engine is built.

    Args:
        model: changed in place.
        init_from: `train.init_from`.
        run: the run's local folder.
        continued: whether the run goes on from a checkpoint; then nothing is read.

    Returns:
        File, layout and sha256 for run.json and the weights' lineage, those of its start for a continued run (on
        rank 0's node); None for random weights.

    Raises:
        UsageError: the weights are absent, damaged or do not fit.
    """
    if continued:
        return read_run(run).get("init_from")
    if not init_from:
        return None
    try:
        found = initialize(model, init_from)
    except WeightsError as error:
        raise UsageError(f"train.init_from: {error}") from error
    log.info("starting from %s", found)
    return {"file": str(found.file), "layout": found.layout, "sha256": found.digest}


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json of a run folder holds; nothing where there is none."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record

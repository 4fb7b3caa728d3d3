"""Scores on disk: OUT/scores.json, OUT/SCORE/items.csv, and the pictures that they name.

scores.json holds {"version": 1, "key": …, "scores": [...]}; paths in it are relative to it. `key` says what was asked:
the same weights evaluated by the same settings have the same, so that a restarted evaluation knows what it has done.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.cards import Card, Picture, Score
from mcjepa.evals.settings import EvalConfig

SCORES_VERSION = 1
SCORES_NAME = "scores.json"
log = logging.getLogger(__name__)


def evaluation_key(weights_digest: str, lineage: Mapping[str, Any], config: EvalConfig) -> str:
    """sha256 over the weights' digest and lineage, and every setting of the evaluation but device and threads."""
    asked = dataclasses.asdict(config)
    for name in ("device", "threads"):
        del asked[name]
    return hashlib.sha256(json.dumps([weights_digest, dict(lineage), asked], sort_keys=True).encode()).hexdigest()


def write_scores(scores: Sequence[Score], out: Path, key: str = "") -> None:
    """Writes OUT/SCORE/items.csv of every score, then OUT/scores.json at once."""
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    for score in scores:
        plain = score.to_dict()
        for picture in plain["pictures"]:
            picture["path"] = str(Path(picture["path"]).relative_to(out))
        listed.append(plain)
        if score.table:
            folder = out / score.name
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / "items.csv", _csv_bytes(score))
    document = {"version": SCORES_VERSION, "key": key, "scores": listed}
    atomic_write(out / SCORES_NAME, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
    log.info("%d scores are in %s", len(scores), out / SCORES_NAME)


def _csv_bytes(score: Score) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(score.table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(score.table)
    return text.getvalue().encode()


def stored_key(out: Path) -> str:
    """The key of the scores in a folder; empty where there are none that can be read."""
    try:
        return str(json.loads((out / SCORES_NAME).read_bytes()).get("key", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def read_scores(out: Path) -> list[Score]:
    """The scores of a folder, in their order; a value that was not finite is NaN again.

    Raises:
        DataError: there are none, they are damaged, or of another version.
    """
    path = out / SCORES_NAME
    if not path.is_file():
        raise DataError(f"no {SCORES_NAME} in {out}, expected an evaluation's folder; run `mcjepa eval` with --out")
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != SCORES_VERSION:
            raise DataError(f"{path} has version {document['version']}, expected {SCORES_VERSION}; evaluate again")
        return [_score(plain, out) for plain in document["scores"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); evaluate again") from error


def _score(plain: Mapping[str, Any], out: Path) -> Score:
    card: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain["card"].items()}
    del card["complete"]  # follows from `failed`
    return Score(
        name=plain["name"],
        metrics={name: math.nan if value is None else float(value) for name, value in plain["metrics"].items()},
        card=Card(**card),
        rivals=tuple(plain["rivals"]),
        table=tuple(plain["table"]),
        pictures=tuple(_picture(picture, out) for picture in plain["pictures"]),
    )


def _picture(plain: Mapping[str, Any], out: Path) -> Picture:
    legend = tuple((name, colour) for name, colour in plain["legend"])
    return Picture(
        caption=plain["caption"],
        path=out / plain["path"],
        kind=plain["kind"],
        columns=tuple(plain["columns"]),
        legend=legend,
    )

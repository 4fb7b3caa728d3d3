"""The card beside every score: the protocol, the weights and the data that make the number comparable.

On disk a score is an entry of OUT/scores.json, OUT/SCORE/items.csv and the pictures that it names. scores.json holds
{"version": 1, "key": …, "scores": [...]}; paths in it are relative to it. `key` says what was asked: the same weights
evaluated by the same settings have the same, so that a restarted evaluation knows what it has done.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write, write_json
from mcjepa.evals.measures import SET_NAMES, present_name
from mcjepa.pipeline.tracking.lineage import git_state, made_by

MODEL, ESTIMATES, BASELINES = "model", "estimates", "baselines"
"""What a card's `source` says."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a reader must know before comparing a score with another one."""

    data_set: str
    """Name of the evaluation set."""

    split: str
    """Part of the set that was scored."""

    root: str
    """Folder it was read from."""

    frames: int
    """Items that entered the score: pairs, images or video frames (see `unit`)."""

    unit: str = "frames"
    """What `frames` counts."""

    failed: tuple[str, ...] = ()
    """Items that could not be scored, each "name: reason"; with any, the score is incomplete."""

    resolution: str
    """Image sizes that were scored, and how images were resized or padded for the model."""

    masks: str
    """Which pixels count."""

    head: str = "none"
    """What was trained on top of the weights, if anything."""

    schedule: str = "none"
    """How that head was trained."""

    aggregation: str
    """How the items' values become one number."""

    seeds: tuple[int, ...] = ()
    """Random seeds."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """The evaluation's settings, every field."""

    source: str = MODEL
    """What was scored: `model`, `estimates` (files of any method) or `baselines` (nothing but those)."""

    weights_digest: str = ""
    """sha256 of the weights file."""

    model: str = ""
    """The model and its size."""

    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: run, step, dataset ids; the weights folder's own record."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that the number may depend on."""

    @property
    def complete(self) -> bool:
        """False if any item is missing from the score."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and MLflow; `complete` is spelled out."""
        return asdict(self) | {"complete": self.complete}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture file of a score."""

    caption: str
    """One line under the picture."""

    path: Path
    """PNG file."""

    kind: str
    """flow, features, segmentation or vos: the report groups by it."""

    columns: tuple[str, ...] = ()
    """Headings of the panels from left to right."""

    legend: tuple[tuple[str, str], ...] = ()
    """(name, colour as #rrggbb) of what the colours stand for."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation's result: numbers, the protocol, the table by item and the pictures."""

    name: str
    """`KIND/SET`, such as flow/sintel-clean; also its folder below the evaluation's."""

    metrics: Mapping[str, float]
    """Metric name to value; baselines' values carry the baseline's name as a suffix (`epe_zero`)."""

    card: Card
    """How the numbers came about."""

    rivals: tuple[str, ...] = ()
    """Suffixes of the baselines' metrics, such as `zero`; the report turns them into columns."""

    table: tuple[Mapping[str, Any], ...] = ()
    """One row an item, all with the same keys."""

    pictures: tuple[Picture, ...] = ()
    """Pictures, in the order to show them."""

    @property
    def undefined(self) -> tuple[str, ...]:
        """Metrics that are no number: nothing was scored, or a model's output is not finite."""
        return tuple(name for name, value in self.metrics.items() if not math.isfinite(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: values that are not finite become None, paths become text."""
        return {
            "name": self.name,
            "metrics": {name: finite_or_none(value) for name, value in self.metrics.items()},
            "card": self.card.to_dict(),
            "rivals": list(self.rivals),
            "table": [{key: finite_or_none(value) for key, value in row.items()} for row in self.table],
            "pictures": [asdict(picture) | {"path": str(picture.path)} for picture in self.pictures],
        }


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number becomes None, anything else stays."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages by distribution name; one that is not installed is left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


SCORES_VERSION = 1
SCORES_NAME = "scores.json"
WRITTEN_NAME = "written.json"
"""Who wrote the scores, where, when and by which code: beside them, as equal scores are equal bytes."""
DATA_STATE = "mcjepa.data_state"
log = logging.getLogger(__name__)


def write_scores(scores: Sequence[Score], out: Path, key: str = "", data: str = "") -> None:
    """Writes OUT/SCORE/items.csv of every score, then OUT/scores.json at once.

    Args:
        scores: of one evaluation.
        out: its folder.
        key: of what was asked.
        data: what the sets' folders looked like, `data_state`; told by OUT/written.json, as copies differ in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    for score in scores:
        plain = score.to_dict()
        for picture in plain["pictures"]:
            picture["path"] = str(Path(picture["path"]).relative_to(out))
        listed.append(plain)
        if score.table:
            folder, head = out / score.name, list(score.table[0])
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / "items.csv", csv_bytes(head, ([row[key] for key in head] for row in score.table)))
    document = {"version": SCORES_VERSION, "key": key, "scores": listed}
    atomic_write(out / SCORES_NAME, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
    write_json(out / WRITTEN_NAME, {**git_state(), **made_by(), DATA_STATE: data})
    log.info("%d scores are in %s", len(scores), out / SCORES_NAME)


def csv_bytes(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue().encode()


def stored_key(out: Path) -> str:
    """The key of the scores in a folder; empty where there are none that can be read."""
    return _stored(out / SCORES_NAME, "key")


def stored_data(out: Path) -> str:
    """What the sets' folders looked like when the scores of a folder were taken; empty where it is not known."""
    return _stored(out / WRITTEN_NAME, DATA_STATE)


def _stored(path: Path, name: str) -> str:
    try:
        return str(json.loads(path.read_bytes()).get(name, ""))
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
    for facts in (card, card["config"]):
        facts |= {name: SET_NAMES.get(facts[name], facts[name]) for name in ("data_set", "set") if name in facts}
    card.setdefault("source", MODEL if card.get("weights_digest") else ESTIMATES)  # older files do not say it
    return Score(
        name=present_name(plain["name"]),
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

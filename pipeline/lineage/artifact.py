"""What lies at a location, as plain facts: a dataset, a run, weights or scores, each read from its own files.

ROOT/manifest.json, inputs.jsonl.gz                      a dataset
RUN/run.json, recipe.yaml, recipes/, train_report.json   a run
FOLDER/model.safetensors, config.json                    weights
FOLDER/scores.json                                       scores
OUT/summary.json                                         a recipe's results: the scores of its newest evaluation
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mcjepa.data_prep.dataset.manifest import DatasetManifest, newest_revision, read_manifest
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store, absolute_location, digest_of, open_store
from mcjepa.evals.measures import present_name
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import CHECKPOINTS, MANIFEST, PART_OF, RECIPE, RUN_RECORD, TRAIN_REPORT
from mcjepa.pipeline.run.recipes import KEPT_RECIPE, RECIPES, changes_of

Kind = Literal["dataset", "run", "weights", "score"]
SCORES, SUMMARY, WRITTEN = "scores.json", "summary.json", "written.json"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
STREAMS = ("pairs", "views")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A recipe of a run, and the first step that it governed."""

    after_step: int
    recipe: dict[str, Any]


@dataclass(kw_only=True)
class Artifact:
    """One link of a chain."""

    kind: Kind
    name: str
    location: str
    identity: str = ""
    """Digest or id; empty where it has none."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is said of it, by name, in order."""
    record: dict[str, Any] = field(default_factory=dict)
    """Its own record: run.json, the lineage of weights, a score's card."""
    starts: list[Start] = field(default_factory=list)
    """Of a run: its recipes in order; the last one is the present one."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of scores: each by the name that it bears today, as scores.json has it."""
    manifest: DatasetManifest | None = None
    """Of a dataset."""
    missing: list[str] = field(default_factory=list)
    """What the chain lacks here."""
    changed: list[str] = field(default_factory=list)
    """What is no longer what it was."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "location": self.location,
            "identity": self.identity,
            **self.facts,
            "missing": self.missing,
            "changed": self.changed,
        }


def parent(location: str, levels: int = 1) -> str:
    """The location above.

    >>> parent("s3://bucket/out/run/weights/step-000000004", 2)
    's3://bucket/out/run'
    """
    return location.rstrip("/").rsplit("/", levels)[0]


def find_artifact(word: str) -> tuple[Kind, str]:
    """What lies at a location, and where exactly: a file stands for its folder, a recipe's results for their scores.

    Raises:
        UsageError: nothing that is known.
    """
    if word.isidentifier():  # perhaps the name of weights that come with the package; torch is imported for such alone
        from mcjepa.model.pretrained import shipped_names, weights_folder

        if word in shipped_names():
            return "weights", str(weights_folder(word))
    location = absolute_location(word).rstrip("/")
    if location.rsplit("/", 1)[-1] in (SCORES, SUMMARY, WEIGHTS_FILE, CONFIG_FILE, RUN_RECORD, MANIFEST):
        location = parent(location)
    if "://" not in location and not Path(location).is_dir():
        raise UsageError(f"no folder {word}; expected a run, weights, scores or a dataset; correct the path")
    store = open_store(location)
    if store.exists(SCORES):
        return "score", location
    if store.exists(WEIGHTS_FILE):
        return "weights", location
    if store.exists(RUN_RECORD):
        return "run", location
    if store.exists(SUMMARY):
        weights = str(read_json(store, SUMMARY).get("weights", ""))
        scored = f"{location}/eval/{weights.rstrip('/').rsplit('/', 1)[-1]}"
        if open_store(scored).exists(SCORES):
            return "score", scored
    if store.exists(MANIFEST):
        return ("dataset", location) if "dataset_id" in read_json(store, MANIFEST) else ("run", parent(location, 2))
    if store.exists(RECIPE):  # a run that has lost its record
        return "run", location
    raise UsageError(
        f"{word} holds none of {SCORES}, {WEIGHTS_FILE}, {RUN_RECORD} and {MANIFEST}; expected scores, weights, a run "
        "or a dataset; name such a folder or prefix"
    )


def read_artifact(kind: Kind, location: str) -> Artifact:
    """The facts of what lies there.

    Raises:
        DataError: a file of it is absent or damaged.
    """
    readers: dict[Kind, Callable[[str], Artifact]] = {
        "dataset": read_dataset,
        "run": read_run,
        "weights": read_weights,
        "score": read_scores,
    }
    return readers[kind](location)


def read_json(store: Store, key: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(store.read(key))
    except ValueError as error:
        raise DataError(f"{store.location}/{key} is damaged ({error}); expected JSON; write it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{store.location}/{key} holds a {type(content).__name__}; expected an object; write it again")
    return content


def read_dataset(location: str, revision: int = 0, wanted_id: str = "") -> Artifact:
    """A dataset; the revision whose id is wanted, if there is one.

    Raises:
        DataError: it is not published.
    """
    store = open_store(location)
    manifest = read_manifest(store, revision)
    if wanted_id and manifest.dataset_id != wanted_id:
        others = (read_manifest(store, number) for number in range(1, newest_revision(store) + 1))
        manifest = next((other for other in others if other.dataset_id == wanted_id), manifest)
    totals = manifest.totals
    made = [manifest.decoder, manifest.encoder, *(f"{name} {found}" for name, found in manifest.libraries.items())]
    facts = {
        "holds": f"{totals.samples} samples of {totals.inputs} inputs ({totals.quarantined} quarantined, "
        f"{totals.filtered} filtered) in {totals.shards} shards, {totals.bytes / 1e6:.1f} MB",
        "inputs_digest": manifest.inputs_digest,
        "made by": ", ".join(made),
        "revision": manifest.revision,
    }
    return Artifact(
        kind="dataset",
        name=location.rsplit("/", 1)[-1],
        location=location,
        identity=manifest.dataset_id,
        facts=facts,
        manifest=manifest,
    )


def read_run(location: str) -> Artifact:
    """A run; what its files do not say is named as missing.

    Raises:
        DataError: a file of it is damaged.
    """
    store = open_store(location)
    found = Artifact(kind="run", name=location.rsplit("/", 1)[-1], location=location)
    if store.exists(RUN_RECORD):
        found.record = read_json(store, RUN_RECORD)
    else:
        found.missing.append(f"{RUN_RECORD}: which code, datasets and seed")
    found.starts = list(_starts(store))
    present = _read_yaml(store, RECIPE) if store.exists(RECIPE) else None
    if present is None:
        found.missing.append(f"{RECIPE}: with which settings")
    elif not found.starts:  # of a run that kept no others
        found.starts.append(Start(after_step=0, recipe=present))
    elif changes_of(found.starts[-1].recipe, present):  # a start on another machine keeps no recipe of its own
        found.changed.append(f"{RECIPE} is not the recipe that its last start kept")
    record = found.record
    found.identity = str(record.get("run_id") or "")
    report = read_json(store, TRAIN_REPORT) if store.exists(TRAIN_REPORT) else {}
    steps = f"{report['steps']}, finished" if report.get("finished") else report.get("steps", "no word of an end")
    found.facts = {"steps": steps, "code": code_of(record), "written": written_by(record)}
    found.facts |= {name: record[name] for name in ("seed", "world_size", "precision", "zero_stage") if name in record}
    if record.get("init_from"):
        found.facts["began with"] = f"{record['init_from']['file']}, sha256 {record['init_from']['sha256']}"
    return found


def _starts(store: Store) -> Iterator[Start]:
    """The recipes that the run kept, in the order of its starts."""
    for entry in store.files(f"{RECIPES}/"):
        match = KEPT_RECIPE.fullmatch(entry.key.removeprefix(f"{RECIPES}/"))
        if match:
            yield Start(after_step=int(match.group(2)), recipe=_read_yaml(store, entry.key))


def _read_yaml(store: Store, key: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(store.read(key))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{store.location}/{key} is damaged ({type(error).__name__}); expected a recipe") from error
    return content if isinstance(content, dict) else {}


def sources_of(run: Artifact) -> Iterator[tuple[str, str, int, str]]:
    """Stream, location, revision (0: the newest) and id of every dataset that a run read, ids as it wrote them."""
    stream = run.starts[-1].recipe.get("train", {}).get("stream", {}) if run.starts else {}
    order = run.record.get("order", {})
    for name in STREAMS:
        sources, ids = stream.get(name) or [], [str(each.get("dataset_id", "")) for each in order.get(name, [])]
        for place, source in enumerate(sources):
            known = ids[place] if place < len(ids) else ""
            yield name, str(source.get("location", "")), int(source.get("revision") or 0), known
        for known in ids[len(sources) :]:
            yield name, "", 0, known


def saved_digest(run: str, step: int) -> str:
    """The sha256 that a run's checkpoint says its weights of a step have; empty where it is gone."""
    store, key = open_store(run), f"{CHECKPOINTS}/step-{step:09d}/{MANIFEST}"
    return str(read_json(store, key).get("weights_sha256", "")) if store.exists(key) else ""


def whole_digest(weights: Artifact) -> str:
    """The sha256 of the weights as their run wrote them, of which they may be a part."""
    return str(weights.record.get(PART_OF) or weights.identity)


def read_weights(location: str) -> Artifact:
    """A folder of weights, hashed.

    Raises:
        DataError: it lacks its config, or that is damaged.
    """
    store = open_store(location)
    config = read_json(store, CONFIG_FILE)
    lineage = config.get("lineage", {})
    found = Artifact(kind="weights", name=location.rsplit("/", 1)[-1], location=location, record=lineage)
    found.identity = digest_of(store, WEIGHTS_FILE)
    found.facts = {"step": lineage.get("step", "unknown"), "of run": lineage.get("run", "unknown")}
    found.facts |= {"MLflow run": lineage["run_id"]} if lineage.get("run_id") else {}
    found.facts |= {"holds": f"the encoder alone, of the weights {lineage[PART_OF]}"} if lineage.get(PART_OF) else {}
    if not lineage:
        found.missing.append("its lineage: of which run and step")
    return found


def read_scores(location: str) -> Artifact:
    """A folder of scores.

    Raises:
        DataError: scores.json is damaged.
    """
    store = open_store(location)
    document = read_json(store, SCORES)
    try:
        scores = {present_name(str(score["name"])): score for score in document["scores"]}
        cards = {name: score["card"] for name, score in scores.items()}
        digests = sorted({str(card.get("weights_digest", "")) for card in cards.values()} - {""})
    except (KeyError, TypeError) as error:
        raise DataError(f"{location}/{SCORES} is damaged ({error}); expected scores; evaluate again") from error
    found = Artifact(kind="score", name=location.rsplit("/", 1)[-1], location=location, scores=scores)
    found.identity = str(document.get("key", ""))
    found.record = dict(next(iter(cards.values()), {}))
    written = read_json(store, WRITTEN) if store.exists(WRITTEN) else {}
    found.facts = {"code": code_of(written), "written": written_by(written), "weights": ", ".join(digests) or "none"}
    found.facts |= {name: _main_number(score) for name, score in scores.items()}
    for name, card in cards.items():
        if card.get("failed"):
            found.missing.append(f"{name}: {len(card['failed'])} items could not be scored")
    return found


def _main_number(score: Mapping[str, Any]) -> str:
    metrics = list(score["metrics"].items())[:1]
    text = ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics
    )
    return (
        f"{text} over {score['card'].get('frames')} {score['card'].get('unit', 'items')} of {score['card']['data_set']}"
    )


def code_of(record: Mapping[str, Any]) -> str:
    """Which code, in words."""
    commit, change = str(record.get("mcjepa.git_sha", "")), str(record.get("mcjepa.git_diff", ""))
    if commit in ("", "unknown"):
        return "unknown"
    return f"{commit[:12]}{f', changed by {change[:12]}' if change and change != 'unknown' else ''}"


def written_by(record: Mapping[str, Any]) -> str:
    """When, where and by whom, in words."""
    parts = [str(record.get(f"mcjepa.{name}", "")) for name in ("written", "user", "host")]
    if not any(parts):
        return "unknown"
    when, who, where = (part or "unknown" for part in parts)
    return f"{when} by {who} on {where}"

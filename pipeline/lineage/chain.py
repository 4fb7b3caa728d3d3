"""The chain from inputs to a score: every link that can be found, checked against what the next one says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mcjepa.data_prep.dataset.inputs import InputRecord, read_inputs
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import shard_key
from mcjepa.data_prep.storage import absolute_location, open_store
from mcjepa.pipeline.lineage.artifact import (
    SUMMARY,
    WEIGHTS_FILE,
    Artifact,
    find_artifact,
    parent,
    read_artifact,
    read_dataset,
    read_json,
    read_run,
    read_weights,
    saved_digest,
    sources_of,
    whole_digest,
)
from mcjepa.pipeline.lineage.recipes import changes
from mcjepa.pipeline.lineage.tracked import SCHEME, bring
from mcjepa.pipeline.run.folder import RECIPE, RUN_RECORD, WEIGHTS

MOST_INPUTS = 10_000
"""Inputs that are looked at, evenly spaced over the list."""
MOST_NAMED = 3


def explain(word: str, beside: Sequence[str] = (), tracking: str = "") -> list[Artifact]:
    """The chain of what lies at a location, inputs first.

    Args:
        word: a run, weights, scores, a dataset, or a recipe's results; a folder or an s3 prefix. `runs:/ID` is a
            training or an evaluation in MLflow.
        beside: further locations where its parents may be.
        tracking: where MLflow is, for `runs:/ID`.

    Raises:
        UsageError: there is nothing that is known.
        DataError: a file of it is damaged.
    """
    if not word.startswith(SCHEME):
        return _chain(word, beside)
    with tempfile.TemporaryDirectory(prefix="mcjepa-lineage-") as folder:
        brought = bring(word, tracking, Path(folder))
        chain = _chain(brought.location, [*beside, *brought.beside])
    target = chain[-1]
    if target.location.startswith(folder):
        target.name, target.location = word.removeprefix(SCHEME), f"{word} at {tracking}"
        target.facts |= {"steps": brought.steps} if brought.steps else {}
    return chain


def _chain(word: str, beside: Sequence[str]) -> list[Artifact]:
    kind, location = find_artifact(word)
    target = read_artifact(kind, location)
    places = [absolute_location(place).rstrip("/") for place in beside]
    chain = [target]
    if kind == "score" and target.record.get("weights_digest"):
        chain += _weights_of(target, places)
    if chain[-1].kind == "weights":
        chain += _run_of(chain[-1], places)
    if chain[-1].kind == "run":
        chain += _datasets_of(chain[-1])
    for link in chain:
        if link.kind == "dataset":
            _check_dataset(link)
        elif link.kind == "run":
            link.facts |= {f"changed {key}": value for key, value in changes(link.starts).items()}
    return chain[::-1]


def _weights_of(score: Artifact, places: Sequence[str]) -> list[Artifact]:
    """The weights that were scored: by their digest, in the places where they usually lie."""
    wanted, name = str(score.record["weights_digest"]), score.name
    out = parent(score.location, 2)
    candidates = [*places, *(f"{place}/weights/{name}" for place in places), f"{out}/run/weights/{name}"]
    if _holds(out, SUMMARY):
        candidates.insert(0, str(read_json(open_store(out), SUMMARY).get("weights", "")))
    others = []
    for place in dict.fromkeys(filter(None, candidates)):
        if _holds(place, WEIGHTS_FILE):
            found = read_weights(absolute_location(place))
            if found.identity == wanted:
                return [found]
            others.append(found)
    alike = next((found for found in others if found.name == name), None)
    if alike is not None:
        alike.changed.append(f"sha256 is {alike.identity}; the score is of {wanted}")
        return [alike]
    score.missing.append(f"the weights {wanted}: not found beside the scores; name their folder with --beside")
    return []


def _run_of(weights: Artifact, places: Sequence[str]) -> list[Artifact]:
    """The run that wrote weights: the folder they lie in, or one of the places."""
    lineage = weights.record
    there = (
        place for place in (parent(weights.location, 2), *places) if _holds(place, RUN_RECORD) or _holds(place, RECIPE)
    )
    runs = [read_run(place) for place in dict.fromkeys(there)]
    known = str(lineage.get("run_id") or "")
    run = next((run for run in runs if known and run.identity == known), None)
    run = run or next((run for run in runs if _is_named(run, weights)), None)
    if run is not None:
        expected, found = _saved(run, weights), whole_digest(weights)
        if expected and expected != found:
            what = "sha256 is" if found == weights.identity else "they are a part of weights of sha256"
            weights.changed.append(f"{what} {found}; the run's checkpoint of that step says {expected}")
        return [run]
    ids = ", ".join(map(str, lineage.get("dataset_ids", []))) or "unknown"
    weights.missing.append(
        f"the run {lineage.get('run', '')} (MLflow {lineage.get('run_id') or 'unknown'}) that wrote them, of datasets "
        f"{ids}; name its folder with --beside"
    )
    return []


def _is_named(run: Artifact, weights: Artifact) -> bool:
    """Whether weights name a run, and nothing says that they mean another of that name: many runs are called `run`."""
    if run.name != weights.record.get("run"):
        return False
    one_id_is_missing = not (run.identity and weights.record.get("run_id"))
    inside = weights.location == f"{run.location}/{WEIGHTS}/{weights.name}"
    return one_id_is_missing or inside or _saved(run, weights) == whole_digest(weights)


def _saved(run: Artifact, weights: Artifact) -> str:
    """The sha256 that a run's checkpoint says weights of their step have; empty where it does not."""
    step = weights.record.get("step")
    return saved_digest(run.location, step) if isinstance(step, int) else ""


def _datasets_of(run: Artifact) -> list[Artifact]:
    """The datasets that a run read, each once."""
    found: dict[tuple[str, str], Artifact] = {}
    for stream, location, revision, wanted in sources_of(run):
        key = (location, wanted)
        if key in found:
            found[key].facts["read as"] += f", {stream}"
            continue
        if not location:
            run.missing.append(f"the place of dataset {wanted} ({stream})")
            continue
        try:
            dataset = read_dataset(location, revision, wanted)
        except (DataError, OSError) as error:
            run.missing.append(f"dataset {wanted} ({stream}) at {location}: {error}")
            continue
        dataset.facts["read as"] = stream
        if wanted and dataset.identity != wanted:
            dataset.changed.append(f"dataset_id is {dataset.identity}; the run read {wanted}")
        found[key] = dataset
    return list(found.values())[::-1]


def _holds(location: str, key: str) -> bool:
    """Whether a file is there; a folder that is not there holds none."""
    local = "://" not in location
    return (not local or Path(location).is_dir()) and open_store(location).exists(key)


def _check_dataset(dataset: Artifact) -> None:
    """Lengths of all shards against the manifest, and of the inputs against the list of inputs: no byte is read."""
    assert dataset.manifest is not None
    store = open_store(dataset.location)
    there = {entry.key: entry.bytes for entry in store.files("shards/")}
    wrong = []
    for shard in dataset.manifest.shards:
        size = there.get(shard_key(shard.name))
        if size is None:
            dataset.missing.append(f"shard {shard.name}")
        elif size != shard.bytes:
            wrong.append(f"{shard.name} has {size} bytes, expected {shard.bytes}")
    dataset.changed += _shortened(wrong, "shards")
    try:
        records = list(read_inputs(store, dataset.manifest.revision))
    except (DataError, OSError):
        dataset.missing.append("the list of inputs, inputs.jsonl.gz")
        return
    _check_inputs(dataset, records)


def _check_inputs(dataset: Artifact, records: Sequence[InputRecord]) -> None:
    local = [
        record for record in records if "://" not in record.uri and ".tar/" not in record.name and record.bytes >= 0
    ]
    looked = local[:: max(1, -(-len(local) // MOST_INPUTS))]
    absent, other = [], []
    for record in looked:
        path = Path(record.uri)
        if not path.exists():
            absent.append(f"{record.name} at {record.uri}")
        elif path.is_file() and path.stat().st_size != record.bytes:
            other.append(f"{record.name} has {path.stat().st_size} bytes, had {record.bytes}")
    dataset.facts["inputs looked at"] = f"lengths of {len(looked)} of {len(records)}"
    dataset.missing += _shortened(absent, "inputs")
    dataset.changed += _shortened(other, "inputs")


def _shortened(lines: Sequence[str], what: str) -> list[str]:
    """The first of many lines, and how many more there are."""
    rest = len(lines) - MOST_NAMED
    return [*lines[:MOST_NAMED], *([f"and {rest} more {what}"] if rest > 0 else [])]

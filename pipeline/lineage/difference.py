"""What two runs, datasets, weights or scores differ in, and in which order it is likely to matter.

Their chains are laid side by side, link by link. A digest that differs is followed to what it is made of: two datasets
to their inputs and parameters, two runs to the keys of their recipes, two scores to their settings. What only says
where something lies changes no number and comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mcjepa.data_prep.dataset.inputs import InputRecord, read_inputs
from mcjepa.data_prep.dataset.manifest import DatasetManifest
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import open_store
from mcjepa.evals.measures import SET_NAMES
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.lineage.artifact import STREAMS, Artifact, code_of
from mcjepa.pipeline.lineage.chain import explain
from mcjepa.pipeline.lineage.recipes import history
from mcjepa.pipeline.run.recipes import ABSENT, flatten

CATEGORIES = {
    "data": "what the model saw",
    "model": "what its weights mean",
    "objective": "what it was trained for",
    "optimisation": "how it was trained",
    "stream": "in which order and by which views",
    "protocol": "how it was scored",
    "seed": "chance",
    "code": "which code",
    "environment": "numbers may differ in their last digits",
    "conduct": "what a run writes and when; changes no number",
    "place": "where it lies; changes no number",
}
"""Kinds of differences in the order in which they are likely to matter."""
PREFIXES = (
    ("model.loss.", "objective"),
    ("model.", "model"),
    ("train.seed", "seed"),
    ("train.init_from", "data"),
    ("eval.seed", "seed"),
    ("train.terms", "objective"),
    ("train.run", "place"),
    ("train.checkpoint", "conduct"),
    ("train.log_every", "conduct"),
    ("train.meters", "conduct"),
    ("train.pictures", "conduct"),
    ("train.profile", "conduct"),
    ("train.engine", "environment"),
    ("train.stream.cache", "place"),
    ("train.stream.store.cache_dir", "place"),
    ("train.stream.store", "conduct"),
    ("train.stream.prefetch", "conduct"),
    ("train.stream.workers", "conduct"),
    ("train.stream", "stream"),
    ("train.", "optimisation"),
    ("eval.", "protocol"),
    ("prep.", "conduct"),
    ("tracking.", "place"),
    ("out", "place"),
    ("name", "place"),
)
"""Beginnings of a recipe's keys and their kind; the first that fits holds. Data go by their ids, not by these keys."""
MOST_NAMED = 20
LIBRARIES = "library "


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that differs."""

    category: str
    where: str
    """Link of the chain: its kind and name."""
    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.first} | {self.second}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two chains side by side."""

    first: list[Artifact]
    second: list[Artifact]
    differences: list[Difference]
    """The likely ones first."""
    results: list[tuple[str, Any, Any]]
    """Of scores: metric and its two values."""


def compare(first: str, second: str, beside: Sequence[str] = (), tracking: str = "") -> Comparison:
    """Two of one kind, side by side.

    Args:
        first: as for `explain`.
        second: the other.
        beside: further locations where their parents may be.
        tracking: where MLflow is, for `runs:/ID`.

    Raises:
        UsageError: they are not of one kind, or there is nothing that is known.
        DataError: a file of them is damaged.
    """
    chains = explain(first, beside, tracking), explain(second, beside, tracking)
    kinds = [chain[-1].kind for chain in chains]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{first} is a {kinds[0]}, {second} a {kinds[1]}; expected two of one kind; name runs, weights, scores or "
            "datasets on both sides"
        )
    found = [difference for pair in _aligned(*chains) for difference in _differences(*pair)]
    order = list(CATEGORIES)
    found.sort(key=lambda difference: order.index(difference.category))
    results = list(_results(chains[0][-1], chains[1][-1]))
    return Comparison(first=chains[0], second=chains[1], differences=found, results=results)


def _aligned(
    first: Sequence[Artifact], second: Sequence[Artifact]
) -> Iterator[tuple[Artifact | None, Artifact | None]]:
    """Links of one kind; datasets in their order, as a run names them."""
    for kind in ("dataset", "run", "weights", "score"):
        mine, theirs = ([link for link in chain if link.kind == kind] for chain in (first, second))
        for place in range(max(len(mine), len(theirs))):
            yield mine[place] if place < len(mine) else None, theirs[place] if place < len(theirs) else None


def _differences(first: Artifact | None, second: Artifact | None) -> Iterator[Difference]:
    if first is None or second is None:
        link = first or second
        assert link is not None
        if link.kind == "dataset":
            said = (link.identity, ABSENT) if first else (ABSENT, link.identity)
            yield Difference(
                category="data", where=f"dataset {link.name}", key="dataset", first=said[0], second=said[1]
            )
        return
    compared = {"dataset": _of_datasets, "run": _of_runs, "score": _of_scores, "weights": _of_weights}[first.kind]
    yield from compared(first, second)


def _of_datasets(first: Artifact, second: Artifact) -> Iterator[Difference]:
    if first.identity == second.identity:
        return
    where, found = _both("dataset", first, second), 0
    assert first.manifest is not None and second.manifest is not None
    made = [_made(manifest) for manifest in (first.manifest, second.manifest)]
    if not all(manifest.libraries for manifest in (first.manifest, second.manifest)):
        made = [{key: said for key, said in each.items() if not key.startswith(LIBRARIES)} for each in made]
    for key, one, other in _unequal(*made):
        found += 1
        yield Difference(category="data", where=where, key=key, first=one, second=other)
    try:
        inputs = list(_of_inputs(first, second))
    except (DataError, OSError):
        inputs = [("inputs", first.manifest.inputs_digest, second.manifest.inputs_digest)]
        inputs = inputs if inputs[0][1] != inputs[0][2] else []
    for key, one, other in [*inputs[:MOST_NAMED], *_rest(inputs)]:
        found += 1
        yield Difference(category="data", where=where, key=key, first=one, second=other)
    if not found:
        yield Difference(
            category="data", where=where, key="the shards' bytes", first=first.identity, second=second.identity
        )


def _made(manifest: DatasetManifest) -> dict[str, Any]:
    """By what and how a dataset was made."""
    requeues = {f"requeue {number}": made for number, made in enumerate(manifest.requeued_by, 1)}
    return {
        "decoder": manifest.decoder,
        "encoder": manifest.encoder,
        **{f"{LIBRARIES}{name}": found for name, found in manifest.libraries.items()},
        **requeues,
        **flatten(manifest.parameters, "parameters."),
    }


def _rest(found: Sequence[object]) -> list[tuple[str, str, str]]:
    more = len(found) - MOST_NAMED
    return [("further inputs", f"{more}", f"{more}")] if more > 0 else []


def _of_inputs(first: Artifact, second: Artifact) -> Iterator[tuple[str, str, str]]:
    """Inputs that only one has, or whose content or outcome differs."""
    lists = [_inputs(link) for link in (first, second)]
    for name in dict.fromkeys([*lists[0], *lists[1]]):
        one, other = (listed.get(name) for listed in lists)
        if one is None or other is None or (one.sha256, one.outcome) != (other.sha256, other.outcome):
            yield f"input {name}", _input(one), _input(other)


def _inputs(dataset: Artifact) -> dict[str, InputRecord]:
    assert dataset.manifest is not None
    records = read_inputs(open_store(dataset.location), dataset.manifest.revision)
    return {record.name: record for record in records}


def _input(record: InputRecord | None) -> str:
    if record is None:
        return ABSENT
    reason = f" ({record.reason})" if record.reason else ""
    return f"{record.outcome}{reason}, sha256 {record.sha256[:12] or 'unknown'}"


def _of_runs(first: Artifact, second: Artifact) -> Iterator[Difference]:
    where = _both("run", first, second)
    yield from _of_recipes(first, second, where)
    yield from _of_orders(first, second, where)
    for key, category in (("seed", "seed"), ("world_size", "environment")):
        one, other = (link.record.get(key, "unknown") for link in (first, second))
        if one != other and not (key == "seed" and first.starts and second.starts):  # the recipes have said it
            yield Difference(category=category, where=where, key=key, first=one, second=other)
    begun = [(link.record.get("init_from") or {}).get("sha256", "random weights") for link in (first, second)]
    if begun[0] != begun[1]:
        yield Difference(category="data", where=where, key="began with", first=begun[0], second=begun[1])
    yield from _of_code(first.record, second.record, where)


def _of_code(first: Mapping[str, Any], second: Mapping[str, Any], where: str) -> Iterator[Difference]:
    if code_of(first) != code_of(second):
        yield Difference(category="code", where=where, key="commit", first=code_of(first), second=code_of(second))
    for name in ("host", "user"):
        one, other = (str(record.get(f"mcjepa.{name}", "unknown")) for record in (first, second))
        if one != other:
            yield Difference(category="environment", where=where, key=name, first=one, second=other)


def _of_recipes(first: Artifact, second: Artifact, where: str) -> Iterator[Difference]:
    """Keys whose values differ at any step; a value that changed on the way is told with its steps."""
    histories = [history(link.starts) for link in (first, second)]
    for key in sorted({*histories[0], *histories[1]}):
        one, other = (history.get(key, ABSENT) for history in histories)
        if one != other:
            category = next((kind for start, kind in PREFIXES if key.startswith(start)), "conduct")
            yield Difference(category=category, where=where, key=key, first=one, second=other)


def _of_orders(first: Artifact, second: Artifact, where: str) -> Iterator[Difference]:
    """Datasets by id where they cannot be opened, their weights, and what run.json says of the order."""
    for stream in STREAMS:
        one, other = (link.record.get("order", {}).get(stream, []) for link in (first, second))
        for key in ("repeat", "weight"):
            values = [[source.get(key) for source in sources] for sources in (one, other)]
            if values[0] != values[1]:
                where_key = f"train.stream.{stream}.{key}"
                yield Difference(category="data", where=where, key=where_key, first=values[0], second=values[1])
        ids = [[str(source.get("dataset_id", "")) for source in sources] for sources in (one, other)]
        if ids[0] != ids[1] and (first.missing or second.missing):
            yield Difference(category="data", where=where, key=f"dataset ids of {stream}", first=ids[0], second=ids[1])


def _of_weights(first: Artifact, second: Artifact) -> Iterator[Difference]:
    where = _both("weights", first, second)
    if first.identity != second.identity:
        yield Difference(category="model", where=where, key="sha256", first=first.identity, second=second.identity)
    steps = [link.record.get("step", "unknown") for link in (first, second)]
    if steps[0] != steps[1]:
        yield Difference(category="optimisation", where=where, key="step", first=steps[0], second=steps[1])
    if first.missing or second.missing:  # no run to say more
        for key, category in (("dataset_ids", "data"), ("init_from", "data"), ("run_id", "place")):
            one, other = (link.record.get(key, "unknown") for link in (first, second))
            if one != other:
                yield Difference(category=category, where=where, key=key, first=one, second=other)


def _of_scores(first: Artifact, second: Artifact) -> Iterator[Difference]:
    for name in dict.fromkeys([*first.scores, *second.scores]):
        one, other = (link.scores.get(name) for link in (first, second))
        where = f"score {name}"
        if one is None or other is None:
            said = ("there", ABSENT) if one else (ABSENT, "there")
            yield Difference(category="protocol", where=where, key="score", first=said[0], second=said[1])
            continue
        cards = one["card"], other["card"]
        for key, *values in _unequal(*(_facts(card) for card in cards)):
            category = "seed" if key == "seeds" else "protocol"
            yield Difference(category=category, where=where, key=key, first=values[0], second=values[1])
        for key, *values in _unequal(*(flatten(_present(card.get("config", {}))) for card in cards)):
            category = "place" if key in ("root", "cache") or key.startswith("sets.") else "protocol"
            yield Difference(category=category, where=where, key=f"config.{key}", first=values[0], second=values[1])
        for key, *values in _unequal(*(flatten(card.get("versions", {})) for card in cards)):
            yield Difference(category="environment", where=where, key=key, first=values[0], second=values[1])
        digests = [str(card.get("weights_digest", "")) for card in cards]
        if digests[0] != digests[1] and (first.missing or second.missing):
            yield Difference(category="model", where=where, key="weights", first=digests[0], second=digests[1])


def _facts(card: Mapping[str, Any]) -> dict[str, Any]:
    return _present({key: card.get(key) for key in ("data_set", "frames", "seeds", "failed")})


def _present(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a card, with the names that data sets bear today."""
    return {
        key: SET_NAMES.get(str(value), value) if key in ("data_set", "set") else value for key, value in facts.items()
    }


def _results(first: Artifact, second: Artifact) -> Iterator[tuple[str, Any, Any]]:
    for name in first.scores:
        if name in second.scores:
            metrics = first.scores[name]["metrics"], second.scores[name]["metrics"]
            for key, *values in _unequal(*metrics):
                yield f"{name} {key}", values[0], values[1]


def _both(kind: str, first: Artifact, second: Artifact) -> str:
    return f"{kind} {first.name}" if first.name == second.name else f"{kind} {first.name} | {second.name}"


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*first, *second]):
        one, other = first.get(key, ABSENT), second.get(key, ABSENT)
        if one != other:
            yield key, one, other

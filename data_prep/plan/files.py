"""The plan of a dataset as files in its store: plan.json and plan.jsonl.gz, written before the first shard.

They make a resumed run refuse other inputs or parameters, and say what differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.errors import DataError, PlanMismatch
from mcjepa.data_prep.layout import MANIFEST_NAME, PLAN_INPUTS_NAME, PLAN_NAME
from mcjepa.data_prep.plan.libraries import codec_versions, differing_versions, library_versions
from mcjepa.data_prep.plan.order import ordered_inputs, ordered_lines
from mcjepa.data_prep.plan.plan import (
    PLAN_VERSION,
    PlanDigest,
    PlannedInput,
    PlanSummary,
    differing_inputs,
    differing_parameters,
    input_from_line,
)
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import Store, explained_disk_errors
from mcjepa.data_prep.storage.json_files import encode_json, pack_lines, read_lines


def summarise_plan(
    config: DatasetConfig,
    inputs: Iterable[PlannedInput],
    *,
    guarded: Iterable[PlannedInput] = (),
    census: Census | None = None,
) -> PlanSummary:
    """The plan of a list of inputs, with what `census` has counted meanwhile; nothing is written."""
    digest = new_digest(config, guarded)
    for planned in inputs:
        digest.add(planned)
    return digest.summary(census)


def begin_plan(
    store: Store,
    config: DatasetConfig,
    inputs: Iterable[PlannedInput],
    *,
    guarded: Iterable[PlannedInput] = (),
    census: Census | None = None,
) -> PlanSummary:
    """Plan a dataset and write its plan, unless one is there: `require_same_plan` compares them.

    Args:
        store: Where the dataset is made.
        config: Its settings.
        inputs: All its inputs, as they are listed.
        guarded: Inputs of the evaluation sets that the leakage filter guards.
        census: Has counted, when the inputs are listed, what lies in the corpora.

    Raises:
        DataError: the inputs cannot be listed or the plan cannot be written.
    """
    if store.exists(PLAN_NAME):
        return summarise_plan(config, inputs, guarded=guarded, census=census)
    digest = new_digest(config, guarded)

    def write(file: BinaryIO) -> None:
        pack_lines(file, ordered_lines(_counted(inputs, digest), config, store.scratch()))

    write_plan_inputs(store, write)
    return write_plan(store, digest.summary(census))


def write_plan_inputs(store: Store, write: Callable[[BinaryIO], None]) -> None:
    """Store plan.jsonl.gz, which `write` fills.

    Raises:
        DataError: it cannot be written.
    """
    path = store.scratch() / f"{PLAN_INPUTS_NAME}.{os.getpid()}.partial"
    try:
        with explained_disk_errors(str(path)), path.open("wb") as file:
            write(file)
        store.write_file(PLAN_INPUTS_NAME, path)
    finally:
        path.unlink(missing_ok=True)


def write_plan(store: Store, summary: PlanSummary) -> PlanSummary:
    """Store plan.json, after its inputs; another run's is compared by the caller."""
    store.write_if_absent(PLAN_NAME, encode_json(summary))
    return summary


def read_plan(store: Store) -> PlanSummary:
    """Read plan.json.

    Raises:
        DataError: it is absent, of another version or malformed.
    """
    where = f"{store.location}/{PLAN_NAME}"
    fields = {f.name for f in dataclasses.fields(PlanSummary)}
    try:
        content = json.loads(store.read(PLAN_NAME))
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error}); expected a plan; remove {store.location}") from error
    known = isinstance(content, dict) and fields - {"files", "census", "libraries"} <= set(content) <= fields
    if not known or content["version"] != PLAN_VERSION:
        raise DataError(f"{where} is no plan of version {PLAN_VERSION}; expected one; remove {store.location}")
    return PlanSummary(**content)


def read_plan_inputs(store: Store) -> Iterator[PlannedInput]:
    """The inputs of plan.jsonl.gz, in order."""
    yield from map(input_from_line, read_lines(store, PLAN_INPUTS_NAME))


def require_same_plan(store: Store, config: DatasetConfig, plan: PlanSummary, inputs: Iterable[PlannedInput]) -> None:
    """Refuse to go on with a dataset of another plan, saying what differs; only then are `inputs` listed.

    Raises:
        PlanMismatch: the stored plan is another one.
    """
    stored = read_plan(store)
    if stored.plan_digest == plan.plan_digest:
        _require_same_libraries(store, stored, plan)
        return
    differences = differing_parameters(stored, plan)
    if stored.inputs != plan.inputs:
        differences.append(f"number of inputs: {stored.inputs} -> {plan.inputs}")
    if first := differing_inputs(read_plan_inputs(store), ordered_inputs(inputs, config, store.scratch())):
        differences.append(first)
    state = "published" if store.exists(MANIFEST_NAME) else "begun"
    raise PlanMismatch(
        f"{store.location} was {state} with another plan ({'; '.join(differences) or 'its digest differs'}); "
        "expected the same inputs and parameters; prepare into another root, or remove this folder first"
        + (" (repaired inputs: mcjepa prep requeue)" if state == "published" else "")
    )


def _require_same_libraries(store: Store, stored: PlanSummary, plan: PlanSummary) -> None:
    """Refuse to go on with shards that other libraries have begun; where all are made, nothing depends on them."""
    if not stored.libraries or store.exists(MANIFEST_NAME):
        return
    if differences := differing_versions(stored.libraries, plan.libraries):
        raise PlanMismatch(
            f"{store.location} was begun with other libraries ({'; '.join(differences)}); expected the same, which "
            "decide the bytes of its shards; install those, prepare into another root, or remove this folder first"
        )


def new_digest(config: DatasetConfig, guarded: Iterable[PlannedInput]) -> PlanDigest:
    """A plan's digest before its first input."""
    listing = hashlib.sha256()
    lines = 0
    for planned in guarded:
        listing.update(json.dumps([planned.name, planned.bytes, planned.item.members]).encode())
        lines += 1
    return PlanDigest(
        config,
        *codec_versions(config),
        guarded=listing.hexdigest() if lines else "",
        libraries=library_versions(config),
    )


def _counted(inputs: Iterable[PlannedInput], digest: PlanDigest) -> Iterator[PlannedInput]:
    for planned in inputs:
        digest.add(planned)
        yield planned

"""Is a list of inputs that of a published dataset, but for inputs that had failed and were repaired since?

An input that was quarantined may change: it gave nothing, and a requeue takes it as it is then. A tar or a folder that
could not be opened, or not be read to its end, may then have inputs in it that nobody has seen before: they stand for
it. What a requeue has taken must stay as it was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mcjepa.data_prep.dataset.inputs import InputRecord, holder_of, read_inputs
from mcjepa.data_prep.dataset.manifest import newest_revision, scan_manifest
from mcjepa.data_prep.errors import PlanMismatch
from mcjepa.data_prep.plan.files import read_plan, read_plan_inputs
from mcjepa.data_prep.plan.plan import PlannedInput, describe_parameters
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.storage import Store

FREE_SETTINGS = ("decoder", "max_megapixels")
"""Those that may be other ones in a requeue than in the plan: an input may have failed by them."""


def settings_as_planned(store: Store, config: DatasetConfig) -> DatasetConfig:
    """The settings that a published dataset was planned with, where these are those of a requeue of it."""
    planned, now = read_plan(store).parameters, describe_parameters(config)
    changed = {name: now[name] for name in FREE_SETTINGS if now[name] != planned.get(name)}
    if changed and any(made["parameters"] == changed for made in scan_manifest(store, lambda _: None).requeued_by):
        return replace(config, **{name: planned[name] for name in changed})
    return config


def as_planned(store: Store, inputs: Iterable[PlannedInput]) -> Iterator[PlannedInput]:
    """The inputs, those that may have changed as the plan has them: the same plan gives the same digest.

    Raises:
        PlanMismatch: an input is another one than a requeue has taken.
    """
    failed = {record.name for record in read_inputs(store) if record.outcome == "quarantined"}
    planned = {p.name: p for p in read_plan_inputs(store) if p.name in failed or holder_of(p.name, failed)}
    taken: dict[str, InputRecord] = {}
    for record in read_inputs(store, newest_revision(store)):
        new = record.name not in planned and holder_of(record.name, failed)
        if (record.name in failed or new) and record.outcome != "quarantined":
            taken[record.name] = record
    holder, seen = "", set[str]()
    for item in inputs:
        if holder and not holder_of(item.name, {holder}):
            if item.name != holder and holder not in seen:
                yield planned[holder]
            holder = ""
        inside = holder_of(item.name, failed)
        holder = holder or inside
        now = taken.get(item.name)
        if now is not None and now.bytes != item.bytes:
            raise PlanMismatch(
                f"{store.location} was published with another plan ({item.name} had {now.bytes} bytes when it was "
                f"requeued, now has {item.bytes}); expected the same inputs; prepare into another root"
            )
        if item.name in failed:
            seen.add(item.name)
            yield planned[item.name]
        elif not inside or item.name in planned:
            yield item
    if holder and holder not in seen:
        yield planned[holder]

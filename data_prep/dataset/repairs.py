"""Is a list of inputs that of a published dataset, but for inputs that had failed and were repaired since?

An input that was quarantined may change: it gave nothing, and a requeue takes it as it is then. What a requeue has
taken must stay as it was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mcjepa.data_prep.dataset.inputs import InputRecord, read_inputs
from mcjepa.data_prep.dataset.manifest import newest_revision
from mcjepa.data_prep.plan.files import read_plan_inputs
from mcjepa.data_prep.plan.plan import PlannedInput
from mcjepa.data_prep.storage import Store


def as_planned(store: Store, inputs: Iterable[PlannedInput]) -> Iterator[PlannedInput]:
    """The inputs, those that may have changed as the plan has them: the same plan gives the same digest."""
    failed = {record.name for record in read_inputs(store) if record.outcome == "quarantined"}
    newest: dict[str, InputRecord] = {}
    for record in read_inputs(store, newest_revision(store)):
        if record.name in failed:
            newest[record.name] = record
    planned = {item.name: item for item in read_plan_inputs(store) if item.name in failed}
    for item in inputs:
        now = newest.get(item.name)
        changeable = now is not None and (now.outcome == "quarantined" or now.bytes == item.bytes)
        yield planned[item.name] if changeable else item

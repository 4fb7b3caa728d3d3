"""Plans large corpora by several workers: stretches of the listing side by side, merged in order (`plan.stretches`).

The plan's digest, its inputs and their order are those of one process. Workers are tasks of a Ray cluster where one is
named, else processes of this machine; what they hand on to each other lies beside the dataset in `planning/`, or for
processes in its scratch folder, and is gone afterwards. A published dataset, which no lease guards and which may be
read-only, is planned by processes in a temporary folder.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.corpora.places import is_local, plain_location
from mcjepa.data_prep.layout import MANIFEST_NAME, PLAN_NAME
from mcjepa.data_prep.plan.files import begin_plan, new_digest, write_plan, write_plan_inputs
from mcjepa.data_prep.plan.listing import list_guarded, list_inputs, read_corpus
from mcjepa.data_prep.plan.plan import PlannedInput, PlanSummary
from mcjepa.data_prep.plan.stretches import (
    STRETCHES_A_WORKER,
    ListedStretch,
    PlanWork,
    Stretch,
    cut_corpora,
    list_stretch,
    order_range,
    ranges_of_places,
)
from mcjepa.data_prep.settings import DatasetConfig, PrepConfig
from mcjepa.data_prep.storage import Store, absolute_location, join_location, open_store
from mcjepa.data_prep.workers.processes import run_in_processes
from mcjepa.data_prep.workers.ray_job import count_workers, run_tasks
from mcjepa.data_prep.workers.ray_session import callers_ray_runs, cluster_address, running_ray
from mcjepa.data_prep.workers.tasks import RunTasks

LOG = logging.getLogger(__name__)

SMALL_INPUTS = 20_000
"""Up to which one process plans: a second or two, about what starting others takes."""
EXCHANGE = "planning"
BLOCK_BYTES = 4 << 20

OnListed = Callable[[int], None]


class _Many(Exception):  # no error
    """There are more inputs than one process should plan."""


def plan_dataset(config: PrepConfig, dataset: DatasetConfig, store: Store, on_listed: OnListed) -> PlanSummary:
    """The plan of a dataset, written unless one is there (`begin_plan`); by several workers where it is large.

    Args:
        config: The job.
        dataset: The dataset's settings.
        store: Where the dataset is made.
        on_listed: Called with the number of inputs so far.

    Raises:
        DataError: the inputs cannot be listed or the plan cannot be written.
    """
    published = store.exists(MANIFEST_NAME)
    cluster = None if published else _cluster(config)
    if cluster is not None or _count_processes(config) != 1:
        try:
            return _by_one(dataset, store, on_listed, SMALL_INPUTS)
        except _Many:
            LOG.info("%s has more than %d inputs: several workers list them", store.location, SMALL_INPUTS)
        with _planners(config, cluster, store, published) as (run, count, exchange):
            stretches = cut_corpora(dataset, STRETCHES_A_WORKER * count)
            if len(stretches) > 1:
                return _by_several(dataset, store, stretches, run, exchange, on_listed)
            LOG.info("one process plans %s: reader %s needs the corpus whole, or all its files are of one folder",
                     store.location, dataset.corpora[0].reader)  # fmt: skip
    return _by_one(dataset, store, on_listed)


def _by_one(dataset: DatasetConfig, store: Store, on_listed: OnListed, most: int | None = None) -> PlanSummary:
    def counted(inputs: Iterable[PlannedInput]) -> Iterator[PlannedInput]:
        for number, planned in enumerate(inputs, 1):
            if most is not None and number > most:
                raise _Many
            on_listed(number)
            yield planned

    census = Census()
    inputs = counted(list_inputs(dataset, census))
    return begin_plan(store, dataset, inputs, guarded=list_guarded(dataset), census=census)


def _cluster(config: PrepConfig) -> str | None:
    """Address of the Ray that plans, empty for the caller's own; None: processes of this machine do."""
    address = cluster_address(config.ray_address)
    return address if config.workers_by != "processes" and (address or callers_ray_runs()) else None


def _count_processes(config: PrepConfig) -> int:
    """As many as the job's workers; one per core where that is a number of workers of a cluster."""
    return count_workers(config.workers if _cluster(config) is None else 0, "")


@contextlib.contextmanager
def _planners(
    config: PrepConfig, cluster: str | None, store: Store, published: bool
) -> Iterator[tuple[RunTasks, int, Store]]:
    """Who runs the tasks, how many at a time, and where they hand things on; all of it is gone afterwards."""
    if cluster is None:
        workers = _count_processes(config)
        with _private_exchange() if published else _exchange(str(store.scratch() / EXCHANGE)) as exchange:
            yield partial(run_in_processes, workers=workers), workers, exchange
        return
    # cleared after Ray is left: until then tasks in flight write into it
    with _exchange(join_location(store.location, EXCHANGE)) as exchange, running_ray(cluster, 0):
        workers = count_workers(config.workers, cluster)
        yield partial(run_tasks, workers=workers), workers, exchange


@contextlib.contextmanager
def _private_exchange() -> Iterator[Store]:
    """A store that no other run uses, and nothing of the dataset's."""
    with tempfile.TemporaryDirectory(prefix="mcjepa-planning-") as folder:
        yield open_store(folder)


@contextlib.contextmanager
def _exchange(location: str) -> Iterator[Store]:
    """A store that is empty before and after; a killed run may have left something there."""
    store = open_store(location)
    _clear(store)
    try:
        yield store
    finally:
        _clear(store)


def _clear(store: Store) -> None:
    if is_local(store.location):
        shutil.rmtree(plain_location(store.location), ignore_errors=True)
        return
    for entry in list(store.files()):
        store.remove(entry.key)
    store.clear_scratch()


def _by_several(
    dataset: DatasetConfig,
    store: Store,
    stretches: list[Stretch],
    run: RunTasks,
    exchange: Store,
    on_listed: OnListed,
) -> PlanSummary:
    """List all stretches, then put their lines in order; this process hashes and joins what they hand on."""
    new = not store.exists(PLAN_NAME)
    work = PlanWork(_valid_anywhere(dataset), absolute_location(exchange.location), new)
    found: dict[str, ListedStretch] = {}

    def note(stretch: ListedStretch) -> None:
        found[stretch.name] = stretch
        on_listed(sum(each.inputs for each in found.values()))

    run(list_stretch, work, stretches, on_result=note)
    listed = [found[stretch.name] for stretch in stretches]
    _require_inputs(dataset, listed)
    summary = _summary(dataset, listed, exchange)
    if not new:
        return summary
    members = [stretch.name for stretch in listed]
    if dataset.order == "shuffled":
        ranges = list(ranges_of_places(listed))
        run(order_range, work, ranges, on_result=lambda _: None)
        members = [part.name for part in ranges]

    def write(file: BinaryIO) -> None:
        for name in members:
            with exchange.open(f"{name}.jsonl.gz") as member:
                shutil.copyfileobj(member, file, BLOCK_BYTES)

    write_plan_inputs(store, write)
    return write_plan(store, summary)


def _valid_anywhere(dataset: DatasetConfig) -> DatasetConfig:
    """The settings with corpora at locations that hold in workers, which run in folders of their own."""
    corpora = (replace(c, path=absolute_location(c.path)) if c.path else c for c in dataset.corpora)
    return replace(dataset, corpora=tuple(corpora))


def _require_inputs(dataset: DatasetConfig, listed: Iterable[ListedStretch]) -> None:
    """Have a corpus without any input say so, as one process would."""
    found = dict.fromkeys(range(len(dataset.corpora)), 0)
    for stretch in listed:
        found[stretch.corpus] += stretch.inputs
    for number, inputs in found.items():
        if not inputs:
            next(read_corpus(dataset.corpora[number]), None)


def _summary(dataset: DatasetConfig, listed: Iterable[ListedStretch], exchange: Store) -> PlanSummary:
    """The plan of all stretches, in order."""
    digest, census = new_digest(dataset, list_guarded(dataset)), Census()
    for stretch in listed:
        digest.count(stretch.inputs, stretch.bytes, stretch.files)
        census.merge(stretch.census)
        with exchange.open(f"{stretch.name}.digest") as file:
            while block := file.read(BLOCK_BYTES):
                digest.take(block)
    return digest.summary(census)

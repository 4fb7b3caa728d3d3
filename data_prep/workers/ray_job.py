"""Runs work on Ray: tasks, a bounded number of them in flight.

Only names and numbers pass through the driver and Ray's object store; samples go from the decode children
straight to the store. A task reserves one processor and its worker keeps to one, decode child included. Tasks are
what Ray moves by itself when a worker or a node is lost, and what waits for room by itself when a node is gone for
good.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from mcjepa.data_prep.code import code_name
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.process import one_processor, usable_cores
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.workers.ray_session import compare_code, compare_libraries, ends_with_us, libraries_here
from mcjepa.data_prep.workers.tasks import Item, Result

LOG = logging.getLogger(__name__)

WAIT_S = 1.0
QUIET_WARNING_S = 180.0
TASK_RETRIES = 5


def run_tasks(
    function: Callable[[Any, Item], Result],
    work: object,
    items: Iterable[Item],
    *,
    workers: int,
    datasets: tuple[DatasetConfig, ...] = (),
    on_result: Callable[[Result], None],
) -> None:
    """Like `RunTasks`, inside `running_ray`, by up to `workers` tasks at work, each on a processor of its own.

    `datasets` are those that the tasks make, where they decode: only a node with the same libraries does.

    Raises:
        DataError: one that a task raised; a node runs other code or has other libraries.
        RuntimeError: a task's worker or node died again and again.
    """
    import ray

    remote: Any = ray.remote(_call_on_one_processor).options(
        num_cpus=1, max_retries=TASK_RETRIES, name=getattr(function, "__name__", "task")
    )
    stream = iter(items)
    here = _Here(code_name(), datasets, libraries_here(datasets))
    in_flight: dict[Any, str] = {}
    quiet_since = time.monotonic()
    try:
        for item in islice(stream, workers + _ahead(workers)):
            in_flight[remote.remote(here, function, work, item)] = item.name
        while in_flight:
            ready, _ = ray.wait(list(in_flight), num_returns=1, timeout=WAIT_S)
            quiet_since = _warn_when_quiet(quiet_since, bool(ready), list(in_flight.values()))
            for reference in ready:
                name = in_flight.pop(reference)
                if (following := next(stream, None)) is not None:
                    in_flight[remote.remote(here, function, work, following)] = following.name
                on_result(_result_of(reference, name))
    finally:
        # What is left ends with our Ray, or with our part in it. Cancelling by force would race with tasks that finish
        # just now, on which Ray's core ends the whole process.
        for reference in () if ends_with_us() else in_flight:
            ray.cancel(reference)


_PROCESSOR = contextlib.ExitStack()


class _Here(NamedTuple):
    """What the driver runs and has: nodes that join later must have the same."""

    code: str
    datasets: tuple[DatasetConfig, ...]
    libraries: dict[str, str]


def _call_on_one_processor(here: _Here, function: Callable[[Any, Any], Any], work: object, item: object) -> Any:
    """What Ray's workers run."""
    host = socket.gethostname()
    compare_code(host, code_name(), here.code)
    compare_libraries(host, libraries_here(here.datasets), here.libraries)
    _keep_to_one_processor()
    return function(work, item)


@functools.cache
def _keep_to_one_processor() -> None:
    """Once a worker; it ends with its process."""
    _PROCESSOR.enter_context(one_processor())


def _ahead(workers: int) -> int:
    """Tasks to hand in before a processor is free for them, where the cluster has no more than the workers' number."""
    import ray

    return workers if ray.cluster_resources().get("CPU", 0) <= workers else 0


def count_workers(wanted: int, address: str) -> int:
    """Tasks in flight: as wanted, or one per core of this machine or of the cluster."""
    if wanted:
        return wanted
    if not address:
        return usable_cores()
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _warn_when_quiet(since: float, ready: bool, waiting: list[str]) -> float:
    """Say every few minutes that nothing is finished: the work is long or the cluster has no free core."""
    now = time.monotonic()
    if ready:
        return now
    if now - since < QUIET_WARNING_S:
        return since
    LOG.warning("no shard finished for %.0f s; in flight: %s", now - since, ", ".join(waiting))
    return now


def _result_of(reference: Any, name: str) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"{name}: its worker died {TASK_RETRIES + 1} times ({error}); expected it to live; "
            "look for lack of memory on the node, lower `workers`, then run again: finished shards are kept"
        ) from error

"""Runs the tasks of a small job in threads of this process, each with a decode child of its own, and without Ray.

A private Ray costs several seconds of processor time before the first input, more than a small job itself takes.
The functions are the same, and so are the bytes; what may crash, hang or outgrow its memory is in the children.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import Any

from mcjepa.data_prep.corpora.places import is_local
from mcjepa.data_prep.process import one_processor
from mcjepa.data_prep.settings import PrepConfig
from mcjepa.data_prep.workers.ray_job import count_workers, run_tasks
from mcjepa.data_prep.workers.ray_session import callers_ray_runs, cluster_address, running_ray
from mcjepa.data_prep.workers.shard_maker import close_makers, stop_makers
from mcjepa.data_prep.workers.tasks import Item, Result, RunTasks

LOG = logging.getLogger(__name__)

SMALL_MIB = 128
"""Of inputs, up to which a job is small: a minute or two of one core for videos, 20 s for photos."""
STOP_WAIT_S = 0.1


@contextlib.contextmanager
def running_workers(config: PrepConfig, size: int) -> Iterator[RunTasks]:
    """Those who run the tasks of a job, by its `workers_by`; ended on the way out.

    Args:
        config: The job.
        size: Bytes of its inputs.
    """
    address = cluster_address(config.ray_address)
    if _goes_to_ray(config, address, size / (1 << 20)):
        workers = count_workers(config.workers, "") if not address else 0
        datasets = tuple(config.datasets.values())
        with running_ray(address, workers, datasets):
            yield partial(run_tasks, workers=workers or count_workers(config.workers, address), datasets=datasets)
        return
    workers = count_workers(config.workers, "")
    found = f"{size / (1 << 20):.1f} MiB of inputs; by itself Ray is taken above {SMALL_MIB} MiB"
    LOG.info("processes of this one do the work, %d at a time, without Ray: %s (prep.workers_by)", workers, found)
    yield partial(run_locally, workers=workers)


def _goes_to_ray(config: PrepConfig, address: str, size_mib: float) -> bool:
    """Under `auto`: what has a cluster, waits for a network, decodes in the workers themselves, or is not small."""
    if config.workers_by != "auto":
        return config.workers_by == "ray"
    datasets = config.datasets.values()
    places = [config.root, *(corpus.path for dataset in datasets for corpus in dataset.corpora)]
    guarded = any(dataset.filters.leakage.mode != "off" for dataset in datasets)
    return bool(address) or callers_ray_runs() or guarded or not all(map(is_local, places)) or size_mib > SMALL_MIB


def run_locally(
    function: Callable[[Any, Item], Result],
    work: object,
    items: Iterable[Item],
    *,
    workers: int,
    on_result: Callable[[Result], None],
) -> None:
    """Like `RunTasks`, by up to `workers` threads, each kept to a processor of its own with its decode child."""
    stream = iter(items)
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "worker", lambda: stack.enter_context(one_processor()))
        stack.callback(close_makers)
        stack.callback(pool.shutdown)
        waiting: set[Future[Result]] = {pool.submit(function, work, item) for item in islice(stream, workers)}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                waiting |= {pool.submit(function, work, item) for item in islice(stream, len(done))}
                for future in done:
                    on_result(future.result())
        except BaseException:
            while wait(waiting, STOP_WAIT_S).not_done:  # again: a thread may just be starting its child
                stop_makers()
            raise

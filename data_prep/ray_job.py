"""Runs shard making on Ray (the only user of Ray here): a fixed crew of actors, some shards in flight.

Only names and numbers pass through the driver and Ray's object store; samples go from the decode children
straight to the store. Without an address a private Ray is started on the loopback interface, with a token
of its own and no dashboard or usage report, and ended whatever happens; actors and decode children end
with it. It is never stopped by `ray stop`, which would end every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from typing import Any

from data_prep.config import DatasetConfig
from data_prep.errors import DataError
from data_prep.plan import ShardPlan
from data_prep.process import usable_cores
from data_prep.shard_maker import ShardMaker, ShardResult

LOG = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200 << 20
WAIT_S = 1.0
QUIET_WARNING_S = 180.0
TASK_RETRIES = 3
IN_FLIGHT_PER_ACTOR = 2
PRIVATE = {
    "RAY_AUTH_MODE": "token",
    # The one switch that makes every process of a Ray listen on 127.0.0.1 alone, on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def running_ray(address: str, workers: int) -> Iterator[None]:
    """Connect to Ray at `address`, or run a private one with `workers` processors; ended on the way out."""
    if not address:
        _prepare_private()
    import ray

    if ray.is_initialized():  # the caller's own: used and left alone
        yield
        return
    on_terminate = signal.getsignal(signal.SIGTERM)
    folder = None if address else tempfile.mkdtemp(prefix="mcjepa-", dir=_short_temporary_folder())
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_private(str(folder), workers)
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init put its own in place
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def make_shards(
    location: str,
    config: DatasetConfig,
    plan_digest: str,
    plans: Iterable[ShardPlan],
    *,
    workers: int,
    on_result: Callable[[ShardResult], None],
) -> None:
    """Make every shard of a plan inside `running_ray`, calling `on_result` as each is finished.

    An actor that dies is started again, on another node if need be, and its shard is made again.

    Raises:
        DataError: a shard cannot be stored.
        RuntimeError: a shard's actor died again and again.
    """
    import ray

    processors = int(ray.cluster_resources().get("CPU", 1))  # an actor beyond them would wait for ever
    maker: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=TASK_RETRIES)(ShardMaker)
    crew = [maker.remote(location, config, plan_digest) for _ in range(max(1, min(workers, processors)))]
    try:
        _drive(crew, iter(plans), on_result)
    finally:
        for actor in crew:
            ray.kill(actor)


def count_workers(wanted: int, address: str) -> int:
    """Actors to start: as wanted, or one a core of this machine or of the cluster."""
    if wanted:
        return wanted
    if not address:
        return usable_cores()
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _drive(crew: list[Any], plans: Iterator[ShardPlan], on_result: Callable[[ShardResult], None]) -> None:
    """Keep every actor busy: a bounded number of shards in flight, the next given to who finished one."""
    import ray

    in_flight: dict[Any, tuple[Any, str]] = {}
    first = islice(plans, IN_FLIGHT_PER_ACTOR * len(crew))
    for actor, plan in zip(cycle(crew), first, strict=False):
        in_flight[actor.make.remote(plan)] = (actor, plan.name)
    quiet_since = time.monotonic()
    while in_flight:
        ready, _ = ray.wait(list(in_flight), num_returns=1, timeout=WAIT_S)
        quiet_since = _warn_when_quiet(quiet_since, bool(ready), [name for _, name in in_flight.values()])
        for reference in ready:
            actor, name = in_flight.pop(reference)
            on_result(_result_of(reference, name))
            if following := next(plans, None):
                in_flight[actor.make.remote(following)] = (actor, following.name)


def _warn_when_quiet(since: float, ready: bool, waiting: list[str]) -> float:
    """Say every few minutes that nothing is finished: the work is long or the cluster has no free core."""
    now = time.monotonic()
    if ready:
        return now
    if now - since < QUIET_WARNING_S:
        return since
    LOG.warning("no shard finished for %.0f s; in flight: %s", now - since, ", ".join(waiting))
    return now


def _result_of(reference: Any, shard: str) -> ShardResult:
    import ray

    try:
        result: ShardResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"shard {shard}: its worker died {TASK_RETRIES + 1} times ({error}); expected it to live; "
            "look for lack of memory on the node, lower `workers`, then run again: finished shards are kept"
        ) from error
    return result


def _prepare_private() -> None:
    """Settings that Ray reads when imported; a token that another cluster left in ~/.ray must not matter."""
    os.environ.update(QUIET)
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(PRIVATE, RAY_AUTH_TOKEN=secrets.token_hex(32))


def _start_private(folder: str, workers: int) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=workers,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )


def _short_temporary_folder() -> str:
    """Ray puts sockets below it, whose paths may have 107 characters: a long TMPDIR is passed over."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 24 else "/tmp"
